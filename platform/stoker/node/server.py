"""The agent's HTTP surface, see `wire.py`: nothing but conversion."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from stoker.domain import Digest, InstanceId
from stoker.errors import StokerError
from stoker.node.agent import STOP_GRACE_S, Agent
from stoker.node.tiers import Tiers
from stoker.node.wire import Expected, KeepList, Refused, StartInstance, Verified, Verifying
from stoker_runtime.contract import STREAM_MEDIA_TYPE


def create_agent_app(agent: Agent) -> Starlette:
    """An ASGI application that speaks for `agent`."""
    tiers = agent.tiers

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
        state = await tiers.state()
        return Response(state.model_dump_json(), media_type="application/json")

    async def prefetch(request: Request) -> Response:
        tiers.prefetch(Digest(request.path_params["digest"]))
        return Response(status_code=202)

    async def evict(request: Request) -> Response:
        await tiers.evict(Digest(request.path_params["digest"]))
        return Response(status_code=204)

    async def keep(request: Request) -> Response:
        await tiers.keep(KeepList.model_validate_json(await request.body()).keep)
        return Response(status_code=202)

    async def verify(request: Request) -> Response:
        events = _verification(tiers, Digest(request.path_params["digest"]))
        return StreamingResponse(events, media_type=STREAM_MEDIA_TYPE)

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
            Route("/v1/cache/kept", keep, methods=["PUT"]),
            Route("/v1/cache/{digest}/prefetch", prefetch, methods=["POST"]),
            Route("/v1/cache/{digest}/evict", evict, methods=["POST"]),
            Route("/v1/cache/{digest}/verify", verify, methods=["POST"]),
            Route("/v1/events", events, methods=["GET"]),
        ],
        exception_handlers={StokerError: _problem},
    )


async def _verification(tiers: Tiers, digest: Digest) -> AsyncIterator[str]:
    """The newest report whenever the reader takes one, at last the outcome."""
    newest: deque[Verifying] = deque(maxlen=1)
    news = asyncio.Event()

    def report(done_bytes: int, total_bytes: int) -> None:
        newest.append(Verifying(bytes_done=done_bytes, bytes_total=total_bytes))
        news.set()

    work = asyncio.create_task(tiers.verify(digest, report), name=f"verify {digest}")
    work.add_done_callback(lambda _: news.set())
    try:
        while newest or not work.done():
            await news.wait()
            if newest:
                yield newest.pop().model_dump_json() + "\n"
            elif not work.done():
                news.clear()
        try:
            await work
            outcome: Verified | Refused = Verified()
        except StokerError as error:
            outcome = Refused(code=error.code, message=error.message, details=error.details)
        yield outcome.model_dump_json() + "\n"
    finally:
        work.cancel()
        await asyncio.wait([work])


async def _terminated(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    async for line in lines:
        yield line + "\n"


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, StokerError)
    body = {"code": error.code, "message": error.message, "details": error.details}
    return JSONResponse(body, status_code=error.status)
