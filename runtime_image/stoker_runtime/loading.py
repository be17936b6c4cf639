"""From a `LoadRequest` to a served engine, with every millisecond in a phase."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from stoker_runtime.contract import (
    EngineName,
    LoadRequest,
    PhaseEvent,
    ReadyEvent,
    Tier,
)
from stoker_runtime.engines.handler import HandlerEngine
from stoker_runtime.engines.handler_context import HandlerContext
from stoker_runtime.errors import CheckpointRejected, InvalidRequest

EMBEDDING_ARCHITECTURES = frozenset(
    {"BertModel", "RobertaModel", "XLMRobertaModel", "MPNetModel", "DistilBertModel"}
)

Report: TypeAlias = Callable[[PhaseEvent], None]
Served: TypeAlias = HandlerEngine


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


async def load(request: LoadRequest, report: Report) -> tuple[Served, ReadyEvent]:
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
    raise InvalidRequest(f"engine {engine} is not there yet")


def choose_engine(request: LoadRequest) -> EngineName:
    """The engine that serves this request: a handler first, else by the checkpoint's config."""
    if request.engine is not EngineName.AUTO:
        return request.engine
    if request.handler is not None:
        return EngineName.HANDLER
    architectures = _architectures(_checkpoint(request))
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
    context = HandlerContext(
        source_path=source_path,
        checkpoint_path=Path(request.checkpoint_path) if request.checkpoint_path else None,
        options=request.options,
    )
    await engine.setup(context)
    loaded = context.loaded
    report(
        clock.end(
            "init",
            tier=Tier(loaded.tier) if loaded.tier else None,
            read_bytes=loaded.bytes,
            details={"tensors_ms": loaded.load_ms} if loaded.load_ms else None,
        )
    )
    return engine, ReadyEvent(engine=engine.name, slots=request.args.max_batch)


def _checkpoint(request: LoadRequest) -> Path:
    if request.checkpoint_path is None:
        raise InvalidRequest(
            "this engine needs a checkpoint: set `model.uri` in the manifest",
            param="checkpoint_path",
        )
    return Path(request.checkpoint_path)


def _architectures(checkpoint: Path) -> list[str]:
    path = checkpoint / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointRejected(
            f"{checkpoint.name} has no config.json, so no engine can be chosen; "
            "name one in `runtime.engine`",
            code="checkpoint_incomplete",
        ) from error
    except ValueError as error:
        raise CheckpointRejected(
            f"config.json of {checkpoint.name} is not JSON: {error}", code="checkpoint_corrupt"
        ) from error
    names = config.get("architectures") if isinstance(config, dict) else None
    return [str(name) for name in names or ()]
