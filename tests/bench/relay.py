"""The least that a gateway can be: passes bytes between loopback and an instance's socket.

`python -m tests.bench.relay SOCKET` prints its address when it serves.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from tests.bench.streams import PLAIN


def relay_app(path: str) -> Starlette:
    client = httpx.AsyncClient(
        **PLAIN,
        transport=httpx.AsyncHTTPTransport(uds=path, verify=False),
        base_url="http://instance",
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    async def pass_on(request: Request) -> Response:
        onward = client.build_request(
            request.method, request.url.path, content=await request.body()
        )
        reply = await client.send(onward, stream=True)
        return StreamingResponse(
            reply.aiter_raw(),
            status_code=reply.status_code,
            media_type=reply.headers.get("content-type"),
            background=BackgroundTask(reply.aclose),
        )

    return Starlette(
        routes=[Route("/{path:path}", pass_on, methods=["GET", "POST"])], lifespan=lifespan
    )


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(relay_app(sys.argv[1]), log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
