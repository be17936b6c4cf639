"""The gateway as one ASGI application: its routes, and what stands before and behind them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from structlog.typing import FilteringBoundLogger

from stoker.checkpoints.registry import Registry
from stoker.checkpoints.upkeep import Upkeep
from stoker.config import Settings
from stoker.errors import BadRequest, StokerError
from stoker.gateway import bucket_events, checkpoints
from stoker.gateway.call import call_of
from stoker.gateway.deploys import Deploys
from stoker.gateway.encoding import json_response
from stoker.gateway.events import HOLD_S, PING_S
from stoker.gateway.functions import Functions
from stoker.gateway.health import Health
from stoker.gateway.instances import Instances
from stoker.gateway.invocations import Invocations
from stoker.gateway.invoke import Invoker
from stoker.gateway.middleware import BodyBound, Entry
from stoker.gateway.nodes import Nodes
from stoker.gateway.nodes import routes as node_routes
from stoker.gateway.openai.routes import OpenAI
from stoker.gateway.openapi import Operation, document, routes_of
from stoker.gateway.problems import MethodNotAllowed, RouteNotFound, answer
from stoker.gateway.resolve import Resolver
from stoker.gateway.schema import (
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    PrewarmRequest,
    ScaleRequest,
)
from stoker.gateway.timelines import Timelines
from stoker.gateway.uploads import routes as upload_routes
from stoker.manifest import Manifest
from stoker.scheduler.lease import Leasing
from stoker.store.catalog import Catalog
from stoker.telemetry import Metrics

if TYPE_CHECKING:
    # It brings boto3, which takes a third of a second.
    from stoker.checkpoints.imports import Imports

SEED_BITS = 63


def create_app(
    *,
    catalog: Catalog,
    registry: Registry,
    leasing: Leasing,
    settings: Settings,
    instances: Instances | None = None,
    timelines: Timelines | None = None,
    metrics: Metrics | None = None,
    nodes: Nodes | None = None,
    imports: Imports | None = None,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
    draw_seed: Callable[[], int] = lambda: secrets.randbits(SEED_BITS),
    log: FilteringBoundLogger | None = None,
    hold_s: float = HOLD_S,
    ping_s: float = PING_S,
) -> Starlette:
    """The gateway over its collaborators. `clock` must be the one that `leasing` reads, `now`
    gives Unix seconds. Who gives `instances` closes them."""
    timelines = Timelines() if timelines is None else timelines
    metrics = Metrics() if metrics is None else metrics
    resolver = Resolver(catalog)
    if instances is None:
        instances = Instances(lambda: {one.id for one in leasing.instances()})
    invoker = Invoker(leasing, instances, timelines, metrics, clock)
    openai = OpenAI(catalog, resolver, invoker, now, draw_seed, hold_s, ping_s)
    deploys = Deploys(catalog, registry, leasing, now, imports)
    functions = Functions(catalog, deploys, resolver, leasing, timelines, metrics)
    health = Health(catalog, leasing, metrics, nodes)
    operations = _operations(openai, Invocations(openai), functions, health)
    uploads = [
        *upload_routes(registry),
        *checkpoints.routes(
            registry, Upkeep(catalog, registry.store, registry.turns, now=now), imports
        ),
    ]
    bounded = [Middleware(BodyBound, max_body_bytes=settings.max_body_bytes)]
    if nodes is not None:
        uploads += node_routes(nodes, registry, catalog, bounded)
    if imports is not None:
        uploads += bucket_events.routes(imports, catalog, settings.events_token, bounded)
    described = document(operations, uploads, version("stoker"))

    async def openapi(request: Request) -> Response:  # noqa: ARG001
        return json_response(described)

    return Starlette(
        routes=[*routes_of(operations, bounded), Route("/openapi.json", openapi), *uploads],
        middleware=[
            Middleware(Entry, metrics=metrics, clock=clock, log=log or structlog.get_logger())
        ],
        exception_handlers={StokerError: _refuse, HTTPException: _no_route},
    )


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, StokerError)
    return answer(error, call_of(request))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    failure: StokerError
    match error.status_code:
        case 404:
            failure = RouteNotFound(f"nothing is served at {path}; /openapi.json lists what is")
        case 405:
            allowed = (error.headers or {}).get("Allow", "")
            failure = MethodNotAllowed(f"{method} is not served at {path}, but {allowed} is")
        case _:
            failure = BadRequest(error.detail)
    response = answer(failure, call_of(request))
    response.headers.update(error.headers or {})
    return response


def _operations(
    openai: OpenAI, invocations: Invocations, functions: Functions, health: Health
) -> list[Operation]:
    one = "/v1/functions/{name}"
    streams = ("application/json", "text/event-stream")
    data = [
        Operation(
            "POST", "/v1/chat/completions", openai.chat_completions,
            "Complete a conversation.", "data", ChatRequest, media_types=streams,
        ),
        Operation(
            "POST", "/v1/completions", openai.completions,
            "Complete a prompt.", "data", CompletionRequest, media_types=streams,
        ),
        Operation(
            "POST", "/v1/embeddings", openai.embeddings,
            "Embed texts.", "data", EmbeddingsRequest,
        ),
        Operation("GET", "/v1/models", openai.models, "List models, also cold ones.", "data"),
        Operation("GET", "/v1/models/{id}", openai.model, "Describe a model.", "data"),
        Operation(
            "POST", one + "/invocations", invocations.invoke,
            "Invoke a function with any JSON.", "data", any_body=True, media_types=streams,
        ),
        Operation(
            "POST", "/function/{name}", invocations.invoke,
            "Invoke a function, in short.", "data", any_body=True, media_types=streams,
        ),
    ]  # fmt: skip
    control = [
        Operation("GET", "/v1/functions", functions.list, "List functions.", "control"),
        Operation("PUT", one, functions.deploy, "Deploy a function.", "control", Manifest),
        Operation("GET", one, functions.describe, "Describe a function.", "control"),
        Operation("DELETE", one, functions.delete, "Delete a function.", "control", success=204),
        Operation(
            "GET", one + "/revisions", functions.revisions,
            "List a function's revisions, oldest first.", "control",
        ),
        Operation(
            "POST", one + "/scale", functions.scale,
            "Run so many instances.", "control", ScaleRequest,
        ),
        Operation(
            "POST", one + "/prewarm", functions.prewarm,
            "Run at least so many instances.", "control", PrewarmRequest,
        ),
        Operation(
            "GET", one + "/instances", functions.instances, "List its instances.", "control"
        ),
        Operation(
            "GET", one + "/logs", functions.logs, "Read its instances' logs.", "control",
            query=("follow",), media_types=("text/plain",),
        ),
        Operation(
            "GET", "/v1/requests/{id}/startup", functions.startup,
            "Where a request's time went until its first token.", "control",
        ),
        Operation("GET", "/livez", health.live, "Is the process up?", "health"),
        Operation(
            "GET", "/readyz", health.ready, "Can it serve?", "health", query=("warm",)
        ),
        Operation(
            "GET", "/metrics", health.expose, "Metrics for Prometheus.", "health",
            media_types=("text/plain",),
        ),
    ]  # fmt: skip
    return [*data, *control]
