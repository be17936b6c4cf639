"""The routes of the checkpoint store, through the whole gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from starlette.types import ASGIApp, Message

import stoker_loader
from stoker.config import Settings
from stoker.gateway.app import create_app
from stoker.store.catalog import Catalog

TINY_BODY_BYTES = 1024  # the bound of ordinary routes; uploads go beyond it


class NoInstances:
    """A platform on which nothing runs."""

    def instances(self, function: str | None = None) -> tuple[()]:
        return ()


@pytest.fixture
def app(pusher: Any, catalog: Catalog, home: Path) -> ASGIApp:
    return create_app(
        catalog=catalog,
        registry=pusher.registry,
        leasing=NoInstances(),  # type: ignore[arg-type]
        settings=Settings(home=home, max_body_bytes=TINY_BODY_BYTES),
    )


@pytest.fixture
async def http(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://stoker") as client:
        yield client


@pytest.fixture
def offer(specs: Callable[[Path], list[Any]]) -> Callable[..., dict[str, Any]]:
    def make(folder: Path, kind: str = "checkpoint", **more: Any) -> dict[str, Any]:
        return {"files": [asdict(spec) for spec in specs(folder)], "kind": kind, **more}

    return make


async def upload(http: httpx.AsyncClient, folder: Path, body: dict[str, Any]) -> str:
    begun = await http.post("/v1/uploads", json=body)
    assert begun.status_code == 201, begun.text
    upload_id: str = begun.json()["upload_id"]
    for path in begun.json()["missing"]:
        sent = await http.put(
            f"/v1/uploads/{upload_id}/files/{path}", content=(folder / path).read_bytes()
        )
        assert (sent.status_code, sent.content) == (204, b"")
    return upload_id


async def test_a_push_over_http(
    http: httpx.AsyncClient, checkpoint: Path, offer: Any, pusher: Any
) -> None:
    upload_id = await upload(http, checkpoint, offer(checkpoint))
    committed = await http.post(f"/v1/uploads/{upload_id}/commit", json={"name": "small"})
    assert committed.status_code == 200
    assert committed.headers["content-type"] == "application/x-ndjson"
    *progress, last = [json.loads(line) for line in committed.text.splitlines()]
    assert all(set(line) == {"stage", "bytes_done", "bytes_total"} for line in progress)
    assert progress[-1]["bytes_done"] == progress[-1]["bytes_total"] > 0
    artifact = last["artifact"]
    assert (artifact["name"], set(artifact)) == (
        "small",
        {"digest", "size_bytes", "name", "source_digest", "created_at"},
    )
    path = await pusher.folder(artifact["digest"])
    assert stoker_loader.digest(path).root == artifact["digest"]

    assert (await http.get("/v1/checkpoints")).json() == {"checkpoints": [artifact]}
    for reference in ("small", artifact["digest"], f"small@{artifact['digest']}"):
        described = (await http.get(f"/v1/checkpoints/{reference}")).json()
        assert described.items() >= artifact.items()
        assert (described["names"], described["revisions"]) == (["small"], [])
        assert {file["path"] for file in described["files"]} >= {"model.safetensors", "model.stx"}
    again = await http.post("/v1/uploads", json=offer(checkpoint, name="other"))
    assert (again.status_code, again.json()["artifact"]["digest"]) == (200, artifact["digest"])
    assert (await http.get("/v1/checkpoints/other")).status_code == 200


async def test_sources_over_http_with_folders(
    http: httpx.AsyncClient, sources: Path, offer: Any, pusher: Any
) -> None:
    upload_id = await upload(http, sources, offer(sources, "source"))
    committed = await http.post(f"/v1/uploads/{upload_id}/commit", json={"name": None})
    artifact = json.loads(committed.text.splitlines()[-1])["artifact"]
    path = await pusher.folder(artifact["digest"])
    assert (path / "lib" / "helper.py").read_text() == "ANSWER = 42\n"


@pytest.mark.parametrize(
    ("change", "status", "code", "said"),
    [
        ({"kind": "image"}, 400, "invalid_request", "kind"),
        ({"files": []}, 400, "invalid_request", "files"),
        ({"filez": 1}, 400, "invalid_request", "did you mean 'files'"),
        ({"name": "a/b"}, 400, "invalid_request", "not a checkpoint's name"),
    ],
)
async def test_an_unsound_offer_is_a_problem(
    http: httpx.AsyncClient,
    checkpoint: Path,
    offer: Any,
    change: dict[str, Any],
    status: int,
    code: str,
    said: str,
) -> None:
    refused = await http.post("/v1/uploads", json={**offer(checkpoint), **change})
    assert refused.headers["content-type"] == "application/problem+json"
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert said in refused.json()["detail"]


async def test_what_is_wrong_before_a_commit_has_a_status_of_its_own(
    http: httpx.AsyncClient, checkpoint: Path, offer: Any
) -> None:
    begun = (await http.post("/v1/uploads", json=offer(checkpoint))).json()
    unfinished = await http.post(f"/v1/uploads/{begun['upload_id']}/commit", json={"name": "x"})
    assert unfinished.status_code == 400
    assert unfinished.json()["details"]["missing"] == begun["missing"]
    unknown = await http.post(f"/v1/uploads/{'0' * 32}/commit", json={})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "upload_not_found")


async def test_a_file_that_is_not_what_was_offered_is_refused(
    http: httpx.AsyncClient, checkpoint: Path, offer: Any
) -> None:
    begun = (await http.post("/v1/uploads", json=offer(checkpoint))).json()
    files = f"/v1/uploads/{begun['upload_id']}/files"
    size_bytes = (checkpoint / "config.json").stat().st_size
    wrong = await http.put(f"{files}/config.json", content=b"x" * size_bytes)
    assert (wrong.status_code, wrong.json()["code"]) == (422, "checkpoint_invalid")
    long = await http.put(f"{files}/config.json", content=b"x" * (size_bytes + 1))
    assert (long.status_code, long.json()["code"]) == (400, "invalid_request")
    for path in ("nothing.txt", "..%2F..%2Fx", "%2Fetc%2Fpasswd"):
        other = await http.put(f"{files}/{path}", content=b"")
        assert other.status_code == 400, path
        assert "not one of the files" in other.json()["detail"]


async def test_a_pickle_is_an_error_at_the_end_of_the_commits_stream(
    http: httpx.AsyncClient, tmp_path: Path, offer: Any
) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    torch.save({"w": torch.zeros(4)}, folder / "pytorch_model.bin")
    upload_id = await upload(http, folder, offer(folder))
    committed = await http.post(f"/v1/uploads/{upload_id}/commit", json={"name": "small"})
    error = json.loads(committed.text.splitlines()[-1])["error"]
    assert (error["code"], error["details"]["reason"]) == ("checkpoint_invalid", "pickle_refused")
    assert "convert it to safetensors" in error["message"]
    assert error["request_id"] == committed.headers["x-request-id"]


async def test_an_upload_can_be_forgotten(
    http: httpx.AsyncClient, checkpoint: Path, offer: Any, home: Path
) -> None:
    upload_id = await upload(http, checkpoint, offer(checkpoint))
    assert (await http.delete(f"/v1/uploads/{upload_id}")).status_code == 204
    assert (await http.delete(f"/v1/uploads/{upload_id}")).status_code == 404
    assert [path.name for path in (home / "staging").iterdir()] == []


async def test_an_unknown_checkpoint_names_the_next_step(http: httpx.AsyncClient) -> None:
    missing = await http.get("/v1/checkpoints/nothing")
    assert (missing.status_code, missing.json()["code"]) == (404, "checkpoint_not_found")
    assert "stoker push DIR nothing" in missing.json()["detail"]


# --- clients that leave ---------------------------------------------------------------------


async def exchange(
    app: ASGIApp, method: str, path: str, messages: AsyncIterator[Message]
) -> list[Message]:
    """One request whose messages are given, as a server passes them on; what was answered."""
    answered: list[Message] = []

    async def receive() -> Message:
        return await anext(messages)

    async def send(message: Message) -> None:
        answered.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "root_path": "",
        "server": None,
        "client": None,
        "state": {},
    }
    await app(scope, receive, send)
    return answered


async def test_a_client_that_leaves_in_the_middle_of_a_file_leaves_nothing(
    app: ASGIApp, http: httpx.AsyncClient, checkpoint: Path, offer: Any, home: Path
) -> None:
    begun = (await http.post("/v1/uploads", json=offer(checkpoint))).json()

    async def messages() -> AsyncIterator[Message]:
        yield {"type": "http.request", "body": b"x" * 1000, "more_body": True}
        yield {"type": "http.disconnect"}

    path = f"/v1/uploads/{begun['upload_id']}/files/model.safetensors"
    assert await exchange(app, "PUT", path, messages()) == []
    assert [*(home / "staging" / begun["upload_id"] / "parts").iterdir()] == []
    again = (await http.post("/v1/uploads", json=offer(checkpoint))).json()
    assert again == begun


async def test_a_client_that_leaves_in_the_middle_of_a_commit_can_commit_again(
    app: ASGIApp, http: httpx.AsyncClient, checkpoint: Path, offer: Any, pusher: Any
) -> None:
    upload_id = await upload(http, checkpoint, offer(checkpoint))
    left = []

    async def messages() -> AsyncIterator[Message]:
        yield {"type": "http.request", "body": b'{"name": "small"}', "more_body": False}
        left.append(True)
        yield {"type": "http.disconnect"}

    answered = await exchange(app, "POST", f"/v1/uploads/{upload_id}/commit", messages())
    assert left
    assert not any(b"artifact" in message.get("body", b"") for message in answered)
    body = offer(checkpoint, name="small")
    begun = await http.post("/v1/uploads", json=body)
    if begun.status_code == 201:
        assert begun.json()["missing"] == []
        await http.post(f"/v1/uploads/{upload_id}/commit", json={"name": "small"})
    artifact = (await http.get("/v1/checkpoints/small")).json()
    await pusher.folder(artifact["digest"])
