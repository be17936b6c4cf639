"""Any function, any JSON: a handler's values as they are, a model's answer in OpenAI's words."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stoker.domain import EngineName, RequestId, Revision
from stoker.errors import BadRequest
from stoker.gateway.call import Call, call_of
from stoker.gateway.disconnect import unless_left
from stoker.gateway.encoding import json_response, to_json
from stoker.gateway.events import DONE, MEDIA_TYPE, Emit, EventStream
from stoker.gateway.exchange import Invoke
from stoker.gateway.invoke import Answer
from stoker.gateway.openai.routes import OpenAI
from stoker.gateway.parsing import parse, read_json, startup_timeout_s
from stoker.gateway.resolve import ANY
from stoker.gateway.schema import ChatRequest, CompletionRequest, EmbeddingsRequest
from stoker_runtime.contract import InvokeEvent, ValueEvent


@dataclass(frozen=True, slots=True)
class Invocations:
    """POST /v1/functions/{name}/invocations, and its short form /function/{name}."""

    openai: OpenAI

    async def invoke(self, request: Request) -> Response:
        name = request.path_params["name"]
        payload = await read_json(request)
        revision = await self.openai.resolver.resolve(call_of(request), name, ANY, param="name")
        if revision.runtime.engine is EngineName.HANDLER:
            return self._handler(request, revision, payload)
        return await self._model(request, revision, payload)

    async def _model(self, request: Request, revision: Revision, payload: Any) -> Response:
        match payload:
            case {"messages": _}:
                body = parse(ChatRequest, {**payload, "model": revision.function})
                return await self.openai.chat(request, revision, body)
            case {"prompt": _}:
                # Without a bound the answer ends where the model ends it.
                named = {"max_tokens": None, **payload, "model": revision.function}
                completion = parse(CompletionRequest, named)
                return await self.openai.complete(request, revision, completion)
            case {"input": _}:
                inputs = parse(EmbeddingsRequest, {**payload, "model": revision.function})
                return await self.openai.embed(request, revision, inputs)
        raise BadRequest(
            f"function {revision.function!r} serves a model: send a JSON object with"
            ' "messages", "prompt" or (for embeddings) "input"'
        )

    def _handler(self, request: Request, revision: Revision, payload: Any) -> Response:
        answer = HandlerAnswer(
            self.openai, call_of(request), revision, payload, startup_timeout_s(request)
        )
        if MEDIA_TYPE in request.headers.get("accept", ""):
            hold_s, ping_s = self.openai.hold_s, self.openai.ping_s
            return EventStream(answer.call, answer.stream, hold_s=hold_s, ping_s=ping_s)
        return answer


class HandlerAnswer(Response):
    """What a user's `predict()` returned, as one JSON body, or what it yielded, as events.

    Which of both is known only with the first value, so the status line waits for that.
    """

    def __init__(
        self, openai: OpenAI, call: Call, revision: Revision, payload: Any, timeout_s: float | None
    ) -> None:
        self.status_code = 200
        self.background = None
        self.call = call
        self._openai = openai
        self._revision = revision
        self._exchange = Invoke(RequestId(call.request_id), payload)
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_left(receive, self._answer(scope, receive, send))

    async def stream(self, emit: Emit) -> None:
        """Emits every value as an event, and `[DONE]`."""
        async with self._opened() as answer:
            await _emit_values(answer, [], emit)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._opened() as answer:
            first = await anext(answer)
            match first[0]:
                case ValueEvent(stream=False, value=value):
                    # Read to the end: an instance that breaks now has not answered.
                    async for _ in answer:
                        pass
                case _:
                    events = EventStream(
                        self.call,
                        lambda emit: _emit_values(answer, first, emit),
                        ping_s=self._openai.ping_s,
                    )
                    return await events.relay(send)
        return await json_response(value)(scope, receive, send)

    def _opened(self) -> AbstractAsyncContextManager[Answer[InvokeEvent]]:
        return self._openai.invoker.answer(
            self.call, self._revision, self._exchange, self._timeout_s
        )


async def _emit_values(answer: Answer[InvokeEvent], first: list[InvokeEvent], emit: Emit) -> None:
    await _emit_batch(first, emit)
    async for batch in answer:
        await _emit_batch(batch, emit)
    await emit(DONE)


async def _emit_batch(batch: list[InvokeEvent], emit: Emit) -> None:
    events = [b"data: %b\n\n" % to_json(one.value) for one in batch if isinstance(one, ValueEvent)]
    if events:
        await emit(b"".join(events))
