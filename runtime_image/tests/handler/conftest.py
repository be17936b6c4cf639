"""One worker for all that invokes, with a handler that knows every kind of predict."""

from __future__ import annotations

import json
import socket
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from stoker_runtime.contract import INVOKE_EVENT, ValueEvent

EXAMPLES = Path(__file__).parent / "examples"


@pytest.fixture(scope="session")
def kinds(spawn_for_session):
    """A worker that has loaded `examples/kinds`."""
    worker = spawn_for_session()
    worker.load_handler(EXAMPLES / "kinds", options={"greeting": "hello"}, env={"COLOUR": "blue"})
    return worker


@pytest.fixture
def write_handler(tmp_path):
    """Writes a handler.py and gives the folder that it is in."""

    def write(source: str) -> Path:
        (tmp_path / "handler.py").write_text(source)
        return tmp_path

    return write


class RawInvoke:
    """One connection whose request is sent without waiting for the answer."""

    def __init__(self, socket_path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(socket_path))

    def __enter__(self) -> RawInvoke:
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def post(self, path: str, payload: Any) -> None:
        body = json.dumps({"request_id": "q", "payload": payload}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: w\r\ncontent-length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)

    def values(self) -> list[Any]:
        answer = HTTPResponse(self._socket)
        answer.begin()
        events = [INVOKE_EVENT.validate_json(line) for line in answer.read().splitlines()]
        return [event.value for event in events if isinstance(event, ValueEvent)]


@pytest.fixture
def socket_to():
    """Opens a raw connection to a worker."""
    return lambda worker: RawInvoke(worker.socket_path)
