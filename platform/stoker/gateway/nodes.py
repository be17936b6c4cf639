"""Routes of the nodes, and of what each has of checkpoints.

    GET    /v1/nodes
    GET    /v1/nodes/{node}/cache                       per copy: bytes a tier, and what keeps it
    POST   /v1/nodes/{node}/cache/{reference}/prefetch  -> 202; brought beside other work
    POST   /v1/nodes/{node}/cache/{reference}/evict     -> 204; 409 while an instance needs it
    POST   /v1/nodes/{node}/cache/{reference}/verify    -> lines of progress, then the outcome
    PUT    /v1/nodes/{node}/cache/{reference}/pin       tier -> 204; brought and never given up
    DELETE /v1/nodes/{node}/cache/{reference}/pin       -> 204

A reference is a checkpoint's name, name@digest, or a digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import structlog
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stoker.checkpoints.ingest import StageProgress
from stoker.checkpoints.registry import Registry
from stoker.domain import NodeId, Tier
from stoker.errors import NoCapacity, NotFound
from stoker.gateway.call import call_of
from stoker.gateway.parsing import parse, read_json
from stoker.gateway.progress import ProgressResponse
from stoker.gateway.schema import Edge
from stoker.gateway.uploads import shown
from stoker.manifest import KeptTier
from stoker.node.client import NodeClient
from stoker.node.wire import CacheState, NodeState
from stoker.store.catalog import Catalog

log = structlog.get_logger(__name__)


class NodeNotFound(NotFound):
    code = "node_not_found"


class PinCopy(Edge):
    """PUT /v1/nodes/{node}/cache/{reference}/pin. In `dram` it is also locked, as far as the node
    has a budget for that."""

    tier: KeptTier = "ssd"


class Nodes(Protocol):
    """The registered nodes."""

    async def warm(self) -> None:
        """Returns when there is a node and every node's warm pool is full."""
        ...

    def states(self) -> tuple[NodeState, ...]:
        """What each said last."""
        ...

    def client(self, node: NodeId) -> NodeClient:
        """Raises NoCapacity when the node has gone."""
        ...


def routes(
    nodes: Nodes, registry: Registry, catalog: Catalog, bounded: Sequence[Middleware]
) -> list[Route]:
    """`bounded` stands before those that read a body."""
    handlers = NodeHandlers(nodes, registry, catalog)
    cache = "/v1/nodes/{node}/cache"
    copy = cache + "/{reference}"
    return [
        Route("/v1/nodes", handlers.list, methods=["GET"], name="nodes"),
        Route(cache, handlers.cache, methods=["GET"], name="node_cache"),
        Route(copy + "/prefetch", handlers.prefetch, methods=["POST"], name="prefetch"),
        Route(copy + "/evict", handlers.evict, methods=["POST"], name="evict"),
        Route(copy + "/verify", handlers.verify, methods=["POST"], name="copy_verification"),
        Route(copy + "/pin", handlers.pin, methods=["PUT"], name="pin", middleware=bounded),
        Route(copy + "/pin", handlers.unpin, methods=["DELETE"], name="pin"),
    ]


class NodeHandlers:
    """The routes' endpoints; what they say of themselves is in the OpenAPI document."""

    def __init__(self, nodes: Nodes, registry: Registry, catalog: Catalog) -> None:
        self._nodes = nodes
        self._registry = registry
        self._catalog = catalog

    async def list(self, _request: Request) -> Response:
        """List the nodes."""
        found = [state.model_dump(mode="json", exclude={"kind"}) for state in self._nodes.states()]
        return JSONResponse({"nodes": found})

    async def cache(self, request: Request) -> Response:
        """Show what a node has of checkpoints and sources."""
        state = await self._client(request).cache()
        names = {artifact.digest: artifact.name for artifact in await self._catalog.artifacts()}
        body = state.model_dump(mode="json")
        for copy in body["copies"]:
            copy["name"] = names.get(copy["digest"])
        return JSONResponse(body)

    async def prefetch(self, request: Request) -> Response:
        """Bring a checkpoint to a node before it is needed."""
        artifact = await self._registry.resolve(request.path_params["reference"])
        await self._client(request).prefetch(artifact.digest)
        return Response(status_code=202)

    async def evict(self, request: Request) -> Response:
        """Give up a node's copy of a checkpoint."""
        artifact = await self._registry.resolve(request.path_params["reference"])
        await self._client(request).evict(artifact.digest)
        return Response(status_code=204)

    async def verify(self, request: Request) -> Response:
        """Read all of a node's copy again and compare it; streams lines of JSON."""
        artifact = await self._registry.resolve(request.path_params["reference"])
        client = self._client(request)

        async def work(progress: StageProgress) -> dict[str, Any]:
            def report(done_bytes: int, total_bytes: int) -> None:
                progress("verifying", done_bytes, total_bytes)

            await client.verify(artifact.digest, report)
            return {"artifact": shown(artifact)}

        return ProgressResponse(work, call_of(request))

    async def pin(self, request: Request) -> Response:
        """Bring a checkpoint to a node, and never give it up there."""
        asked = parse(PinCopy, await read_json(request) or {})
        artifact = await self._registry.resolve(request.path_params["reference"])
        await self._catalog.pin(self._node(request), artifact.digest, Tier(asked.tier))
        return Response(status_code=204)

    async def unpin(self, request: Request) -> Response:
        """Let a pinned copy be given up again, when something is worth more."""
        artifact = await self._registry.resolve(request.path_params["reference"])
        await self._catalog.unpin(NodeId(request.path_params["node"]), artifact.digest)
        return Response(status_code=204)

    def _client(self, request: Request) -> NodeClient:
        return self._nodes.client(self._node(request))

    def _node(self, request: Request) -> NodeId:
        name = request.path_params["node"]
        known = [state.node_id for state in self._nodes.states()]
        if name not in known:
            raise NodeNotFound(
                f"no node {name!r}; there are {', '.join(known) or 'none'}", param="node"
            )
        return NodeId(name)


async def caches(nodes: Nodes) -> dict[NodeId, CacheState]:
    """What each node has of checkpoints, of those that answer."""

    async def of(node: NodeId) -> CacheState | None:
        try:
            return await nodes.client(node).cache()
        except NoCapacity as error:
            log.info("node not asked", node=node, error=error.message)
            return None

    names = [state.node_id for state in nodes.states()]
    found = await asyncio.gather(*map(of, names))
    return {node: state for node, state in zip(names, found, strict=True) if state is not None}
