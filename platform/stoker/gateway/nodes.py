"""Routes of the nodes, and of what each has of checkpoints.

    GET    /v1/nodes
    GET    /v1/nodes/{node}/cache                       per copy: bytes a tier, and what keeps it
    POST   /v1/nodes/{node}/cache/{reference}/prefetch  -> 202; brought beside other work
    POST   /v1/nodes/{node}/cache/{reference}/evict     -> 204; 409 while an instance needs it

A reference is a checkpoint's name, name@digest, or a digest.
"""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stoker.checkpoints.registry import Registry
from stoker.domain import NodeId
from stoker.errors import NotFound
from stoker.node.client import NodeClient
from stoker.node.wire import NodeState
from stoker.store.catalog import Catalog


class NodeNotFound(NotFound):
    code = "node_not_found"


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


def routes(nodes: Nodes, registry: Registry, catalog: Catalog) -> list[Route]:
    handlers = NodeHandlers(nodes, registry, catalog)
    cache = "/v1/nodes/{node}/cache"
    copy = cache + "/{reference}"
    return [
        Route("/v1/nodes", handlers.list, methods=["GET"], name="nodes"),
        Route(cache, handlers.cache, methods=["GET"], name="node_cache"),
        Route(copy + "/prefetch", handlers.prefetch, methods=["POST"], name="prefetch"),
        Route(copy + "/evict", handlers.evict, methods=["POST"], name="evict"),
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

    def _client(self, request: Request) -> NodeClient:
        name = request.path_params["node"]
        known = [state.node_id for state in self._nodes.states()]
        if name not in known:
            raise NodeNotFound(
                f"no node {name!r}; there are {', '.join(known) or 'none'}", param="node"
            )
        return self._nodes.client(NodeId(name))
