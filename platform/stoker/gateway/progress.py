"""The progress of long work as lines of JSON, and at last its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stoker.checkpoints.ingest import StageProgress
from stoker.errors import StokerError
from stoker.gateway.call import Call
from stoker.gateway.disconnect import unless_left
from stoker.gateway.problems import openai_error
from stoker_runtime.contract import STREAM_MEDIA_TYPE

Work: TypeAlias = Callable[[StageProgress], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class _Report:
    stage: str
    bytes_done: int
    bytes_total: int


class _Latest:
    """The newest report: a slow client skips some and holds nobody up."""

    def __init__(self) -> None:
        self._report: _Report | None = None
        self._changed = asyncio.Event()
        self._ended = False

    def put(self, stage: str, bytes_done: int, bytes_total: int) -> None:
        self._report = _Report(stage, bytes_done, bytes_total)
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    async def reports(self) -> AsyncIterator[_Report]:
        while True:
            await self._changed.wait()
            self._changed.clear()
            last = self._ended
            report, self._report = self._report, None
            if report is not None:
                yield report
            if last:
                return


class ProgressResponse(Response):
    """Work under way, and its progress; a client that leaves cancels it.

    Only what goes wrong after the status line was sent is a line of the stream.
    """

    media_type = STREAM_MEDIA_TYPE

    def __init__(self, work: Work, call: Call) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._work = work
        self._call = call

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await unless_left(receive, self._stream(send))

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        latest = _Latest()
        async with asyncio.TaskGroup() as tasks:
            outcome = tasks.create_task(self._outcome(latest))
            async for report in latest.reports():
                await _send_line(send, asdict(report))
        await _send_line(send, outcome.result())
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _outcome(self, latest: _Latest) -> dict[str, Any]:
        try:
            return await self._work(latest.put)
        except StokerError as error:
            self._call.failure = error
            return openai_error(error, self._call.request_id)
        finally:
            latest.end()


async def _send_line(send: Send, value: dict[str, Any]) -> None:
    line = orjson.dumps(value) + b"\n"
    await send({"type": "http.response.body", "body": line, "more_body": True})
