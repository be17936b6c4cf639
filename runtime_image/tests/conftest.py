"""Real workers over their Unix sockets: every test here talks to a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from stoker_runtime.contract import INVOKE_EVENT, LOAD_EVENT, InvokeEvent, LoadEvent, WorkerError

ANSWER_S = 60.0  # what an answer may take on a machine that others use too
SOCKET_NAME = "w"  # a Unix socket's whole path must stay below 108 bytes


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A worker that says it is blank, and a client on its socket."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    socket_path: Path
    ready: dict[str, Any]
    log_path: Path

    def load(self, **request: Any) -> list[LoadEvent]:
        request = {"instance_id": "i-1", "function": "f", "revision": "r-1", **request}
        answer = self.client.post("/load", json=request)
        assert answer.status_code == 200, answer.text
        return [LOAD_EVENT.validate_json(line) for line in answer.text.splitlines()]

    def load_handler(self, source_path: Path, **request: Any) -> list[LoadEvent]:
        return self.load(source_path=str(source_path), handler="handler.py", **request)

    def invoke(self, payload: Any = None) -> list[InvokeEvent]:
        answer = self.client.post("/invoke", json={"request_id": "q-1", "payload": payload})
        assert answer.status_code == 200, answer.text
        return [INVOKE_EVENT.validate_json(line) for line in answer.text.splitlines()]

    def refused(self, path: str, body: Any) -> tuple[int, WorkerError]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = self.client.post(path, content=content)
        return answer.status_code, WorkerError.model_validate_json(answer.content)


SpawnWorker = Callable[..., WorkerProcess]


@pytest.fixture(scope="session")
def spawn_for_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpawnWorker]:
    with ExitStack() as stack:
        yield lambda *args, **kw: _spawn(stack, tmp_path_factory.mktemp("w"), *args, **kw)


@pytest.fixture
def spawn_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpawnWorker]:
    with ExitStack() as stack:
        yield lambda *args, **kw: _spawn(stack, tmp_path_factory.mktemp("w"), *args, **kw)


def _spawn(stack: ExitStack, folder: Path, *args: str) -> WorkerProcess:
    socket_path = folder / SOCKET_NAME
    log_path = folder / "log"
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "stoker_runtime", "--socket", str(socket_path)]
    command += ["--parent-pid", str(os.getpid()), "--ready-fd", str(writing), *args]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, pass_fds=[writing], stdout=log, stderr=log)
    stack.callback(_end, process)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.readline()
    assert said, log_path.read_text()
    transport = httpx.HTTPTransport(uds=str(socket_path))
    client = httpx.Client(transport=transport, base_url="http://worker", timeout=ANSWER_S)
    stack.enter_context(client)
    return WorkerProcess(process, client, socket_path, json.loads(said), log_path)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
