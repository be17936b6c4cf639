"""Engine `handler`: a user's own Python behind `/invoke`.

`predict` may be a function, a generator (its values stream), or the async kind of either. The
sync kinds run each in one thread of a bounded pool, the async kinds on the event loop.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any, TypeVar

from stoker_runtime.contract import EngineName, InvokeDone, InvokeRequest
from stoker_runtime.engines.handler_context import HandlerContext
from stoker_runtime.engines.handler_faults import predict_fault, setup_fault
from stoker_runtime.engines.handler_source import UserHandler, load_source
from stoker_runtime.engines.handler_values import failed_line, value_line
from stoker_runtime.engines.outbox import Outbox, ReaderGone
from stoker_runtime.errors import HandlerFailed, Overloaded, RuntimeFault
from stoker_runtime.logs import fields
from stoker_runtime.streaming import line_of

MAX_CALLS = 1024  # under way or waiting for a thread; the platform's hard limit is far below

LOG = logging.getLogger(__name__)

T = TypeVar("T")


class HandlerEngine:
    """One loaded handler; `slots` sync predicts run at once."""

    name = EngineName.HANDLER

    def __init__(self, source_path: Path, slots: int) -> None:
        self._source_path = source_path
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="predict")
        self._handler: UserHandler | None = None
        self._calls = 0

    async def load(self, file_name: str, module_name: str) -> None:
        """Imports the user's file.

        Raises:
            HandlerSetupFailed: it is missing, does not import, or has no usable `predict`.
        """
        self._handler = await self._in_thread(
            lambda: load_source(self._source_path, file_name, module_name)
        )

    async def setup(self, context: HandlerContext) -> None:
        """Runs the user's `setup`, if there is one.

        Raises:
            HandlerSetupFailed: `setup` raised.
        """
        assert self._handler is not None, "load comes before setup"
        setup = self._handler.setup
        if setup is None:
            return
        try:
            result = await self._in_thread(lambda: setup(context))
            if inspect.isawaitable(result):
                await result
        except RuntimeFault:
            raise
        except BaseException as error:
            if _is_cancelled():
                raise asyncio.CancelledError from error
            raise setup_fault(error, self._source_path, "setup") from error

    async def invoke(self, request: InvokeRequest) -> AsyncGenerator[bytes, None]:
        """The lines of the invoke stream: values, then done or failed.

        Raises:
            Overloaded: before the first line, when too many calls are under way.
        """
        assert self._handler is not None, "load comes before invoke"
        if self._calls >= MAX_CALLS:
            raise Overloaded(f"{MAX_CALLS} calls are under way in this instance")
        self._calls += 1
        started_s = time.perf_counter()
        predict = self._handler.predict
        try:
            if _is_async(predict):
                lines = self._on_loop(predict(request.payload))
            else:
                lines = self._on_thread(predict, request.payload)
            async with aclosing(lines):
                async for line in lines:
                    yield line
        except HandlerFailed as fault:
            LOG.warning(
                "predict failed",
                extra=fields(request_id=request.request_id, **_without_message(fault)),
            )
            yield failed_line(fault)
        else:
            duration_ms = (time.perf_counter() - started_s) * 1000
            yield line_of(InvokeDone(duration_ms=duration_ms))
        finally:
            self._calls -= 1

    async def close(self) -> None:
        """Takes no more calls; a thread that is still in user code is left to the process's end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _on_thread(
        self, predict: Callable[[Any], Any], payload: object
    ) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        outbox = Outbox(loop)
        call = loop.run_in_executor(self._threads, self._run, predict, payload, outbox)
        try:
            while batch := await outbox.take():
                for line in batch:
                    yield line
            rest = await call
        finally:
            outbox.leave()
            call.cancel()
        if rest is not None:
            async with aclosing(self._on_loop(rest)) as lines:
                async for line in lines:
                    yield line

    def _run(self, predict: Callable[[Any], Any], payload: object, outbox: Outbox) -> object:
        """One whole call in one thread; what must go on on the event loop is given back.

        Raises:
            HandlerFailed: user code raised, or gave what JSON cannot carry.
        """
        try:
            result = predict(payload)
            if inspect.isgenerator(result):
                with closing(result):
                    for index, value in enumerate(result):
                        outbox.put(value_line(index, value, stream=True))
            elif inspect.isawaitable(result) or inspect.isasyncgen(result):
                return result
            else:
                outbox.put(value_line(0, result, stream=False))
        except (ReaderGone, HandlerFailed):
            raise
        except BaseException as error:
            raise predict_fault(error, self._source_path) from error
        finally:
            outbox.finish()
        return None

    async def _on_loop(self, result: Any) -> AsyncGenerator[bytes, None]:
        if not inspect.isasyncgen(result):
            yield value_line(0, await self._guarded(result), stream=False)
            return
        async with aclosing(result):
            index = 0
            while (value := await self._guarded(anext(result, _END))) is not _END:
                yield value_line(index, value, stream=True)
                index += 1

    async def _guarded(self, step: Awaitable[Any]) -> Any:
        """One await of user code; all that it raises becomes a fault, but our own cancellation."""
        try:
            return await step
        except BaseException as error:
            if _is_cancelled():
                raise asyncio.CancelledError from error
            raise predict_fault(error, self._source_path) from error

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


_END = object()


def _is_async(predict: Callable[[Any], Any]) -> bool:
    return inspect.iscoroutinefunction(predict) or inspect.isasyncgenfunction(predict)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _without_message(fault: HandlerFailed) -> dict[str, Any]:
    """The loggable part of a fault: a user's message may quote the payload."""
    return {"code": fault.error.code, **fault.error.details}
