"""The one owner of a worker's state: what it is, what it serves, how much is under way."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from stoker_runtime.contract import (
    FailedEvent,
    LoadEvent,
    LoadRequest,
    PrepareRequest,
    ReadyEvent,
    WorkerState,
    WorkerStatus,
)
from stoker_runtime.errors import AlreadyLoaded, EngineFailed, NotReady, RuntimeFault, WrongEngine
from stoker_runtime.lifecycle import WorkerEvent, advance
from stoker_runtime.loading import Served, load
from stoker_runtime.logs import fields
from stoker_runtime.shelf import TokenizerShelf
from stoker_runtime.tokenizer import TOKENIZER_FILE

MAX_LOAD_EVENTS = 8  # load, init, then ready or failed: never more than three

LOG = logging.getLogger(__name__)

ServedT = TypeVar("ServedT", bound=Served)


class Instance:
    """A blank worker's future: loads once, then hands out what it serves.

    `tasks` owns the load, which outlives the request that asked for it. `on_failed` is called
    once after the load has failed and its last event is on its way.
    """

    def __init__(self, tasks: asyncio.TaskGroup, on_failed: Callable[[], None]) -> None:
        self._tasks = tasks
        self._on_failed = on_failed
        self._tokenizers = TokenizerShelf()
        self._state = WorkerState.BLANK
        self._served: Served | None = None
        self._instance_id: str | None = None
        self._active = 0
        self._loading: asyncio.Task[None] | None = None

    async def prepare(self, request: PrepareRequest) -> None:
        """Reads ahead what loading these checkpoints will need, one after the other.

        Raises:
            AlreadyLoaded: this worker is no longer blank.
            CheckpointRejected: a checkpoint has no readable tokenizer.
        """
        for path in map(Path, request.checkpoint_paths):
            if self._state is not WorkerState.BLANK:
                raise AlreadyLoaded(f"this worker is {self._state} and needs no preparation")
            if (path / TOKENIZER_FILE).exists():
                await asyncio.to_thread(self._tokenizers.get, path)

    def load(self, request: LoadRequest) -> AsyncGenerator[LoadEvent, None]:
        """Begins the load and gives its events; leaving the stream does not stop the load.

        Raises:
            AlreadyLoaded: at once, when this is not the first load.
        """
        self._state = advance(self._state, WorkerEvent.LOAD)
        self._instance_id = request.instance_id
        events: asyncio.Queue[LoadEvent] = asyncio.Queue(MAX_LOAD_EVENTS)
        self._loading = self._tasks.create_task(self._load(request, events), name="load")
        return _until_last(events)

    def serving(self, kind: type[ServedT]) -> ServedT:
        """What this instance serves, when it is of the kind that a request needs.

        Raises:
            NotReady: nothing is loaded.
            WrongEngine: what is loaded answers other requests.
        """
        if self._served is None:
            raise NotReady(f"this worker is {self._state}; POST /load and await its ready event")
        if not isinstance(self._served, kind):
            raise WrongEngine(f"engine {self._served.name} does not answer this kind of request")
        return self._served

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Counts one request while it runs."""
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1

    def status(self) -> WorkerStatus:
        """The worker's state as one message."""
        return WorkerStatus(
            state=self._state, instance_id=self._instance_id, active=self._active, pid=os.getpid()
        )

    async def close(self) -> None:
        """Frees what is served; requests under way have ended or been cancelled before."""
        if self._loading is not None:
            self._loading.cancel()
        if self._served is not None:
            await self._served.close()

    async def _load(self, request: LoadRequest, events: asyncio.Queue[LoadEvent]) -> None:
        try:
            self._served, ready = await load(request, events.put_nowait, self._tokenizers)
        except RuntimeFault as fault:
            self._fail(fault, events)
        except Exception:
            LOG.exception("load broke")
            broken = EngineFailed("the load broke; the worker's log has the traceback")
            self._fail(broken, events)
        else:
            self._state = advance(self._state, WorkerEvent.LOADED)
            LOG.info("ready", extra=fields(instance_id=request.instance_id, engine=ready.engine))
            events.put_nowait(ready)

    def _fail(self, fault: RuntimeFault, events: asyncio.Queue[LoadEvent]) -> None:
        self._state = advance(self._state, WorkerEvent.LOAD_FAILED)
        LOG.error("load failed", extra=fields(**fault.error.model_dump()))
        events.put_nowait(FailedEvent(error=fault.error))
        self._on_failed()


async def _until_last(events: asyncio.Queue[LoadEvent]) -> AsyncGenerator[LoadEvent, None]:
    while True:
        event = await events.get()
        yield event
        if isinstance(event, ReadyEvent | FailedEvent):
            return
