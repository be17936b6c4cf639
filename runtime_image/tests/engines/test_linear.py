"""Widened products are products: equal to the native ones up to one rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from stoker_loader import kernels
from stoker_runtime.engines.linear import (
    NATIVE_ROWS,
    TILE_ELEMENTS,
    UPRIGHT_ROWS,
    KernelLinear,
    WideningLinear,
    leave_threads_to,
    linear_for,
    native,
)


@given(
    rows=st.integers(1, 2 * UPRIGHT_ROWS),
    inputs=st.sampled_from([1, 7, 64, 1000]),
    outputs=st.integers(1, 700),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    bias=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_it_is_a_linear_layer(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype, bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    vector = torch.randn(outputs, generator=generator).to(dtype) if bias else None
    wide_bias = None if vector is None else vector.double()
    exact = functional.linear(x.double(), weight.double(), wide_bias)
    found = WideningLinear()(x, weight, vector)
    assert found.dtype is (dtype if rows <= NATIVE_ROWS else torch.float32)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=step, atol=step * inputs**0.5)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_tiles_meet_without_gap_or_overlap(extra: int) -> None:
    inputs = TILE_ELEMENTS // 16
    x = torch.zeros(4, inputs, dtype=torch.bfloat16)
    x[:, 0] = 1
    outputs = 2 * 16 + extra
    weight = torch.zeros(outputs, inputs, dtype=torch.bfloat16)
    weight[:, 0] = torch.arange(outputs)
    found = WideningLinear()(x, weight)
    assert found.tolist() == [[float(n) for n in range(outputs)]] * 4


@pytest.mark.parametrize("rows", [1, 2, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_round_nothing(rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 100, generator=generator).to(dtype)
    weight = torch.randn(70, 100, generator=generator).bfloat16()
    bias = torch.randn(70, generator=generator).bfloat16()
    found = KernelLinear(kernels.Kernels(2))(x, weight, bias)
    assert found.dtype is torch.float32
    exact = functional.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_whoever_has_threads_of_their_own_takes_torchs(dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        linear = linear_for(dtype)
        leave_threads_to(linear)
        assert torch.get_num_threads() == (1 if isinstance(linear, KernelLinear) else 3)
    finally:
        torch.set_num_threads(before)


def test_float32_needs_no_help() -> None:
    assert linear_for(torch.float32) is native
