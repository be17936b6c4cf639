"""Routes of what is in the checkpoint store.

    GET    /v1/checkpoints                     -> checkpoints, oldest first
    GET    /v1/checkpoints/{reference}         its files, names, and the revisions that need it
    POST   /v1/checkpoints/{reference}/verify  -> lines of progress, then the artifact or an error
    DELETE /v1/checkpoints/{reference}         -> what is gone; 409 while a revision needs it
    POST   /v1/checkpoint-collections          dry_run -> what nobody needs any more, and is gone

A reference is a name, name@digest, or a digest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stoker.checkpoints.ingest import StageProgress
from stoker.checkpoints.registry import Registry
from stoker.checkpoints.upkeep import Upkeep
from stoker.errors import CheckpointNotFound
from stoker.gateway.call import call_of
from stoker.gateway.parsing import parse, read_json
from stoker.gateway.progress import ProgressResponse
from stoker.gateway.schema import Edge
from stoker.gateway.uploads import shown

if TYPE_CHECKING:
    # It brings boto3, which takes a third of a second.
    from stoker.checkpoints.imports import Imports


class CollectCheckpoints(Edge):
    """POST /v1/checkpoint-collections. With `dry_run` nothing is removed."""

    dry_run: bool = False


def routes(registry: Registry, upkeep: Upkeep, imports: Imports | None) -> list[Route]:
    """Reading a checkpoint again takes as long as its disk or network does."""
    handlers = CheckpointHandlers(registry, upkeep, imports)
    checkpoint = "/v1/checkpoints/{reference}"
    return [
        Route("/v1/checkpoints", handlers.list, methods=["GET"], name="checkpoints"),
        Route(checkpoint, handlers.describe, methods=["GET"], name="checkpoint"),
        Route(checkpoint, handlers.delete, methods=["DELETE"], name="checkpoint"),
        Route(
            checkpoint + "/verify",
            handlers.verify,
            methods=["POST"],
            name="checkpoint_verification",
        ),
        Route(
            "/v1/checkpoint-collections",
            handlers.collect,
            methods=["POST"],
            name="checkpoint_collection",
        ),
    ]


class CheckpointHandlers:
    """The routes' endpoints; what they say of themselves is in the OpenAPI document."""

    def __init__(self, registry: Registry, upkeep: Upkeep, imports: Imports | None) -> None:
        self._registry = registry
        self._upkeep = upkeep
        self._imports = imports

    async def list(self, _request: Request) -> Response:
        """List checkpoints, oldest first."""
        found = await self._registry.checkpoints()
        return JSONResponse({"checkpoints": [shown(artifact) for artifact in found]})

    async def describe(self, request: Request) -> Response:
        """Describe a checkpoint, by name, name@digest or digest."""
        reference = request.path_params["reference"]
        try:
            found = await self._upkeep.describe(reference)
        except CheckpointNotFound:
            if self._imports is not None and self._imports.knows(reference):
                self._imports.require(reference)  # says what it lacks
            raise
        files = [{"path": file.name, "size_bytes": file.size_bytes} for file in found.files]
        return JSONResponse(
            {
                **shown(found.artifact),
                "names": found.names,
                "revisions": found.revisions,
                "files": files,
            }
        )

    async def delete(self, request: Request) -> Response:
        """Delete a checkpoint that no revision needs."""
        return JSONResponse(
            {"artifact": shown(await self._upkeep.delete(request.path_params["reference"]))}
        )

    async def verify(self, request: Request) -> Response:
        """Read all of a checkpoint again and compare it; streams lines of JSON."""
        artifact = await self._registry.resolve(request.path_params["reference"])

        async def work(progress: StageProgress) -> dict[str, Any]:
            def report(done_bytes: int, total_bytes: int) -> None:
                progress("verifying", done_bytes, total_bytes)

            return {"artifact": shown(await self._upkeep.verify(artifact.digest, report))}

        return ProgressResponse(work, call_of(request))

    async def collect(self, request: Request) -> Response:
        """Delete what no revision needs and no name stands for any more."""
        asked = parse(CollectCheckpoints, await read_json(request) or {})
        removed = await self._upkeep.collect(keep=asked.dry_run)
        return JSONResponse({"removed": [shown(artifact) for artifact in removed]})
