"""A warm-up runs the paths that a first request takes."""

from __future__ import annotations

from torch.profiler import ProfilerActivity, profile

from stoker_runtime.engines.causal_lm_warmup import warm_up_decoder


def test_it_runs_the_decoders_operations() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        warm_up_decoder()
    seen = {event.key for event in trace.key_averages()}
    needed = {"cos", "mm", "index_copy_", "linalg_vector_norm", "silu", "softmax", "sort"}
    needed.add("scaled_dot_product_attention")
    assert {f"aten::{name}" for name in needed} <= seen
