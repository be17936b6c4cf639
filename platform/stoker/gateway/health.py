"""Probes and metrics. None of them wakes a model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from stoker.domain import FunctionName
from stoker.gateway.encoding import json_response
from stoker.scheduler.lease import Leasing
from stoker.store.catalog import Catalog
from stoker.telemetry import METRICS_MEDIA_TYPE, Metrics

Readiness = Callable[[bool], Awaitable[dict[str, Any]]]
"""Facts on the platform; given True it first waits until the warm pool is full."""


@dataclass(frozen=True, slots=True)
class Health:
    catalog: Catalog
    leasing: Leasing
    metrics: Metrics
    readiness: Readiness | None = None

    async def live(self, request: Request) -> Response:  # noqa: ARG002
        return json_response({"status": "live"})

    async def ready(self, request: Request) -> Response:
        """503 while the catalog cannot be read; `?warm=1` also waits for the warm pool."""
        functions = await self.catalog.functions()
        warm = request.query_params.get("warm", "0") not in {"", "0", "false"}
        facts = await self.readiness(warm) if self.readiness else {}
        return json_response({"status": "ready", "functions": len(functions), **facts})

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
