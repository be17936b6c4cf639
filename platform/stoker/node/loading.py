"""Tells a worker to prepare and to load, and reads how that goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import structlog

from stoker.domain import PhaseName
from stoker.errors import StartupFailed
from stoker.node.drivers.base import Worker
from stoker.node.wire import MeasuredPhase
from stoker_runtime.contract import (
    LOAD_EVENT,
    FailedEvent,
    LoadRequest,
    PhaseEvent,
    PrepareRequest,
    ReadyEvent,
    WorkerError,
)

log = structlog.get_logger(__name__)

NO_BOUND = httpx.Timeout(None)  # of a load's duration; its waiters have deadlines of their own


class LoadRefused(Exception):
    """The worker says that what it was told to load cannot be served: trying again is no use."""

    def __init__(self, error: WorkerError) -> None:
        super().__init__(error.message)
        self.error = error


async def prepare(worker: Worker, checkpoints: Sequence[Path]) -> None:
    """Has a blank worker read ahead what these checkpoints need.

    It is a favour and never an error: a worker that was claimed or died meanwhile refuses it, and
    a checkpoint that cannot be read is reported when it is loaded.
    """
    request = PrepareRequest(checkpoint_paths=tuple(map(str, checkpoints)))
    try:
        async with _client(worker) as client:
            response = await client.post("/prepare", content=request.model_dump_json())
    except httpx.TransportError as error:
        log.info("worker not prepared", worker=worker.id, error=str(error))
        return
    if response.is_error:
        log.info("worker not prepared", worker=worker.id, status=response.status_code)


async def load(worker: Worker, request: LoadRequest) -> tuple[list[MeasuredPhase], ReadyEvent]:
    """Returns the phases the worker measured and what it became.

    Raises `LoadRefused` with the worker's own error, `StartupFailed` when it dies on the way. The
    time a load may take is bounded by whoever waits for it, not here.
    """
    phases: list[MeasuredPhase] = []
    try:
        async with (
            _client(worker) as client,
            client.stream("POST", "/load", content=request.model_dump_json()) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise LoadRefused(WorkerError.model_validate_json(await response.aread()))
            async for line in _lines(response):
                match LOAD_EVENT.validate_json(line):
                    case PhaseEvent() as phase:
                        phases.append(
                            MeasuredPhase(
                                name=PhaseName(phase.name),
                                duration_ms=phase.duration_ms,
                                tier=phase.tier,
                                bytes=phase.bytes,
                            )
                        )
                    case ReadyEvent() as ready:
                        return phases, ready
                    case FailedEvent() as failed:
                        raise LoadRefused(failed.error)
    except httpx.TransportError as error:
        ended = await worker.stop(0)
        raise StartupFailed(f"the worker died while it loaded ({ended})") from error
    ended = await worker.stop(0)
    raise StartupFailed(f"the worker ended its load without a result ({ended})")


def _client(worker: Worker) -> httpx.AsyncClient:
    """HTTP over the worker's socket. Without TLS: making a context takes tens of milliseconds."""
    transport = httpx.AsyncHTTPTransport(uds=str(worker.socket), verify=False)
    return httpx.AsyncClient(
        transport=transport, base_url="http://worker", timeout=NO_BOUND, trust_env=False
    )


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line:
            yield line
