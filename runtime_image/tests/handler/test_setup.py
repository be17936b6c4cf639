"""Handlers that cannot be made ready, and the shapes that setup may have."""

from __future__ import annotations

import pytest

from stoker_runtime.contract import FailedEvent, PhaseEvent, ReadyEvent
from stoker_runtime.worker import ExitCode


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        (
            "def setup(): raise KeyError('no weights')",
            "handler_incomplete",
            "handler.py has no predict",
        ),
        (
            "def setup():\n  raise KeyError('no weights')\ndef predict(p): return p",
            "setup_failed",
            "setup raised KeyError: 'no weights'",
        ),
        (
            "async def setup(context):\n  raise KeyError('no')\ndef predict(p): return p",
            "setup_failed",
            "setup raised KeyError",
        ),
        (
            "import nothing_of_that_name",
            "setup_failed",
            "import of handler.py raised ModuleNotFound",
        ),
        ("def predict(p) return p", "setup_failed", "import of handler.py raised SyntaxError"),
        ("raise SystemExit(0)", "setup_failed", "import of handler.py raised SystemExit: 0"),
        (
            "class Handler:\n  def __init__(self, a): ...\n  def predict(self, p): ...",
            "setup_failed",
            "Handler() in handler.py raised TypeError",
        ),
        ("def predict(): return 1", "handler_incomplete", "must take one argument, the payload"),
        (
            "def setup(a, b): ...\ndef predict(p): return p",
            "handler_incomplete",
            "must take the context alone, or nothing",
        ),
        (
            "setup = 3\ndef predict(p): return p",
            "handler_incomplete",
            "setup in handler.py is a int",
        ),
        (
            "def setup(c): c.load_tensors()\ndef predict(p): return p",
            "checkpoint_missing",
            "set `model.uri` in the manifest",
        ),
    ],
)
def test_a_handler_that_cannot_be_ready_ends_the_worker(
    spawn_worker, write_handler, source, code, words
):
    worker = spawn_worker()
    *_, failed = worker.load_handler(write_handler(source))
    assert isinstance(failed, FailedEvent)
    assert (failed.error.type, failed.error.code) == ("handler_error", code)
    assert words in failed.error.message
    if code == "setup_failed" and "Handler()" not in words:
        assert failed.error.details["traceback"][-1].startswith("handler.py:")
    assert worker.process.wait(10) == ExitCode.LOAD_FAILED
    assert not worker.socket_path.exists()


@pytest.mark.parametrize(
    ("file_name", "words"),
    [
        (
            "missing.py",
            "runtime.handler names 'missing.py', but the function's folder holds handler.py",
        ),
        ("../handler.py", "leaves the function's own folder"),
    ],
)
def test_a_file_that_is_not_there_is_named(spawn_worker, write_handler, file_name, words):
    folder = write_handler("def predict(p): return p")
    [failed] = spawn_worker().load(source_path=str(folder), handler=file_name)
    assert failed.error.code == "handler_missing"
    assert words in failed.error.message


@pytest.mark.parametrize(
    "setup",
    [
        "def setup(): seen.append('ran')",
        "def setup(context): seen.append('ran')",
        "def setup(*, context): seen.append('ran')",
        "def setup(context, more=1): seen.append('ran')",
        "async def setup(): seen.append('ran')",
        "seen.append('ran')",
    ],
)
def test_setup_may_take_the_context_or_not(spawn_worker, write_handler, setup):
    worker = spawn_worker()
    events = worker.load_handler(write_handler(f"seen = []\n{setup}\ndef predict(p): return seen"))
    assert [type(event) for event in events] == [PhaseEvent, PhaseEvent, ReadyEvent]
    assert [event.name for event in events[:2]] == ["load", "init"]
    assert worker.invoke()[0].value == ["ran"]
