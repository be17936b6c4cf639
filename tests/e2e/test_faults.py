"""The worst that users and machines do, one test each."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from e2e.conftest import Up
from support.handlers import DIES, FAILS_IN_SETUP

SLOTS = {"scale": {"max": 1, "target": 1, "hard_limit": 1, "keep_alive": "60s"}}

HELD = """
import os

def predict(payload):
    with open(payload["in"], "w") as began:
        began.write("began")
    with open(payload["gate"]) as gate:
        return gate.read()
"""

HELD_SETUP = """
def setup(context):
    with open(context.options["in"], "w") as began:
        began.write("began")
    with open(context.options["gate"]) as gate:
        gate.read()

def predict(payload):
    return payload
"""

TICKS = """
def predict(payload):
    try:
        for number in range(10_000_000):
            if number == 4:
                with open(payload["gate"]) as gate:
                    gate.read()
            yield number
    finally:
        with open(payload["ended"], "w") as ended:
            ended.write("ended")
"""


def fifo(tmp_path: Path, name: str) -> str:
    path = tmp_path / name
    os.mkfifo(path)
    return str(path)


def test_unknown_function_names_the_next_step(up: Up) -> None:
    data = up.invoke("nobody", {})
    assert data.status_code == 404
    assert data.json()["error"]["code"] == "function_not_found"
    control = up.http.get("/v1/functions/nobody")
    assert control.status_code == 404
    assert control.headers["content-type"] == "application/problem+json"


def test_every_answer_carries_its_id_and_timing(up: Up) -> None:
    for answer in (
        up.http.get("/livez"),
        up.http.get("/v1/functions", headers={"X-Request-Id": "mine-1"}),
        up.http.get("/nothing-here"),
        up.invoke("nobody", {}),
    ):
        assert answer.headers["x-request-id"]
        assert "total;dur=" in answer.headers["server-timing"]
    assert up.http.get("/livez", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == (
        "mine-1"
    )


def test_a_deploy_of_the_same_content_is_the_same_revision(
    up: Up, function_folder: Callable[..., Path]
) -> None:
    first = up.deploy(function_folder("same"))
    assert up.deploy(function_folder("same")) == first
    second = up.deploy(function_folder("same", env={"A": "1"}))
    assert second != first
    assert up.invoke("same", {"x": 1}).headers["x-function-revision"] == second


def test_a_setup_that_raises_answers_with_its_log_and_then_a_breaker_opens(
    up: Up, function_folder: Callable[..., Path]
) -> None:
    up.deploy(function_folder("broken", FAILS_IN_SETUP))
    answers = [up.invoke("broken", {}) for _ in range(4)]
    assert {a.status_code for a in answers} == {503}
    first, last = answers[0].json()["error"], answers[-1].json()["error"]
    assert first["code"] == "startup_failed"
    assert "flux capacitor missing" in first["message"]
    assert any("about to look" in line for line in first["details"]["log_tail"])
    assert last["code"] == "crash_loop"
    assert last["details"]["retry_in_s"] > 0
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert up.instances("broken") == []


def test_a_predict_that_raises_is_a_500_and_the_instance_lives(
    up: Up, function_folder: Callable[..., Path]
) -> None:
    up.deploy(function_folder("picky", "def predict(p):\n    return {'half': p['n'] / 2}\n"))
    assert up.invoke("picky", {"n": 4}).json() == {"half": 2.0}
    pid = up.pid("picky")
    wrong = up.invoke("picky", {})
    assert wrong.status_code == 500
    assert "KeyError" in wrong.json()["error"]["message"]
    assert up.invoke("picky", {"n": 4}).json() == {"half": 2.0}
    assert up.pid("picky") == pid


def test_a_handler_that_ends_its_process_is_a_502_and_the_next_request_starts_anew(
    up: Up, function_folder: Callable[..., Path]
) -> None:
    up.deploy(function_folder("dies", DIES))
    answer = up.invoke("dies", {})
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "instance_lost"


def test_a_start_slower_than_its_timeout_is_a_504(
    up: Up, function_folder: Callable[..., Path], tmp_path: Path
) -> None:
    began, gate = fifo(tmp_path, "began"), fifo(tmp_path, "gate")
    runtime = {
        "engine": "handler",
        "handler": "handler.py",
        "options": {"in": began, "gate": gate},
    }
    up.deploy(
        function_folder("slow", HELD_SETUP, runtime=runtime, startup={"timeout": "1s"}, **SLOTS)
    )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(up.invoke, "slow", {"x": 1})
        assert Path(began).read_text() == "began"
        answer = asked.result()
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "startup_timeout"
    assert answer.headers["x-cold-start"] == "true"
    Path(gate).write_text("open")  # the start went on: nobody has to pay for it again
    assert up.invoke("slow", {"x": 1}).json() == {"x": 1}


def test_a_client_that_leaves_a_cold_start_does_not_take_it_from_the_others(
    up: Up, function_folder: Callable[..., Path], tmp_path: Path
) -> None:
    began, gate = fifo(tmp_path, "began"), fifo(tmp_path, "gate")
    runtime = {
        "engine": "handler",
        "handler": "handler.py",
        "options": {"in": began, "gate": gate},
    }
    up.deploy(function_folder("shared", HELD_SETUP, runtime=runtime, **SLOTS))
    host, port = up.local.url.removeprefix("http://").split(":")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        leaver = socket.create_connection((host, int(port)))
        leaver.sendall(
            b"POST /v1/functions/shared/invocations HTTP/1.1\r\nHost: x\r\n"
            b"Content-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
        )
        assert Path(began).read_text() == "began"
        stays = pool.submit(up.invoke, "shared", {"stays": True})
        leaver.close()
        Path(gate).write_text("open")
        answer = stays.result()
    assert answer.json() == {"stays": True}
    assert len(up.instances("shared")) == 1


def test_a_full_queue_is_a_429_with_the_time_to_come_back(
    up: Up, function_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = function_folder("narrow", HELD, startup={"max_held": 1}, **SLOTS)
    up.deploy(folder)
    began, gate = fifo(tmp_path, "began"), fifo(tmp_path, "gate")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        served = pool.submit(up.invoke, "narrow", {"in": began, "gate": gate})
        assert Path(began).read_text() == "began"
        # One of these two is held, the other is one too many.
        rest = [
            pool.submit(up.invoke, "narrow", {"in": "/dev/null", "gate": "/dev/null"})
            for _ in range(2)
        ]
        turned_away = next(concurrent.futures.as_completed(rest)).result()
        assert turned_away.status_code == 429
        assert turned_away.json()["error"]["code"] == "queue_full"
        assert int(turned_away.headers["retry-after"]) >= 1
        Path(gate).write_text("open")
        assert served.result().json() == "open"
        assert sorted(r.result().status_code for r in rest) == [200, 429]


def test_a_hundred_requests_at_once_for_a_cold_function(
    up: Up, function_folder: Callable[..., Path]
) -> None:
    scale = {"max": 2, "target": 50, "hard_limit": 50, "keep_alive": "60s"}
    up.deploy(function_folder("herd", scale=scale))
    limits = httpx.Limits(max_connections=200)
    with (
        httpx.Client(base_url=up.local.url, timeout=120, limits=limits) as client,
        concurrent.futures.ThreadPoolExecutor(100) as pool,
    ):
        answers = list(
            pool.map(
                lambda n: client.post("/v1/functions/herd/invocations", json={"n": n}), range(100)
            )
        )
    assert [a.status_code for a in answers] == [200] * 100
    assert sorted(a.json()["n"] for a in answers) == list(range(100))
    assert len(up.instances("herd")) == 2


def test_a_client_that_leaves_a_stream_ends_it_at_the_next_value(
    up: Up, function_folder: Callable[..., Path], tmp_path: Path
) -> None:
    up.deploy(function_folder("ticks", TICKS, **SLOTS))
    gate, ended = fifo(tmp_path, "gate"), fifo(tmp_path, "ended")
    payload = {"gate": gate, "ended": ended}
    with up.http.stream("POST", "/v1/functions/ticks/invocations", json=payload) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "data: 0"
    Path(gate).write_text("open")
    assert Path(ended).read_text() == "ended"
    # Its only slot is free again: the next request is served by the same instance.
    with up.http.stream("POST", "/v1/functions/ticks/invocations", json=payload) as stream:
        assert next(stream.iter_lines()) == "data: 0"
        assert stream.headers["x-cold-start"] == "false"
    Path(gate).write_text("open")
    assert Path(ended).read_text() == "ended"


def test_kill_9_of_an_instance_in_the_middle_of_a_stream(
    up: Up, function_folder: Callable[..., Path], tmp_path: Path
) -> None:
    up.deploy(function_folder("mortal", TICKS, **SLOTS))
    gate, ended = fifo(tmp_path, "gate"), fifo(tmp_path, "ended")
    payload = {"gate": gate, "ended": ended}
    with up.http.stream("POST", "/v1/functions/mortal/invocations", json=payload) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "data: 0"
        killed = up.pid("mortal")
        os.kill(killed, signal.SIGKILL)
        rest = [line for line in lines if line]
    last = json.loads(rest[-1].removeprefix("data: "))
    assert last["error"]["code"] == "instance_lost"
    assert "data: [DONE]" not in rest
    with up.http.stream("POST", "/v1/functions/mortal/invocations", json=payload) as stream:
        assert next(stream.iter_lines()) == "data: 0"
        assert stream.headers["x-cold-start"] == "true"
        assert up.pid("mortal") != killed
        os.kill(up.pid("mortal"), signal.SIGKILL)


def test_nothing_listens_beyond_loopback(up: Up) -> None:
    process = psutil.Process(up.local.pid)
    ours = {process.pid, *(child.pid for child in process.children(recursive=True))}
    listening = [
        c.laddr.ip
        for c in psutil.net_connections(kind="inet")
        if c.pid in ours and c.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_probes_and_listing_wake_nothing(up: Up, function_folder: Callable[..., Path]) -> None:
    up.deploy(function_folder("asleep"))
    for path in (
        *("/livez", "/readyz", "/metrics", "/openapi.json", "/v1/models", "/v1/functions"),
        *("/v1/functions/asleep", "/v1/functions/asleep/logs"),
    ):
        assert up.http.get(path).status_code == 200
    assert up.instances("asleep") == []
