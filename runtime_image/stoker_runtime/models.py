"""From a checkpoint directory to a decode loop that is ready to stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import stoker_loader
from stoker_runtime.contract import EngineArgs, EngineName, ReadyEvent, Tier
from stoker_runtime.engines.base import TextEngine
from stoker_runtime.engines.causal_lm import CausalLM
from stoker_runtime.engines.causal_lm_config import architecture_of, parse_config, supports
from stoker_runtime.engines.causal_lm_weights import bind
from stoker_runtime.engines.linear import leave_threads_to, linear_for
from stoker_runtime.errors import InvalidRequest
from stoker_runtime.generation.bounds import Bounds
from stoker_runtime.generation.loop import GenerationLoop
from stoker_runtime.tokenizer import TextTokenizer
from stoker_runtime.weights import eos_ids, open_weights, read_json, rejecting

DEFAULT_CONTEXT_TOKENS = 8192  # where a manifest sets no max_model_len
# The tokenizer's parser keeps the interpreter's lock. Resident weights are attached within this
# time and so are measured alone; weights that have to be read overlap with the parser.
HEAD_START_S = 0.02


class PhaseReport(Protocol):
    """Told when a startup phase has ended; phases are contiguous."""

    def __call__(
        self,
        name: Literal["load", "init"],
        duration_ms: float,
        tier: Tier | None,
        read_bytes: int,
        details: Mapping[str, float],
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class TextModel:
    """A loop that has not been started, and what to tell of it."""

    loop: GenerationLoop
    ready: ReadyEvent


def load_text_model(
    checkpoint: Path,
    engine: EngineName,
    args: EngineArgs,
    report: PhaseReport,
    read_tokenizer: Callable[[Path], TextTokenizer] = TextTokenizer.load,
    *,
    arriving: bool = False,
) -> TextModel:
    """Loads a model that generates text. Blocks: call it from a thread of its own. Where the
    weights are `arriving` the tokenizer is read meanwhile.

    Raises:
        CheckpointRejected: config, tokenizer or weights are missing, damaged or of no known kind.
        InvalidRequest: `max_model_len` is more than the model was made for.
    """
    clock = _Clock()
    config = read_json(checkpoint / "config.json")
    context_tokens = _context_tokens(config, args)
    chosen = _choose(engine, config)
    clock.part("config_ms")
    with (
        rejecting(checkpoint),
        ThreadPoolExecutor(2, thread_name_prefix="load") as threads,
        open_weights(checkpoint, arriving=arriving) as source,
    ):
        clock.part("open_ms")
        read = partial(read_tokenizer, checkpoint)
        reading = threads.submit(read) if arriving else None
        build = _causal_lm if chosen is EngineName.CAUSAL_LM else _transformers
        finish = build(checkpoint, config, source, args, context_tokens)
        clock.part("attach_ms")
        populated = threads.submit(source.populate)
        resident = _done(populated, HEAD_START_S)
        clock.part("populate_ms")
        tokenizer: TextTokenizer | None = None
        if not resident or reading:
            tokenizer = reading.result() if reading else read()
            clock.part("tokenizer_ms")
            populated.result()
            clock.part("populate_rest_ms")
        stats = source.stats
        clock.end("load", report, Tier(stats.tier), stats.checkpoint_bytes)
        if tokenizer is None:
            tokenizer = read()
            clock.part("tokenizer_ms")
        built = finish()
        clock.part("engine_ms")
    loop = GenerationLoop(built, tokenizer, Bounds(prefill_chunk_tokens=args.prefill_chunk))
    ready = ReadyEvent(
        engine=chosen,
        context_tokens=built.context_tokens,
        slots=built.slots,
        facts={"architecture": architecture_of(config), "vocab_size": built.vocab_size},
    )
    clock.end("init", report, None, 0)
    return TextModel(loop, ready)


Finish = Callable[[], TextEngine]
"""Builds the engine once the weights are there."""


def _causal_lm(
    checkpoint: Path,
    config: Mapping[str, Any],
    source: stoker_loader.Checkpoint,
    args: EngineArgs,
    context_tokens: int,
) -> Finish:
    decoder = parse_config(config)
    dtype = source.tensor("model.norm.weight").dtype
    linear = linear_for(dtype)
    leave_threads_to(linear)
    weights = bind(decoder, source, linear)
    ends = eos_ids(config, _generation_config(checkpoint))
    return lambda: CausalLM(
        decoder, weights, slots=args.max_batch, context_tokens=context_tokens, eos_ids=ends
    )


def _transformers(
    checkpoint: Path,
    config: Mapping[str, Any],
    source: stoker_loader.Checkpoint,
    args: EngineArgs,
    context_tokens: int,
) -> Finish:
    from stoker_runtime.engines.transformers import TransformersLM, build_model

    ends = eos_ids(config, _generation_config(checkpoint))
    return lambda: TransformersLM(
        build_model(checkpoint, source.load(), architecture_of(config)),
        slots=args.max_batch,
        context_tokens=context_tokens,
        eos_ids=ends,
    )


def _choose(engine: EngineName, config: Mapping[str, Any]) -> EngineName:
    """`auto` takes the lean decoder where it computes exactly what the config describes."""
    assert engine in (EngineName.AUTO, EngineName.CAUSAL_LM, EngineName.TRANSFORMERS), engine
    if engine is not EngineName.AUTO:
        return engine
    return EngineName.CAUSAL_LM if supports(config) else EngineName.TRANSFORMERS


def _context_tokens(config: Mapping[str, Any], args: EngineArgs) -> int:
    made_for = config.get("max_position_embeddings")
    if args.max_model_len is None:
        return min(made_for or DEFAULT_CONTEXT_TOKENS, DEFAULT_CONTEXT_TOKENS)
    if made_for is not None and args.max_model_len > made_for:
        raise InvalidRequest(
            f"max_model_len is {args.max_model_len}, but this model was made for {made_for} "
            "tokens; lower `runtime.args.max_model_len`",
            code="context_too_long",
            param="max_model_len",
        )
    return args.max_model_len


def _generation_config(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "generation_config.json"
    return read_json(path) if path.exists() else {}


def _done(future: Future[None], patience_s: float) -> bool:
    """Whether it ends within `patience_s`; raises what it raised."""
    if wait([future], patience_s).not_done:
        return False
    future.result()
    return True


class _Clock:
    """Cuts time into phases, and phases into named parts."""

    def __init__(self) -> None:
        self._phase_s = self._part_s = time.perf_counter()
        self._details: dict[str, float] = {}

    def part(self, name: str) -> None:
        """A part of the phase ends here."""
        now_s = time.perf_counter()
        self._details[name] = (now_s - self._part_s) * 1000
        self._part_s = now_s

    def end(
        self,
        name: Literal["load", "init"],
        report: PhaseReport,
        tier: Tier | None,
        read_bytes: int,
    ) -> None:
        """The phase ends here."""
        now_s = time.perf_counter()
        report(name, (now_s - self._phase_s) * 1000, tier, read_bytes, self._details)
        self._phase_s = self._part_s = now_s
        self._details = {}
