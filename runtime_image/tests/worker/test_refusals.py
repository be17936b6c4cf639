"""Requests that a worker cannot serve: the right status, and words that help."""

from __future__ import annotations

import pytest

from stoker_runtime.app import MAX_BODY_BYTES

LOAD = {"instance_id": "i", "function": "f", "revision": "r"}


@pytest.fixture(scope="module")
def blank(spawn_for_session):
    return spawn_for_session()


@pytest.fixture(scope="module")
def echo(spawn_for_session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("echo")
    (folder / "handler.py").write_text("def predict(payload): return payload")
    worker = spawn_for_session()
    worker.load_handler(folder)
    return worker


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/invoke", {"request_id": "q"}),
        ("/embed", {"request_id": "q", "inputs": ["a"]}),
        ("/generate", {"request_id": "q", "prompt": "a"}),
    ],
)
def test_nothing_is_served_before_the_load(blank, path, body):
    status, error = blank.refused(path, body)
    assert (status, error.code) == (409, "not_ready")
    assert "POST /load" in error.message


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"request_id": "q", "inputs": ["a"]}),
        ("/generate", {"request_id": "q", "prompt": "a"}),
    ],
)
def test_another_engines_request_is_refused(echo, path, body):
    status, error = echo.refused(path, body)
    assert (status, error.code) == (409, "wrong_engine")
    assert "handler" in error.message


def test_a_worker_loads_once(echo):
    status, error = echo.refused("/load", LOAD)
    assert (status, error.code) == (409, "already_loaded")


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/load", {**LOAD, "colour": 1}, "unknown_key", "colour"),
        ("/load", {**LOAD, "args": {"max_batch": 0}}, "invalid_request", "args.max_batch"),
        ("/load", {"function": "f"}, "invalid_request", "instance_id"),
        ("/invoke", b"{", "invalid_json", None),
        ("/invoke", b"\xff\xfe", "invalid_json", None),
        ("/invoke", b"", "invalid_json", None),
        ("/invoke", [], "invalid_request", None),
        (
            "/generate",
            {"request_id": "q", "prompt": "a", "sampling": {"temperature": 3}},
            "invalid_sampling",
            "sampling.temperature",
        ),
        (
            "/generate",
            {"request_id": "q", "prompt": "a", "sampling": {"heat": 3}},
            "unknown_key",
            "sampling.heat",
        ),
        ("/generate", {"request_id": "q"}, "invalid_request", None),
    ],
)
def test_a_wrong_message_is_named(blank, path, body, code, param):
    status, error = blank.refused(path, body)
    assert (status, error.type, error.code, error.param) == (
        400,
        "invalid_request_error",
        code,
        param,
    )


def test_a_body_beyond_the_bound_is_refused(echo):
    status, error = echo.refused("/invoke", b" " * (MAX_BODY_BYTES + 1))
    assert (status, error.code) == (413, "request_too_large")


def test_a_body_beyond_the_bound_is_refused_in_chunks_too(echo):
    chunks = (b" " * 2**20 for _ in range(MAX_BODY_BYTES // 2**20 + 1))
    answer = echo.client.post("/invoke", content=chunks)
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")


def test_a_body_at_the_bound_is_served(echo):
    fixed = len(b'{"request_id":"q","payload":""}')
    body = b'{"request_id":"q","payload":"' + b"x" * (MAX_BODY_BYTES - fixed) + b'"}'
    answer = echo.client.post("/invoke", content=body)
    assert answer.status_code == 200
    assert len(answer.text.splitlines()[0]) > MAX_BODY_BYTES - fixed


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/no", 404), ("GET", "/load", 405)])
def test_an_unknown_route_is_named(blank, method, path, status):
    answer = blank.client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, "unknown_route")
    assert path in answer.json()["message"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"engine": "handler"}, "invalid_request"), ({"engine": "embedding"}, "invalid_request")],
)
def test_a_load_that_lacks_its_files_says_which(spawn_worker, fields, code):
    [failed] = spawn_worker().load(**fields)
    assert failed.error.code == code
    assert failed.error.param in ("handler", "checkpoint_path")
