"""Starts `child` in the environment of a contender and reads its answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from tests.bench.loader.child import READY, Order, Outcome

import stoker_loader

ROOT = Path(__file__).resolve().parents[3]
MEASURE_TIMEOUT_S = 300
END_TIMEOUT_S = 60
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # The same imports are made again and again: byte code may be kept.
    "PYTHONDONTWRITEBYTECODE": "",
}


class MeasureFailedError(Exception):
    """A contender did not load what it was given; the message is its own last line."""


class Child:
    """A process that is ready to measure, or has measured and keeps its memory."""

    def __init__(self, order: Order, python: Path) -> None:
        """Returns when it is ready. Raises MeasureFailedError."""
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [str(python), "-m", "tests.bench.loader.child", json.dumps(asdict(order))],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        line = self._read()
        assert line == READY, line

    def measure(self) -> Outcome:
        """Raises MeasureFailedError."""
        self._say()
        return Outcome(**json.loads(self._read()))

    def end(self) -> None:
        """Lets go of its memory."""
        if self._process.poll() is None:
            self._say()
        with self._killed_after(END_TIMEOUT_S):
            self._process.wait()
        self._close()

    def _say(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        assert self._process.stdout is not None
        with self._killed_after(MEASURE_TIMEOUT_S):
            line = self._process.stdout.readline()
        if line:
            return line.rstrip("\n")
        code = self._process.wait()
        self._errors.seek(0)
        message = f"{_how(code)}: {reason(self._errors.read())}"
        self._close()
        raise MeasureFailedError(message)

    def _close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for file in (self._process.stdin, self._process.stdout, self._errors):
            file.close()

    @contextmanager
    def _killed_after(self, seconds: float) -> Iterator[None]:
        watchdog = threading.Timer(seconds, self._process.kill)
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()


class Relay:
    """Measures one process after the other. Each stays until the next is ready to start, so that
    the memory of the one is what the other takes: no host has had the time to take it back, and
    nobody waits for memory to be fetched from it."""

    def __init__(self) -> None:
        self._last: Child | None = None

    def measure(self, order: Order, python: Path = Path(sys.executable)) -> Outcome:
        """Raises MeasureFailedError."""
        child = Child(order, python)
        self.end()
        outcome = child.measure()
        self._last = child
        return outcome

    def end(self) -> None:
        """Ends the process that was measured last."""
        if self._last is not None:
            self._last.end()
            self._last = None


def run_module(
    module: str,
    *arguments: str,
    python: Path = Path(sys.executable),
    before: tuple[str, ...] = (),
) -> str:
    """Runs a module of the harness to its end, with the words `before` the command, and returns
    what it printed.

    Raises MeasureFailedError.
    """
    try:
        done = subprocess.run(
            [*before, str(python), "-m", module, *arguments],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=MEASURE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasureFailedError(f"did not end within {MEASURE_TIMEOUT_S} s") from error
    if done.returncode:
        raise MeasureFailedError(f"{_how(done.returncode)}: {reason(done.stderr)}")
    return done.stdout


def environment() -> dict[str, str]:
    """Our package lies on the path of every environment: the child asks it what is resident."""
    package = Path(stoker_loader.__file__).parents[1]
    return {**os.environ, **QUIET, "PYTHONPATH": str(package)}


def reason(stderr: str) -> str:
    """The last line that a failed process wrote: a traceback's error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"


def _how(code: int) -> str:
    return f"exit {code}" if code > 0 else f"signal {-code}"
