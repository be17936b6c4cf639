"""A platform of a few routes, real HTTP and a real server, for the CLI to talk to."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from blake3 import blake3
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from typer.testing import CliRunner, Result

from stoker.cli import app as cli

TIMELINE = {
    "request_id": "req-1",
    "function": "chat",
    "revision": "chat-00001",
    "cold": True,
    "total_ms": 112.4,
    "phases": [
        {
            "name": name,
            "start_ms": start,
            "duration_ms": ms,
            "predicted_ms": p,
            "tier": t,
            "bytes": b,
        }
        for name, start, ms, p, t, b in (
            ("queue", 0.0, 0.02, None, None, 0),
            ("schedule", 0.02, 0.11, None, None, 0),
            ("provision", 0.13, 1.4, 2.0, None, 0),
            ("fetch", 1.53, 0.0, 0.0, None, 0),
            ("load", 1.53, 12.5, 11.8, "dram", 269_060_552),
            ("init", 14.03, 37.2, 35.0, None, 0),
            ("prefill", 51.23, 61.17, 58.0, None, 0),
        )
    ],
}
WAIT_S = 20.0  # for an event that must come


@dataclass
class PlatformApp:
    """What the platform's API is to the CLI; keeps what it was told."""

    functions: dict[str, dict[str, Any]] = field(default_factory=dict)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # by BLAKE3
    uploads: dict[str, dict[str, Any]] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)  # paths that were uploaded
    commit_fails: dict[str, Any] | None = None
    refusal: tuple[int, dict[str, Any]] | None = None  # what every chat is answered with
    chunks: list[dict[str, Any]] = field(default_factory=list)
    hangs: bool = False  # a chat stays open after its chunks, until the client leaves
    client_left: threading.Event = field(default_factory=threading.Event)
    asked: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/readyz", self.ready),
                Route("/v1/functions", self.list_functions),
                Route("/v1/functions/{name}", self.function, methods=["GET", "PUT", "DELETE"]),
                Route("/v1/functions/{name}/scale", self.scale, methods=["POST"]),
                Route("/v1/functions/{name}/instances", self.instances),
                Route("/v1/functions/{name}/logs", self.logs),
                Route("/v1/functions/{name}/invocations", self.invoke, methods=["POST"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/requests/{id}/startup", self.startup),
                Route("/v1/uploads", self.open_upload, methods=["POST"]),
                Route("/v1/uploads/{id}/files/{path:path}", self.put_file, methods=["PUT"]),
                Route("/v1/uploads/{id}/commit", self.commit, methods=["POST"]),
            ]
        )

    async def ready(self, _: Request) -> Response:
        return JSONResponse({"status": "ready"})

    async def list_functions(self, _: Request) -> Response:
        return JSONResponse({"functions": list(self.functions.values())})

    async def function(self, request: Request) -> Response:
        name = request.path_params["name"]
        if request.method == "PUT":
            manifest = await request.json()
            same = self.manifests.get(name) == manifest
            self.manifests[name] = manifest
            body = self.functions.setdefault(name, {"name": name, "state": "cold"})
            body["revision"] = f"{name}-00001"
            return JSONResponse(body, status_code=200 if same else 201)
        if name not in self.functions:
            return not_found(name)
        if request.method == "DELETE":
            del self.functions[name]
            return Response(status_code=204)
        return JSONResponse(self.functions[name])

    async def scale(self, request: Request) -> Response:
        name, body = request.path_params["name"], await request.json()
        if name not in self.functions:
            return not_found(name)
        return JSONResponse({"function": name, "replicas": body["replicas"], "ready": 0})

    async def instances(self, request: Request) -> Response:
        name = request.path_params["name"]
        row = {"id": f"{name}-i1", "function": name, "state": "ready", "active": 0, "pid": 7}
        return JSONResponse({"instances": [row]})

    async def logs(self, request: Request) -> Response:
        follow = request.query_params.get("follow", "0")
        return PlainTextResponse(f"i1 one\u2028still one\ni1 follow={follow}\n")

    async def invoke(self, request: Request) -> Response:
        payload = await request.json()
        if isinstance(payload, list):
            events = "".join(f"data: {json.dumps(value)}\n\n" for value in payload)
            return Response(events + "data: [DONE]\n\n", media_type="text/event-stream")
        return JSONResponse(payload)

    async def chat(self, request: Request) -> Response:
        self.asked.append(await request.json())
        if self.refusal:
            status, body = self.refusal
            return JSONResponse(body, status_code=status, headers={"retry-after": "3"})
        headers = {"x-request-id": "req-1", "x-cold-start": "true"}
        return StreamingResponse(self._events(), media_type="text/event-stream", headers=headers)

    async def _events(self) -> AsyncIterator[str]:
        yield ": ping\n\n"
        for chunk in self.chunks:
            yield f"data: {json.dumps(chunk)}\n\n"
        if self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.client_left.set()
        yield "data: [DONE]\n\n"

    async def startup(self, _: Request) -> Response:
        return JSONResponse(TIMELINE)

    async def open_upload(self, request: Request) -> Response:
        body = await request.json()
        missing = [f["path"] for f in body["files"] if f["blake3"] not in self.stored]
        if not missing:
            return JSONResponse({"artifact": artifact(body["files"])})
        upload = f"up-{len(self.uploads)}"
        self.uploads[upload] = body
        return JSONResponse({"upload_id": upload, "missing": missing}, status_code=201)

    async def put_file(self, request: Request) -> Response:
        upload, path = self.uploads[request.path_params["id"]], request.path_params["path"]
        offered = next(f for f in upload["files"] if f["path"] == path)
        content = await request.body()
        assert len(content) == offered["size_bytes"]
        assert blake3(content).hexdigest() == offered["blake3"]
        assert "transfer-encoding" not in request.headers
        self.stored[offered["blake3"]] = content
        self.sent.append(path)
        return Response(status_code=204)

    async def commit(self, request: Request) -> Response:
        upload = self.uploads[request.path_params["id"]]
        name = (await request.json())["name"]
        last = self.commit_fails or {"artifact": {**artifact(upload["files"]), "name": name}}
        progress = {"stage": "layout", "bytes_done": 1, "bytes_total": 2}
        lines = "".join(json.dumps(event) + "\n" for event in (progress, last))
        return Response(lines, media_type="application/x-ndjson")


def artifact(files: list[dict[str, Any]]) -> dict[str, Any]:
    content = json.dumps(files, sort_keys=True).encode()
    size = sum(f["size_bytes"] for f in files)
    return {"digest": f"blake3:{blake3(content).hexdigest()}", "size_bytes": size}


def not_found(name: str) -> Response:
    problem = {
        "type": "urn:stoker:problem:function_not_found",
        "title": "Not Found",
        "status": 404,
        "detail": f"no function {name!r} is deployed",
        "code": "function_not_found",
        "details": {},
    }
    return JSONResponse(problem, 404, media_type="application/problem+json")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """The address of a server that runs `app` in a thread while the context is open."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = _Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert server.up.wait(WAIT_S)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture
def fake() -> PlatformApp:
    return PlatformApp()


@pytest.fixture
def url(fake: PlatformApp) -> Iterator[str]:
    with serving(fake.app()) as address:
        yield address


@pytest.fixture
def nowhere() -> str:
    """An address that nothing listens at: it was free a moment ago, and stays reserved."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def stoker(url: str) -> Callable[..., Result]:
    """Runs the CLI against the platform of the test; stdout and stderr come apart."""
    runner = CliRunner(env={"STOKER_URL": url, "COLUMNS": "80", "NO_COLOR": "1"})
    return lambda *arguments, **options: runner.invoke(cli, [str(a) for a in arguments], **options)


@pytest.fixture
def handler_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "hello"
    folder.mkdir()
    (folder / "function.yaml").write_text(
        "name: hello\nruntime: {engine: handler, handler: handler.py}\n"
    )
    (folder / "handler.py").write_text("def predict(payload):\n    return payload\n")
    return folder
