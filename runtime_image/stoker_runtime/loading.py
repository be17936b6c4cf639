"""From a `LoadRequest` to a served engine, with every millisecond in a phase."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import torch

import stoker_loader.aio
from stoker_loader import LoadStats
from stoker_runtime.contract import (
    EngineName,
    LoadRequest,
    PhaseEvent,
    ReadyEvent,
    Tier,
)
from stoker_runtime.engines.embedding import EmbeddingEngine, open_encoder
from stoker_runtime.engines.handler import HandlerEngine
from stoker_runtime.engines.handler_context import HandlerContext
from stoker_runtime.errors import InvalidRequest
from stoker_runtime.generation import GenerationLoop
from stoker_runtime.models import load_text_model
from stoker_runtime.shelf import TokenizerShelf
from stoker_runtime.weights import read_json, rejecting

EMBEDDING_ARCHITECTURES = frozenset(
    {"BertModel", "RobertaModel", "XLMRobertaModel", "MPNetModel", "DistilBertModel"}
)

T = TypeVar("T")
Report: TypeAlias = Callable[[PhaseEvent], None]
Served: TypeAlias = GenerationLoop | EmbeddingEngine | HandlerEngine


class PhaseClock:
    """Cuts the time since its creation into contiguous phases."""

    def __init__(self) -> None:
        self._mark_s = time.perf_counter()

    def end(
        self,
        name: Literal["load", "init"],
        *,
        tier: Tier | None = None,
        read_bytes: int = 0,
        details: Mapping[str, float] | None = None,
    ) -> PhaseEvent:
        """The phase that began when the last one ended, and ends now."""
        now_s = time.perf_counter()
        duration_ms = (now_s - self._mark_s) * 1000
        self._mark_s = now_s
        return PhaseEvent(
            name=name,
            duration_ms=duration_ms,
            tier=tier,
            bytes=read_bytes,
            details=dict(details or {}),
        )


async def load(
    request: LoadRequest, report: Report, tokenizers: TokenizerShelf
) -> tuple[Served, ReadyEvent]:
    """Loads what the request names; phases are reported as they end.

    Raises:
        InvalidRequest: the request lacks what its engine needs.
        CheckpointRejected: the checkpoint is missing, damaged or of no known kind.
        HandlerSetupFailed: the user's code could not be made ready.
    """
    os.environ.update(request.env)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    engine = choose_engine(request)
    if engine is EngineName.HANDLER:
        return await _load_handler(request, report)
    if engine is EngineName.EMBEDDING:
        return await _load_embedding(request, report)
    return await _load_text(request, engine, report, tokenizers)


def choose_engine(request: LoadRequest) -> EngineName:
    """The engine that serves this request: a handler first, else by the checkpoint's config."""
    if request.engine is not EngineName.AUTO:
        return request.engine
    if request.handler is not None:
        return EngineName.HANDLER
    architectures = read_json(_checkpoint(request) / "config.json").get("architectures") or ()
    if any(name in EMBEDDING_ARCHITECTURES for name in architectures):
        return EngineName.EMBEDDING
    return EngineName.AUTO


async def _load_handler(request: LoadRequest, report: Report) -> tuple[Served, ReadyEvent]:
    if request.handler is None or request.source_path is None:
        raise InvalidRequest(
            "engine handler needs the user's file: set `runtime.handler: handler.py`",
            param="handler",
        )
    clock = PhaseClock()
    source_path = Path(request.source_path)
    engine = HandlerEngine(source_path, slots=request.args.max_batch)
    module_name = "stoker_function_" + re.sub(r"\W", "_", request.instance_id)
    await engine.load(request.handler, module_name)
    report(clock.end("load"))
    checkpoint_path = await _complete(request) if request.checkpoint_path else None
    context = HandlerContext(
        source_path=source_path,
        checkpoint_path=checkpoint_path,
        options=request.options,
    )
    await engine.setup(context)
    loaded = context.loaded
    report(
        clock.end(
            "init",
            tier=loaded.tier,
            read_bytes=loaded.bytes,
            details={"tensors_ms": loaded.load_ms} if loaded.load_ms else None,
        )
    )
    return engine, ReadyEvent(engine=engine.name, slots=request.args.max_batch)


async def _load_text(
    request: LoadRequest, engine: EngineName, report: Report, tokenizers: TokenizerShelf
) -> tuple[Served, ReadyEvent]:
    event_loop = asyncio.get_running_loop()

    def ended(
        name: Literal["load", "init"],
        duration_ms: float,
        tier: Tier | None,
        read_bytes: int,
        details: Mapping[str, float],
    ) -> None:
        event = PhaseEvent(
            name=name, duration_ms=duration_ms, tier=tier, bytes=read_bytes, details=dict(details)
        )
        event_loop.call_soon_threadsafe(report, event)

    model = await _in_thread(
        partial(
            load_text_model,
            _checkpoint(request),
            engine,
            request.args,
            ended,
            tokenizers.get,
            arriving=request.arriving,
        )
    )
    model.loop.start()
    return model.loop, model.ready


async def _load_embedding(request: LoadRequest, report: Report) -> tuple[Served, ReadyEvent]:
    clock = PhaseClock()
    checkpoint = await _complete(request)
    opened = await _in_thread(partial(open_encoder, checkpoint))
    stats = opened.stats
    report(
        clock.end(
            "load",
            tier=Tier(stats.tier) if stats else None,
            read_bytes=stats.checkpoint_bytes if stats else 0,
            details=_parts(stats) if stats else None,
        )
    )
    engine = EmbeddingEngine(opened, request.args.max_model_len)
    await engine.warm_up()
    report(clock.end("init"))
    ready = ReadyEvent(
        engine=engine.name,
        context_tokens=engine.max_tokens,
        slots=1,
        facts={"dimensions": engine.dimensions},
    )
    return engine, ready


def _parts(stats: LoadStats) -> dict[str, float]:
    return {
        "open_ms": stats.open_ms,
        "residency_ms": stats.residency_ms,
        "map_ms": stats.map_ms,
        "populate_ms": stats.populate_ms,
        "attach_ms": stats.attach_ms,
    }


def _checkpoint(request: LoadRequest) -> Path:
    if request.checkpoint_path is None:
        raise InvalidRequest(
            "this engine needs a checkpoint: set `model.uri` in the manifest",
            param="checkpoint_path",
        )
    return Path(request.checkpoint_path)


async def _complete(request: LoadRequest) -> Path:
    """The checkpoint with all its files at their names: for code that opens them itself."""
    checkpoint = _checkpoint(request)
    if request.arriving:
        with rejecting(checkpoint):
            await stoker_loader.aio.wait_complete(checkpoint)
    return checkpoint


async def _in_thread(work: Callable[[], T]) -> T:
    """Runs blocking work beside the event loop, in a thread that no shutdown waits for."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="load")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, work)
    finally:
        thread.shutdown(wait=False)
