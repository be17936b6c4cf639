"""Probes and metrics. None of them wakes a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from stoker.domain import FunctionName
from stoker.gateway.disconnect import unless_left
from stoker.gateway.encoding import json_response
from stoker.scheduler.lease import Leasing
from stoker.store.catalog import Catalog
from stoker.telemetry import METRICS_MEDIA_TYPE, Metrics


class Warmth(Protocol):
    """The nodes, as far as a probe asks about them."""

    async def warm(self) -> None:
        """Returns when there is a node and every node's warm pool is full."""
        ...


@dataclass(frozen=True, slots=True)
class Health:
    catalog: Catalog
    leasing: Leasing
    metrics: Metrics
    nodes: Warmth | None = None

    async def live(self, request: Request) -> Response:  # noqa: ARG002
        return json_response({"status": "live"})

    async def ready(self, request: Request) -> Response:
        """503 while the catalog cannot be read; `?warm=1` also waits for the warm pool."""
        functions = await self.catalog.functions()
        warm = request.query_params.get("warm", "0") not in {"", "0", "false"}
        if warm and self.nodes is not None:
            await unless_left(request.receive, self.nodes.warm())
        return json_response({"status": "ready", "functions": len(functions)})

    async def expose(self, request: Request) -> Response:  # noqa: ARG002
        functions = await self.catalog.functions()
        body = self.metrics.render(
            {
                name: self.leasing.waiting(name)
                for name in (FunctionName(f.name) for f in functions)
            },
            [(instance.function, instance.state) for instance in self.leasing.instances()],
        )
        return Response(body, media_type=METRICS_MEDIA_TYPE)
