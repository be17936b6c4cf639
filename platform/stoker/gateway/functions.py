"""The control plane's routes: deploy, list, scale and watch functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from stoker.domain import Function, FunctionName, Revision
from stoker.errors import BadRequest, InvalidManifest
from stoker.gateway.call import call_of
from stoker.gateway.deploys import Deploys
from stoker.gateway.disconnect import unless_left
from stoker.gateway.encoding import json_response
from stoker.gateway.lines import TextStream
from stoker.gateway.parsing import parse, read_json
from stoker.gateway.resolve import ANY, Resolver
from stoker.gateway.schema import PrewarmRequest, ScaleRequest
from stoker.gateway.timelines import Timelines, startup_of
from stoker.gateway.views import function_details, function_row, instance_view, revision_view
from stoker.manifest import parse_manifest, parse_yaml
from stoker.scheduler.lease import Leasing
from stoker.store.catalog import Catalog
from stoker.telemetry import Metrics


@dataclass(frozen=True, slots=True)
class Functions:
    """Everything under /v1/functions but invocations."""

    catalog: Catalog
    deploys: Deploys
    resolver: Resolver
    leasing: Leasing
    timelines: Timelines
    metrics: Metrics

    # --- deploy -----------------------------------------------------------------------------

    async def deploy(self, request: Request) -> Response:
        """201 with the new revision, 200 with the one there was when the content is the same."""
        name = request.path_params["name"]
        manifest = parse_manifest(await _mapping(request))
        if manifest.name != name:
            raise InvalidManifest(
                f"the manifest's name is {manifest.name!r}, but it was put to {name!r}",
                param="name",
            )
        revision, created = await self.deploys.deploy(await self.deploys.draft_of(manifest))
        call = call_of(request)
        call.function, call.revision = revision.function, revision.id
        body = {**revision_view(revision), "created": created}
        return json_response(body, status=201 if created else 200)

    async def delete(self, request: Request) -> Response:
        """204; its instances stop and what waits for it is rejected."""
        function = await self._function(request)
        await self.catalog.delete(function.name)
        await self.leasing.deleted(function.name)
        self.metrics.forget(function.name)
        self.timelines.forget(function.name)
        call_of(request).function = None
        return Response(status_code=204)

    # --- look -------------------------------------------------------------------------------

    async def list(self, request: Request) -> Response:  # noqa: ARG002
        rows = [
            self._row(function, await self.resolver.latest(function))
            for function in await self.catalog.functions()
        ]
        return json_response({"functions": rows})

    async def describe(self, request: Request) -> Response:
        function = await self._function(request)
        latest = await self.resolver.latest(function)
        last = self.timelines.last_cold(function.name)
        return json_response(function_details(self._row(function, latest), function, latest, last))

    async def revisions(self, request: Request) -> Response:
        function = await self._function(request)
        revisions = await self.catalog.revisions(function.name)
        return json_response({"revisions": [revision_view(one) for one in revisions]})

    async def instances(self, request: Request) -> Response:
        function = await self._function(request)
        found = self.leasing.instances(function.name)
        return json_response({"instances": [instance_view(one) for one in found]})

    async def logs(self, request: Request) -> Response:
        function = await self._function(request)
        follow = request.query_params.get("follow", "0") not in {"", "0", "false"}
        lines = self.leasing.logs(function.name, follow=follow)
        return TextStream(lines)

    async def startup(self, request: Request) -> Response:
        """GET /v1/requests/{id}/startup."""
        return json_response(startup_of(self.timelines.get(request.path_params["id"])))

    # --- scale ------------------------------------------------------------------------------

    async def scale(self, request: Request) -> Response:
        """Answers when that many are ready, or the dispatcher's bound has passed."""
        body = parse(ScaleRequest, await read_json(request))
        revision = await self._revision(request)
        _within_max(revision, body.replicas)
        return await self._scaled(request, revision, body.replicas)

    async def prewarm(self, request: Request) -> Response:
        """Like scale, but never stops an instance."""
        given = await read_json(request)
        body = parse(PrewarmRequest, {} if given is None else given)
        revision = await self._revision(request)
        _within_max(revision, body.replicas)
        running = sum(
            instance.revision == revision.id and instance.state in {"ready", "starting"}
            for instance in self.leasing.instances(revision.function)
        )
        return await self._scaled(request, revision, max(body.replicas, running))

    async def _scaled(self, request: Request, revision: Revision, replicas: int) -> Response:
        status = await unless_left(request.receive, self.leasing.scale(revision, replicas))
        return json_response(status)

    async def _revision(self, request: Request) -> Revision:
        name = request.path_params["name"]
        return await self.resolver.resolve(call_of(request), name, ANY, param="name")

    async def _function(self, request: Request) -> Function:
        await self._revision(request)
        return await self.catalog.function(request.path_params["name"])

    def _row(self, function: Function, latest: Revision) -> dict[str, Any]:
        name = FunctionName(function.name)
        return function_row(
            function, latest, self.leasing.instances(name), self.leasing.waiting(name)
        )


def _within_max(revision: Revision, replicas: int) -> None:
    if replicas > revision.scale.max:
        raise BadRequest(
            f"{replicas} replicas are more than the function's scale.max of {revision.scale.max};"
            " raise it in function.yaml and deploy",
            param="replicas",
            details={"max": revision.scale.max},
        )


async def _mapping(request: Request) -> Any:
    """The manifest as JSON, or as YAML where the content type says so."""
    if "yaml" not in request.headers.get("content-type", ""):
        return await read_json(request)
    return parse_yaml(await request.body(), "the body")
