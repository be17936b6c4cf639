"""The contract's routes as a Starlette application."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from stoker_runtime.contract import (
    EmbedRequest,
    ErrorFrame,
    FailedEvent,
    GenerateRequest,
    InvokeFailed,
    InvokeRequest,
    LoadRequest,
    Message,
    PrepareRequest,
)
from stoker_runtime.engines.embedding import EmbeddingEngine
from stoker_runtime.engines.handler import HandlerEngine
from stoker_runtime.errors import (
    EngineFailed,
    InvalidRequest,
    RequestTooLarge,
    RuntimeFault,
    UnknownRoute,
)
from stoker_runtime.generation import GenerationLoop
from stoker_runtime.instance import Instance
from stoker_runtime.streaming import Lines, LineStream, line_of

MAX_BODY_BYTES = 32 * 1024 * 1024

MessageT = TypeVar("MessageT", bound=BaseModel)


def build_app(instance: Instance) -> Starlette:
    """The application that answers for one worker."""

    async def prepare(request: Request) -> Response:
        await instance.prepare(await _read(request, PrepareRequest))
        return Response(status_code=204)

    async def load(request: Request) -> LineStream:
        events = instance.load(await _read(request, LoadRequest))
        return LineStream(_lines(events), lambda fault: FailedEvent(error=fault.error))

    async def invoke(request: Request) -> LineStream:
        message = await _read(request, InvokeRequest)
        engine = instance.serving(HandlerEngine)
        lines = _counted(instance, engine.invoke(message))
        return LineStream(lines, lambda fault: InvokeFailed(error=fault.error))

    async def generate(request: Request) -> LineStream:
        message = await _read(request, GenerateRequest)
        frames = instance.serving(GenerationLoop).stream(message)
        return LineStream(
            _counted(instance, _lines(frames)),
            lambda fault: ErrorFrame(epoch=message.epoch, error=fault.error),
        )

    async def embed(request: Request) -> LineStream:
        message = await _read(request, EmbedRequest)
        engine = instance.serving(EmbeddingEngine)
        return LineStream(
            _counted(instance, _vectors(engine, message)),
            lambda fault: fault.error,
            media_type="application/json",
        )

    async def status(_request: Request) -> Response:
        return _answer(instance.status())

    return Starlette(
        routes=[
            Route("/prepare", prepare, methods=["POST"]),
            Route("/load", load, methods=["POST"]),
            Route("/generate", generate, methods=["POST"]),
            Route("/embed", embed, methods=["POST"]),
            Route("/invoke", invoke, methods=["POST"]),
            Route("/status", status, methods=["GET"]),
        ],
        exception_handlers={
            RuntimeFault: _refuse,
            HTTPException: _refuse_route,
            ClientDisconnect: _left,
            Exception: _refuse_broken,
        },
    )


async def _read(request: Request, kind: type[MessageT]) -> MessageT:
    """The request's body as a message.

    Raises:
        RequestTooLarge: the body exceeds `MAX_BODY_BYTES`.
        InvalidRequest: it is no such message.
    """
    body = bytearray()
    announced = int(request.headers.get("content-length", 0))
    async for chunk in request.stream():
        body += chunk
        if max(announced, len(body)) > MAX_BODY_BYTES:
            raise RequestTooLarge(
                f"the body exceeds {MAX_BODY_BYTES} bytes; send large inputs by reference"
            )
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        raise _invalid(error) from error


def _invalid(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    match first["type"], first["loc"]:
        case "extra_forbidden", _:
            code, message = "unknown_key", f"{where!r} is not a key of this message"
        case "json_invalid", _:
            code, message = "invalid_json", f"the body is not JSON: {first['msg']}"
        case _, ("sampling", *_):
            code, message = "invalid_sampling", f"{where}: {first['msg']}"
        case _:
            code, message = "invalid_request", f"{where}: {first['msg']}" if where else first["msg"]
    return InvalidRequest(message, code=code, param=where or None)


async def _lines(messages: AsyncGenerator[Message, None]) -> Lines:
    async with aclosing(messages):
        async for message in messages:
            yield line_of(message)


async def _vectors(engine: EmbeddingEngine, request: EmbedRequest) -> Lines:
    """An `EmbedResponse` in one piece; float32 is written with the digits that it has."""
    embedded = await engine.embed(request)
    response = {"embeddings": embedded.vectors, "prompt_tokens": embedded.prompt_tokens}
    yield orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)


async def _counted(instance: Instance, lines: Lines) -> Lines:
    with instance.under_way():
        async with aclosing(lines):
            async for line in lines:
                yield line


def _answer(message: Message, status: int = 200) -> Response:
    return Response(message.model_dump_json(), status, media_type="application/json")


async def _refuse(_request: Request, fault: Exception) -> Response:
    assert isinstance(fault, RuntimeFault)
    return _answer(fault.error, fault.status)


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    fault = UnknownRoute(f"{request.method} {request.url.path} is not served on this socket")
    return _answer(fault.error, error.status_code)


async def _left(_request: Request, _error: Exception) -> Response:
    """For a client that left while it sent its request; nobody reads this."""
    return Response(status_code=400)


async def _refuse_broken(_request: Request, _error: Exception) -> Response:
    fault = EngineFailed("the worker broke; its log has the traceback")
    return _answer(fault.error, fault.status)
