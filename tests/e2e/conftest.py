"""A real platform in a child process, the example checkpoints, and small functions to deploy."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from stoker.client.deploy import deploy
from stoker.client.http import Platform
from stoker.client.local import LocalPlatform, local_platform
from support.handlers import ECHO, write_handler
from support.minio import Minio, executable, running

ROOT = Path(__file__).resolve().parents[2]
MODELS = Path(os.environ.get("STOKER_MODELS", ROOT / ".cache" / "models"))
CALL_TIMEOUT_S = 120.0
TOKEN = "a-token-of-this-test"
IMPORT_TIMEOUT_S = 180.0
EVENTS = {
    "QueueConfigurations": [
        {
            "QueueArn": "arn:minio:sqs::STOKER:webhook",
            "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"],
        }
    ]
}


class Up:
    """One running platform and its client."""

    def __init__(self, local: LocalPlatform) -> None:
        self.local = local
        self.http = httpx.Client(base_url=local.url, timeout=CALL_TIMEOUT_S)
        self.platform = Platform(local.url)

    def close(self) -> None:
        self.http.close()
        self.platform.close()

    def deploy(self, folder: Path) -> str:
        """Deploys a folder and returns the revision."""
        return deploy(self.platform, folder, report=lambda *_: None).revision

    def invoke(self, name: str, payload: object, **headers: str) -> httpx.Response:
        return self.http.post(f"/v1/functions/{name}/invocations", json=payload, headers=headers)

    def instances(self, name: str) -> list[dict[str, object]]:
        return self.http.get(f"/v1/functions/{name}/instances").json()["instances"]

    def scale(self, name: str, replicas: int) -> dict[str, object]:
        answer = self.http.post(f"/v1/functions/{name}/scale", json={"replicas": replicas})
        answer.raise_for_status()
        return answer.json()

    def pid(self, name: str) -> int:
        (instance,) = self.instances(name)
        assert isinstance(instance["pid"], int)
        return instance["pid"]


def run_up(home: Path, **options: object) -> Iterator[Up]:
    with local_platform(home, **options) as local:  # type: ignore[arg-type]
        up = Up(local)
        try:
            yield up
        finally:
            up.close()


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The platform that tests share; each deploys functions of its own."""
    yield from run_up(tmp_path_factory.mktemp("home"), warm_pool=2)


@pytest.fixture
def function_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a handler function; keyword arguments are sections of its manifest."""

    def write(name: str, code: str = ECHO, **sections: object) -> Path:
        folder = write_handler(tmp_path / name, code)
        runtime = {"engine": "handler", "handler": "handler.py"}
        manifest = {"name": name, "runtime": runtime, **sections}
        (folder / "function.yaml").write_text(yaml.safe_dump(manifest))
        return folder

    return write


@pytest.fixture(scope="session")
def smollm2() -> Path:
    path = MODELS / "smollm2-135m-instruct"
    assert (path / "config.json").exists(), f"{path} is missing: run `make models`"
    return path


@pytest.fixture(scope="session")
def chat(up: Up) -> str:
    """The example chat function, deployed."""
    up.deploy(ROOT / "functions" / "chat")
    return "chat"


@pytest.fixture
def address() -> str:
    """One that is free, which both sides have to know before they start."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def minio_with_events(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Minio]:
    if executable() is None:
        pytest.skip("neither minio nor Go is on PATH: `make minio` says how to get it")
    webhook = {
        "ENABLE": "on",
        "ENDPOINT": f"http://{address}/v1/bucket-events",
        "AUTH_TOKEN": TOKEN,
        "QUEUE_DIR": str(tmp_path / "events"),
    }
    settings = {f"MINIO_NOTIFY_WEBHOOK_{name}_STOKER": value for name, value in webhook.items()}
    with running(tmp_path / "minio", **settings) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("STOKER_EVENTS_TOKEN", TOKEN)
        yield server


def imported(up: Up) -> None:
    """Returns when the only folder is a checkpoint."""
    deadline = time.monotonic() + IMPORT_TIMEOUT_S
    while True:
        (found,) = up.http.get("/v1/imports").json()["imports"] or [{"state": None}]
        if found["state"] == "imported":
            return
        assert time.monotonic() < deadline, found
        up.http.get("/v1/imports", params={"wait": "1"})


def deployed(up: Up) -> None:
    """Returns when the function.yaml of the only folder has been dealt with."""
    deadline = time.monotonic() + IMPORT_TIMEOUT_S
    while True:
        (found,) = up.http.get("/v1/imports").json()["imports"]
        if found["deploy"] is not None:
            assert found["deploy"]["reason"] is None
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.05)  # no event tells a client of it
