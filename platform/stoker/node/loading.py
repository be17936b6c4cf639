"""Tells a worker to prepare and to load, and reads how that goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import structlog

from stoker.domain import PhaseName, Tier
from stoker.errors import StartupFailed
from stoker.node.drivers.base import Worker
from stoker.node.held import Arrived
from stoker.node.wire import MeasuredPhase
from stoker_loader.errors import FetchAbandonedError, WaitTimeoutError
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

LOST_ARRIVAL = frozenset({FetchAbandonedError.code, WaitTimeoutError.code})
COVERED = 0.9  # of a fetch's own time, if its bytes are to say something of its rate
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


async def load_arriving(
    worker: Worker, request: LoadRequest, arrival: asyncio.Future[Arrived] | None
) -> tuple[list[MeasuredPhase], ReadyEvent]:
    """As `load`, of files that may be on their way until `arrival`. What ends that early is raised
    instead of what the worker makes of it."""
    try:
        return await load(worker, request)
    except LoadRefused as refused:
        if arrival is None or refused.error.code not in LOST_ARRIVAL:
            raise
        await asyncio.shield(arrival)
        # It went on, from another signature of the same bytes say, when the worker had given up.
        raise StartupFailed(f"the fetch was interrupted: {refused.error.message}") from refused


def overlapped(
    fetch: MeasuredPhase, phases: Sequence[MeasuredPhase], arrived: Arrived, readable_at: float
) -> tuple[MeasuredPhase, list[MeasuredPhase]]:
    """The phases of a start whose load began at `readable_at` (of the monotonic clock), when its
    bytes may still have been arriving: until they had, the time is the fetch's."""
    overlap_ms = max(arrived.at - readable_at, 0.0) * 1e3
    fetch_ms = fetch.duration_ms + overlap_ms
    if arrived.size_bytes:
        fetch = fetch.model_copy(update={"tier": Tier.REMOTE})
    # A fetch that others began, or that ran beside the claim, was faster than this phase says.
    if fetch_ms >= COVERED * arrived.duration_s * 1e3:
        fetch = fetch.model_copy(update={"bytes": arrived.size_bytes})
    cut: list[MeasuredPhase] = []
    for phase in phases:
        taken_ms = min(overlap_ms, phase.duration_ms)
        overlap_ms -= taken_ms
        changes: dict[str, object] = {"duration_ms": phase.duration_ms - taken_ms}
        if taken_ms:  # of a rate that is another tier's, nothing is to be learned
            changes |= {"tier": None, "bytes": 0}
        cut.append(phase.model_copy(update=changes))
    return fetch.model_copy(update={"duration_ms": fetch_ms}), cut


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
