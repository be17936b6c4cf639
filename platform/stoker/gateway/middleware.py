"""What happens to every request, as plain ASGI: its call is opened, its answer gets the headers
that all answers carry, its body is bounded, and what nobody foresaw is answered and logged."""

from __future__ import annotations

import re
import traceback
import uuid
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from stoker.domain import RequestId
from stoker.errors import PayloadTooLarge
from stoker.gateway.call import CLIENT_LEFT_STATUS, Call
from stoker.gateway.disconnect import ClientLeft
from stoker.gateway.problems import InternalError, answer, plane_of
from stoker.telemetry import Metrics

MAX_REQUEST_ID_CHARS = 128
_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,%d}" % MAX_REQUEST_ID_CHARS)
_QUIET_PATHS = frozenset({"/livez", "/readyz", "/metrics"})


class Entry:
    """Opens a `Call` for each request as early as can be, and closes its books."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        clock: Callable[[], float],
        log: FilteringBoundLogger,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._under_way: set[RequestId] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived_at = self._clock()
        call = Call(self._request_id(scope), arrived_at, plane_of(scope["path"]))
        scope["stoker.call"] = call
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), *call.headers(self._clock())]
                message = {**message, "headers": headers}
            await send(message)

        self._under_way.add(call.request_id)
        try:
            await self._app(scope, receive, send_with_headers)
        except ClientLeft:
            status = CLIENT_LEFT_STATUS
        except Exception as error:  # noqa: BLE001  the last place that can answer and log it
            self._unforeseen(call, error)
            if not status:
                failure = InternalError(
                    "the platform failed; its log says why under this request's id"
                )
                await answer(failure, call)(scope, receive, send_with_headers)
            status = InternalError.status
        finally:
            self._under_way.discard(call.request_id)
            self._close(call, scope, status)

    def _request_id(self, scope: Scope) -> RequestId:
        """The client's own id if it is sane and no other request under way has it."""
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _SANE_REQUEST_ID.fullmatch(value):
                given = RequestId(value.decode("ascii"))
                if given not in self._under_way:
                    return given
        return RequestId(f"req-{uuid.uuid4().hex}")

    def _close(self, call: Call, scope: Scope, status: int) -> None:
        if call.failure is not None:
            status = call.failure.status
        self._metrics.request(call.function, status or CLIENT_LEFT_STATUS)
        log = self._log.debug if scope["path"] in _QUIET_PATHS else self._log.info
        log(
            "request",
            request_id=call.request_id,
            method=scope["method"],
            function=call.function,
            revision=call.revision,
            status=status,
            error=call.failure.code if call.failure else None,
            cold=call.cold,
            first_ms=round(call.timeline.total_ms, 3) if call.timeline else None,
            total_ms=round((self._clock() - call.arrived_at) * 1000, 3),
        )

    def _unforeseen(self, call: Call, error: Exception) -> None:
        # Types and places, not messages: a message may quote what the user sent.
        self._log.error("request failed", request_id=call.request_id, causes=list(_causes(error)))


def _causes(error: BaseException) -> list[str]:
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    frames = "".join(traceback.format_tb(error.__traceback__))
    return [f"{type(error).__name__}\n{frames}", *(one for e in inner for one in _causes(e))]


class BodyBound:
    """Refuses a body of more than `max_body_bytes`, declared or in chunks."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit():
                self._check(int(value))
        received_bytes = 0

        async def receive_bounded() -> Message:
            nonlocal received_bytes
            message = await receive()
            if message["type"] == "http.request":
                received_bytes += len(message.get("body", b""))
                self._check(received_bytes)
            return message

        await self._app(scope, receive_bounded, send)

    def _check(self, body_bytes: int) -> None:
        if body_bytes > self._max_body_bytes:
            raise PayloadTooLarge(
                f"the body is larger than {self._max_body_bytes} bytes; send less, or raise"
                " STOKER_MAX_BODY_BYTES",
                details={"max_body_bytes": self._max_body_bytes},
            )
