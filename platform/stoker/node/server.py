"""The agent's HTTP surface, see `wire.py`: nothing but conversion."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from stoker.domain import Digest, InstanceId
from stoker.errors import StokerError
from stoker.node.agent import STOP_GRACE_S, Agent
from stoker.node.wire import Expected, StartInstance
from stoker_runtime.contract import STREAM_MEDIA_TYPE


def create_agent_app(agent: Agent) -> Starlette:
    """An ASGI application that speaks for `agent`."""

    async def expect(request: Request) -> Response:
        agent.expect(Expected.model_validate_json(await request.body()).checkpoint)
        return Response(status_code=202)

    async def start(request: Request) -> Response:
        agent.start(StartInstance.model_validate_json(await request.body()))
        return Response(status_code=202)

    async def stop(request: Request) -> Response:
        grace_s = float(request.query_params.get("grace_s", STOP_GRACE_S))
        agent.stop(InstanceId(request.path_params["instance_id"]), grace_s)
        return Response(status_code=202)

    async def logs(request: Request) -> Response:
        lines = agent.logs(
            InstanceId(request.path_params["instance_id"]),
            follow=request.query_params.get("follow") == "1",
        )
        return StreamingResponse(_terminated(lines), media_type="text/plain; charset=utf-8")

    async def cache(_: Request) -> Response:
        state = await agent.cache()
        return Response(state.model_dump_json(), media_type="application/json")

    async def prefetch(request: Request) -> Response:
        agent.prefetch(Digest(request.path_params["digest"]))
        return Response(status_code=202)

    async def evict(request: Request) -> Response:
        await agent.evict(Digest(request.path_params["digest"]))
        return Response(status_code=204)

    async def events(_: Request) -> Response:
        async def stream() -> AsyncIterator[str]:
            async for event in agent.events():
                yield event.model_dump_json() + "\n"

        return StreamingResponse(stream(), media_type=STREAM_MEDIA_TYPE)

    return Starlette(
        routes=[
            Route("/v1/expected", expect, methods=["POST"]),
            Route("/v1/instances", start, methods=["POST"]),
            Route("/v1/instances/{instance_id}", stop, methods=["DELETE"]),
            Route("/v1/instances/{instance_id}/logs", logs, methods=["GET"]),
            Route("/v1/cache", cache, methods=["GET"]),
            Route("/v1/cache/{digest}/prefetch", prefetch, methods=["POST"]),
            Route("/v1/cache/{digest}/evict", evict, methods=["POST"]),
            Route("/v1/events", events, methods=["GET"]),
        ],
        exception_handlers={StokerError: _problem},
    )


async def _terminated(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    async for line in lines:
        yield line + "\n"


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, StokerError)
    body = {"code": error.code, "message": error.message, "details": error.details}
    return JSONResponse(body, status_code=error.status)
