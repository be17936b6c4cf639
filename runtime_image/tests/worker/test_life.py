"""A worker's process: how it begins, how it ends, and what ends with it."""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from stoker_runtime.contract import ReadyEvent, WorkerState, WorkerStatus
from stoker_runtime.worker import ExitCode

WAIT_S = 30

ECHO = "def predict(payload): return payload"
HELD = """
def predict(payload):
    with open(payload["started"], "w") as pipe:
        pipe.write("started")
    with open(payload["go"]) as pipe:
        return pipe.read()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "handler.py").write_text(ECHO)
    return tmp_path


def status_of(worker):
    return WorkerStatus.model_validate_json(worker.client.get("/status").content)


def test_a_blank_worker_says_so_and_becomes_an_instance(spawn_worker, folder):
    worker = spawn_worker()
    assert worker.ready["pid"] == worker.process.pid
    assert worker.ready["blank_ms"] > 0
    assert stat.S_IMODE(worker.socket_path.stat().st_mode) == 0o600
    assert status_of(worker) == WorkerStatus(state=WorkerState.BLANK, pid=worker.process.pid)
    *_, ready = worker.load_handler(folder)
    assert isinstance(ready, ReadyEvent)
    assert status_of(worker) == WorkerStatus(
        state=WorkerState.READY, instance_id="i-1", pid=worker.process.pid
    )


def test_phases_add_up_to_the_load(spawn_worker, tmp_path):
    (tmp_path / "handler.py").write_text("import sqlite3\ndef predict(p): return p")
    worker = spawn_worker()
    body = {"instance_id": "i", "function": "f", "revision": "r"}
    body |= {"source_path": str(tmp_path), "handler": "handler.py"}
    answer = worker.client.post("/load", json=body)
    phases = [json.loads(line) for line in answer.text.splitlines()[:-1]]
    total_ms = sum(phase["duration_ms"] for phase in phases)
    assert [phase["name"] for phase in phases] == ["load", "init"]
    assert 0 < total_ms <= answer.elapsed.total_seconds() * 1000


def test_sigterm_lets_a_request_end(spawn_worker, tmp_path):
    worker, thread, answers = _with_held_request(spawn_worker, tmp_path)
    worker.process.send_signal(signal.SIGTERM)
    (tmp_path / "go").write_text("went on")
    thread.join(WAIT_S)
    assert json.loads(answers[0].splitlines()[0])["value"] == "went on"
    assert worker.process.wait(WAIT_S) == ExitCode.DRAINED
    assert not worker.socket_path.exists()


def test_the_drain_has_a_deadline(spawn_worker, tmp_path):
    worker, thread, answers = _with_held_request(spawn_worker, tmp_path, "--drain-s", "0")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(WAIT_S) == ExitCode.DRAINED
    thread.join(WAIT_S)
    assert json.loads(answers[0])["code"] == "worker_stopped"


def _with_held_request(spawn_worker, tmp_path, *args):
    for name in ("started", "go"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "handler.py").write_text(HELD)
    worker = spawn_worker(*args)
    worker.load_handler(tmp_path)
    payload = {"started": str(tmp_path / "started"), "go": str(tmp_path / "go")}
    answers = []

    def ask():
        try:
            body = {"request_id": "q", "payload": payload}
            answers.append(worker.client.post("/invoke", json=body).text)
        except httpx.TransportError as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert (tmp_path / "started").read_text() == "started"
    return worker, thread, answers


def test_a_killed_parent_takes_its_worker_along(tmp_path):
    reading, writing = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path / "w"), str(writing)], pass_fds=[writing]
    )
    os.close(writing)
    with os.fdopen(reading) as pipe:
        worker_pid = json.loads(pipe.readline())["pid"]
    worker = os.pidfd_open(worker_pid)
    assert select.select([worker], [], [], 0) == ([], [], [])
    parent.kill()
    parent.wait()
    assert select.select([worker], [], [], WAIT_S) == ([worker], [], [])
    os.close(worker)


_PARENT = """
import os, subprocess, sys
socket_path, ready_fd = sys.argv[1:]
subprocess.Popen(
    [sys.executable, "-m", "stoker_runtime", "--socket", socket_path,
     "--parent-pid", str(os.getpid()), "--ready-fd", ready_fd],
    pass_fds=[int(ready_fd)],
).wait()
"""


def test_an_orphan_does_not_begin(tmp_path):
    command = [sys.executable, "-m", "stoker_runtime", "--socket", str(tmp_path / "w")]
    ended = subprocess.run([*command, "--parent-pid", "1"], timeout=WAIT_S, check=False)
    assert ended.returncode == ExitCode.ORPHANED
    assert not (tmp_path / "w").exists()


def test_the_process_is_tied_to_its_parent_before_anything_slow():
    code = "import sys, stoker_runtime.worker; print({'torch', 'pydantic'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"


def test_leaving_the_load_does_not_stop_it(spawn_worker, tmp_path):
    for name in ("started", "go", "done"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "handler.py").write_text(
        "from pathlib import Path\nhere = Path(__file__).parent\n"
        "def setup():\n"
        "    (here / 'started').write_text('started')\n"
        "    (here / 'go').read_text()\n"
        "    (here / 'done').write_text('done')\n"
        "def predict(payload): return payload\n"
    )
    worker = spawn_worker()
    body = {"instance_id": "i", "function": "f", "revision": "r"}
    body |= {"source_path": str(tmp_path), "handler": "handler.py"}
    with worker.client.stream("POST", "/load", json=body) as answer:
        assert json.loads(next(answer.iter_lines()))["name"] == "load"
        assert (tmp_path / "started").read_text() == "started"
    assert status_of(worker).state is WorkerState.LOADING
    (tmp_path / "go").write_text("go")
    assert (tmp_path / "done").read_text() == "done"
    assert worker.process.poll() is None


def test_the_environment_of_the_load_reaches_user_code(spawn_worker, tmp_path):
    source = "import os, torch\nCOLOUR = os.environ['COLOUR']\n"
    source += "def predict(payload): return [COLOUR, torch.get_num_threads()]"
    (tmp_path / "handler.py").write_text(source)
    worker = spawn_worker()
    worker.load_handler(tmp_path, env={"COLOUR": "red"}, threads=1)
    assert worker.invoke()[0].value == ["red", 1]


def test_a_handler_that_kills_its_process_ends_the_worker(spawn_worker, tmp_path):
    (tmp_path / "handler.py").write_text("import os\ndef predict(payload): os._exit(9)")
    worker = spawn_worker()
    worker.load_handler(tmp_path)
    with pytest.raises(httpx.RemoteProtocolError):
        worker.invoke()
    assert worker.process.wait(WAIT_S) == 9


def test_a_file_that_is_cut_short_under_a_worker_is_named_in_its_log(spawn_worker, tmp_path):
    source = "import mmap, os, resource\n"
    source += "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
    source += "def predict(path):\n    file = open(path, 'r+b')\n"
    source += (
        "    pages = mmap.mmap(file.fileno(), 0)\n    os.truncate(path, 0)\n    return pages[9]"
    )
    (tmp_path / "handler.py").write_text(source)
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(4096))
    worker = spawn_worker()
    worker.load_handler(tmp_path)
    with pytest.raises(httpx.RemoteProtocolError):
        worker.invoke(str(weights))
    assert worker.process.wait(WAIT_S) == -signal.SIGBUS
    assert f"stoker_loader: {weights}: byte 9 is mapped" in Path(worker.log_path).read_text()


def test_every_log_line_is_json(spawn_worker, folder):
    worker = spawn_worker()
    worker.load_handler(folder)
    worker.process.terminate()
    worker.process.wait(WAIT_S)
    lines = [json.loads(line) for line in Path(worker.log_path).read_text().splitlines()]
    assert [line["event"] for line in lines] == ["ready", "draining"]
    assert lines[0]["instance_id"] == "i-1"
