"""Routes of the checkpoint store.

    POST   /v1/uploads                     files and kind -> 200 artifact | 201 upload_id, missing
    PUT    /v1/uploads/{id}/files/{path}   the file's bytes -> 204
    POST   /v1/uploads/{id}/commit         name -> lines of progress, then the artifact or an error
    DELETE /v1/uploads/{id}                -> 204
    GET    /v1/checkpoints                 -> checkpoints
    GET    /v1/checkpoints/{name}          by name, name@digest, or digest

Refusals are raised; only what goes wrong after a commit's status line is a line of its stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from pydantic import Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from stoker.checkpoints.files import MAX_FILES, FileSpec, Kind
from stoker.checkpoints.registry import Registry
from stoker.checkpoints.staging import Upload
from stoker.domain import Artifact
from stoker.errors import StokerError
from stoker.gateway.call import Call, call_of
from stoker.gateway.disconnect import ClientLeft, unless_left
from stoker.gateway.parsing import parse, read_json
from stoker.gateway.problems import openai_error
from stoker.gateway.schema import Edge
from stoker_runtime.contract import STREAM_MEDIA_TYPE


class OfferedFile(Edge):
    path: str = Field(min_length=1, max_length=1024)
    size_bytes: int = Field(ge=0)
    blake3: str  # of the file's bytes, 64 hexadecimal digits


class OpenUpload(Edge):
    """POST /v1/uploads. With `name`, files that are known already get this name at once."""

    files: list[OfferedFile] = Field(min_length=1, max_length=MAX_FILES)
    kind: Kind = Kind.CHECKPOINT
    name: str | None = None


class CommitUpload(Edge):
    """POST /v1/uploads/{id}/commit."""

    name: str | None = None


def routes(registry: Registry) -> list[Route]:
    """To be served without a bound on the body: checkpoints are large, and each file is bounded
    by what was offered."""
    handlers = UploadHandlers(registry)
    upload = "/v1/uploads/{upload_id}"
    return [
        Route("/v1/uploads", handlers.begin, methods=["POST"]),
        Route(upload + "/files/{path:path}", handlers.write, methods=["PUT"]),
        Route(upload + "/commit", handlers.commit, methods=["POST"]),
        Route(upload, handlers.discard, methods=["DELETE"]),
        Route("/v1/checkpoints", handlers.checkpoints, methods=["GET"]),
        Route("/v1/checkpoints/{reference}", handlers.checkpoint, methods=["GET"]),
    ]


class UploadHandlers:
    """The routes' endpoints; what they say of themselves is in the OpenAPI document."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def begin(self, request: Request) -> Response:
        """Offer files; those that are missing are to be sent."""
        offer = parse(OpenUpload, await read_json(request))
        files = (FileSpec(file.path, file.size_bytes, file.blake3) for file in offer.files)
        found = await self._registry.begin(files, offer.kind, offer.name)
        if isinstance(found, Upload):
            body = {"upload_id": found.id, "missing": found.missing}
            return JSONResponse(body, status_code=201)
        return JSONResponse({"artifact": shown(found)})

    async def write(self, request: Request) -> Response:
        """Send one of the offered files."""
        upload_id, path = request.path_params["upload_id"], request.path_params["path"]
        await self._registry.write(upload_id, path, _body(request))
        return Response(status_code=204)

    async def commit(self, request: Request) -> Response:
        """Make an artifact of what was sent; streams lines of JSON."""
        upload_id = request.path_params["upload_id"]
        name = parse(CommitUpload, await read_json(request) or {}).name
        await self._registry.committable(upload_id, name)
        return CommitResponse(self._registry, upload_id, name, call_of(request))

    async def discard(self, request: Request) -> Response:
        """Forget an upload."""
        await self._registry.discard(request.path_params["upload_id"])
        return Response(status_code=204)

    async def checkpoints(self, _request: Request) -> Response:
        """List checkpoints, oldest first."""
        found = await self._registry.checkpoints()
        return JSONResponse({"checkpoints": [shown(artifact) for artifact in found]})

    async def checkpoint(self, request: Request) -> Response:
        """Describe a checkpoint, by name, name@digest or digest."""
        return JSONResponse(shown(await self._registry.resolve(request.path_params["reference"])))


def shown(artifact: Artifact) -> dict[str, Any]:
    """An artifact as JSON."""
    return asdict(artifact)


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect:
        raise ClientLeft from None


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


class CommitResponse(Response):
    """A commit, and its progress while it goes on; a client that leaves cancels it."""

    media_type = STREAM_MEDIA_TYPE

    def __init__(self, registry: Registry, upload_id: str, name: str | None, call: Call) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._registry = registry
        self._upload_id = upload_id
        self._name = name
        self._call = call

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await unless_left(receive, self._stream(send))

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        latest = _Latest()
        async with asyncio.TaskGroup() as tasks:
            outcome = tasks.create_task(self._commit(latest))
            async for report in latest.reports():
                await _send_line(send, asdict(report))
        await _send_line(send, outcome.result())
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _commit(self, latest: _Latest) -> dict[str, Any]:
        try:
            artifact = await self._registry.commit(self._upload_id, self._name, latest.put)
        except StokerError as error:
            self._call.failure = error
            return openai_error(error, self._call.request_id)
        finally:
            latest.end()
        return {"artifact": shown(artifact)}


async def _send_line(send: Send, value: dict[str, Any]) -> None:
    line = orjson.dumps(value) + b"\n"
    await send({"type": "http.response.body", "body": line, "more_body": True})
