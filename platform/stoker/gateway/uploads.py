"""Routes that bring artifacts to the checkpoint store.

    POST   /v1/uploads                     files and kind -> 200 artifact | 201 upload_id, missing
    PUT    /v1/uploads/{id}/files/{path}   the file's bytes -> 204
    POST   /v1/uploads/{id}/commit         name -> lines of progress, then the artifact or an error
    DELETE /v1/uploads/{id}                -> 204

Refusals are raised; only what goes wrong after a commit's status line is a line of its stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from pydantic import Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stoker.checkpoints.files import MAX_FILES, FileSpec, Kind
from stoker.checkpoints.ingest import StageProgress
from stoker.checkpoints.registry import Registry
from stoker.checkpoints.staging import Upload
from stoker.domain import Artifact
from stoker.gateway.call import call_of
from stoker.gateway.disconnect import ClientLeft
from stoker.gateway.parsing import parse, read_json
from stoker.gateway.progress import ProgressResponse
from stoker.gateway.schema import Edge


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

        async def work(progress: StageProgress) -> dict[str, Any]:
            return {"artifact": shown(await self._registry.commit(upload_id, name, progress))}

        return ProgressResponse(work, call_of(request))

    async def discard(self, request: Request) -> Response:
        """Forget an upload."""
        await self._registry.discard(request.path_params["upload_id"])
        return Response(status_code=204)


def shown(artifact: Artifact) -> dict[str, Any]:
    """An artifact as JSON."""
    return asdict(artifact)


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect:
        raise ClientLeft from None
