"""The control plane, the probes, and what is true of every answer."""

from __future__ import annotations

import asyncio

import pytest

from integration.gateway.conftest import CHECKPOINT, MAX_BODY_BYTES, Platform
from integration.gateway.peer import BOUND_S, Hold, words

MANIFEST = {"name": "new", "model": {"uri": "store://smol"}, "scale": {"max": 2}}
HELLO = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}


async def test_a_deploy_is_idempotent_and_tells_its_revision(platform: Platform) -> None:
    first = await platform.http.put("/v1/functions/new", json=MANIFEST)
    again = await platform.http.put("/v1/functions/new", json=MANIFEST)
    changed = await platform.http.put("/v1/functions/new", json={**MANIFEST, "env": {"A": "b"}})
    assert [r.status_code for r in (first, again, changed)] == [201, 200, 201]
    assert [r.json()["revision"] for r in (first, again, changed)] == [
        "new-00001",
        "new-00001",
        "new-00002",
    ]
    assert first.json()["checkpoint"]["digest"] == CHECKPOINT.digest
    assert [one.number for one in platform.leasing.deployed_revisions] == [1, 2]
    listed = (await platform.http.get("/v1/functions/new/revisions")).json()["revisions"]
    assert [one["number"] for one in listed] == [1, 2]


async def test_a_manifest_may_be_yaml(platform: Platform) -> None:
    text = "name: new\nmodel: {uri: store://smol}\n"
    response = await platform.http.put(
        "/v1/functions/new", content=text, headers={"content-type": "application/yaml"}
    )
    assert response.status_code == 201
    broken = await platform.http.put(
        "/v1/functions/new", content="a: [", headers={"content-type": "application/yaml"}
    )
    assert (broken.status_code, broken.json()["code"]) == (400, "invalid_manifest")


@pytest.mark.parametrize(
    ("manifest", "status", "code", "says"),
    [
        ({**MANIFEST, "sclae": {}}, 400, "invalid_manifest", "scale"),
        ({**MANIFEST, "name": "other"}, 400, "invalid_manifest", "'other'"),
        ({**MANIFEST, "model": {"uri": "store://none"}}, 404, "checkpoint_not_found", "none"),
        ({**MANIFEST, "model": {"uri": "./here"}}, 400, "invalid_manifest", "uploads them"),
        ([], 400, "invalid_manifest", "mapping"),
    ],
)
async def test_bad_manifests_are_problems(
    platform: Platform, manifest: object, status: int, code: str, says: str
) -> None:
    response = await platform.http.put("/v1/functions/new", json=manifest)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert says in problem["detail"]
    assert problem["title"]
    assert problem["request_id"] == response.headers["x-request-id"]


async def test_functions_are_listed_described_and_deleted(platform: Platform) -> None:
    platform.leasing.replicas["chat"] = 1
    rows = (await platform.http.get("/v1/functions")).json()["functions"]
    states = {row["name"]: (row["state"], row["instances"]) for row in rows}
    assert states == {
        "auto": ("cold", 0),
        "chat": ("ready", 1),
        "echo": ("cold", 0),
        "embed": ("cold", 0),
    }
    one = (await platform.http.get("/v1/functions/chat")).json()
    assert (one["revision"], one["engine"], one["checkpoint_bytes"]) == (
        "chat-00001",
        "causal_lm",
        1234,
    )
    assert one["last_startup"] is None
    assert (await platform.http.delete("/v1/functions/chat")).status_code == 204
    assert platform.leasing.deleted_functions == ["chat"]
    for method in ("GET", "DELETE"):
        gone = await platform.http.request(method, "/v1/functions/chat")
        assert (gone.status_code, gone.json()["code"]) == (404, "function_not_found")


async def test_scale_and_prewarm(platform: Platform) -> None:
    await platform.http.put("/v1/functions/new", json=MANIFEST)
    path = "/v1/functions/new"
    scaled = await platform.http.post(f"{path}/scale", json={"replicas": 2})
    assert scaled.json() == {
        "function": "new",
        "replicas": 2,
        "ready": 2,
        "starting": 0,
        "draining": 0,
    }
    instances = (await platform.http.get(f"{path}/instances")).json()["instances"]
    assert [one["id"] for one in instances] == ["new-0", "new-1"]
    kept = await platform.http.post(f"{path}/prewarm")
    assert kept.json()["replicas"] == 2, "prewarming never stops an instance"
    await platform.http.post(f"{path}/scale", json={"replicas": 0})
    one = await platform.http.post(f"{path}/prewarm", json={})
    assert one.json()["replicas"] == 1
    for body in ({"replicas": 3}, {"replicas": -1}, {"replicas": "many"}, {}, {"replica": 1}):
        refused = await platform.http.post(f"{path}/scale", json=body)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")


async def test_logs_are_followed_until_the_client_leaves(platform: Platform) -> None:
    lines = platform.leasing.log_lines
    lines.put_nowait("a | one")
    whole = await platform.http.get("/v1/functions/chat/logs")
    assert whole.text == "a | one\n"
    platform.leasing.log_closed.clear()
    async with platform.http.stream("GET", "/v1/functions/chat/logs?follow=1") as response:
        assert response.headers["content-type"].startswith("text/plain")
        lines.put_nowait("a | two")
        assert await anext(response.aiter_lines()) == "a | two"
    await asyncio.wait_for(platform.leasing.log_closed.wait(), BOUND_S)


async def test_probes_and_metrics_wake_nobody(platform: Platform) -> None:
    for path in ("/livez", "/readyz", "/readyz?warm=1", "/metrics", "/openapi.json"):
        response = await platform.http.get(path)
        assert response.status_code == 200, path
        assert response.headers["x-request-id"]
        assert "total;dur=" in response.headers["server-timing"]
    assert platform.leasing.timeouts == []


async def test_metrics_tell_what_happened(platform: Platform) -> None:
    start = platform.leasing.starting = Hold()
    platform.peer.will(words("a", "b"))
    asking = asyncio.create_task(platform.http.post("/v1/chat/completions", json=HELLO))
    await asyncio.wait_for(start.reached.wait(), BOUND_S)
    held = (await platform.http.get("/metrics")).text
    assert 'stoker_held_requests{function="chat"} 1.0' in held
    start.released.set()
    await asking
    platform.leasing.replicas["chat"] = 1
    text = (await platform.http.get("/metrics")).text
    for sample in (
        'stoker_startup_phase_seconds_count{function="chat",phase="load",tier="dram"} 1.0',
        'stoker_startup_prediction_error_seconds_count{function="chat",phase="load"} 1.0',
        'stoker_ttft_seconds_count{cold="true",function="chat"} 1.0',
        'stoker_tokens_total{function="chat",kind="completion"} 2.0',
        'stoker_tokens_total{function="chat",kind="prompt"} 3.0',
        'stoker_requests_total{function="chat",status="200"} 1.0',
        'stoker_instances{function="chat",state="ready"} 1.0',
    ):
        assert sample in text, sample
    await platform.http.delete("/v1/functions/chat")
    assert "stoker_ttft_seconds_count{" not in (await platform.http.get("/metrics")).text


async def test_request_ids_are_taken_over_when_sane(platform: Platform) -> None:
    for given, kept in (("mine-1.a:b_c", True), ("two words", False), ("x" * 129, False)):
        response = await platform.http.get("/livez", headers={"x-request-id": given})
        assert (response.headers["x-request-id"] == given) is kept


async def test_two_requests_under_way_never_share_an_id(platform: Platform) -> None:
    start = platform.leasing.starting = Hold()
    platform.peer.will(words("a"))
    headers = {"x-request-id": "same"}
    first = asyncio.create_task(
        platform.http.post("/v1/chat/completions", json=HELLO, headers=headers)
    )
    await asyncio.wait_for(start.reached.wait(), BOUND_S)
    second = await platform.http.get("/livez", headers=headers)
    start.released.set()
    assert (await first).headers["x-request-id"] == "same"
    assert second.headers["x-request-id"] != "same"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/function/echo"])
async def test_a_body_beyond_the_bound_is_refused(
    platform: Platform, path: str, chunked: bool
) -> None:
    async def pieces():
        for _ in range(5):
            yield b" " * (MAX_BODY_BYTES // 4)

    content = pieces() if chunked else b" " * (MAX_BODY_BYTES + 1)
    response = await platform.http.post(path, content=content)
    assert response.status_code == 413
    error = response.json()["error"]
    assert error["code"] == "payload_too_large"
    assert error["details"] == {"max_body_bytes": MAX_BODY_BYTES}
    assert platform.leasing.timeouts == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"model": "chat",}', "line 1, column 17"),
        (b"\xff", "not JSON"),
        (b"[1]", "must be a JSON object, not an array"),
        (b"", "must be a JSON object, not nothing"),
        (b"[" * 5000, "not JSON"),
    ],
)
async def test_a_body_that_is_no_json_object(platform: Platform, content: bytes, says: str) -> None:
    response = await platform.http.post("/v1/chat/completions", content=content)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert response.headers["x-cold-start"] == "false"


async def test_content_types_are_not_looked_at(platform: Platform) -> None:
    platform.peer.will(words("a"))
    content = b'{"model": "chat", "messages": [{"role": "user", "content": "x"}]}'
    response = await platform.http.post(
        "/v1/chat/completions", content=content, headers={"content-type": "text/plain"}
    )
    assert response.status_code == 200


async def test_unknown_routes_answer_in_their_planes_shape(platform: Platform) -> None:
    data = await platform.http.post("/v1/responses", json={})
    assert (data.status_code, data.json()["error"]["code"]) == (404, "route_not_found")
    control = await platform.http.get("/v1/requests/x/y")
    assert (control.status_code, control.json()["code"]) == (404, "route_not_found")
    unknown = await platform.http.get("/v1/requests/x/startup")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "request_not_found")
    method = await platform.http.get("/v1/chat/completions")
    assert (method.status_code, method.headers["allow"]) == (405, "POST")
    assert method.json()["error"]["code"] == "method_not_allowed"
