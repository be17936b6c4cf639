"""Probes and metrics. None of them wakes a model."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from stoker.domain import FunctionName, Tier
from stoker.gateway.disconnect import unless_left
from stoker.gateway.encoding import json_response
from stoker.gateway.nodes import Nodes, caches
from stoker.node.wire import CacheState
from stoker.scheduler.lease import Leasing
from stoker.store.catalog import Catalog
from stoker.telemetry import METRICS_MEDIA_TYPE, Metrics, Tally


@dataclass(frozen=True, slots=True)
class Health:
    catalog: Catalog
    leasing: Leasing
    metrics: Metrics
    nodes: Nodes | None = None

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
        found = await caches(self.nodes) if self.nodes is not None else {}
        body = self.metrics.render(
            {
                name: self.leasing.waiting(name)
                for name in (FunctionName(f.name) for f in functions)
            },
            [(instance.function, instance.state) for instance in self.leasing.instances()],
            {node: _tally(state) for node, state in found.items()},
        )
        return Response(body, media_type=METRICS_MEDIA_TYPE)


def _tally(state: CacheState) -> Tally:
    counters = state.counters
    return Tally(
        tier_bytes={
            Tier.SSD.value: sum(copy.ssd_bytes for copy in state.copies),
            Tier.DRAM.value: sum(copy.dram_bytes for copy in state.copies),
        },
        hits={tier.value: count for tier, count in counters.hits.items()},
        misses={tier.value: count for tier, count in counters.misses.items()},
        fetched_bytes=counters.fetched_bytes,
        evictions={(one.tier.value, one.reason): one.count for one in counters.evictions},
    )
