"""Starts `child` in the environment of a contender and reads its answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from tests.bench.loader.child import Order, Outcome

import stoker_loader

ROOT = Path(__file__).resolve().parents[3]
MEASURE_TIMEOUT_S = 300
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # One import is measured often: its byte code may lie beside it.
    "PYTHONDONTWRITEBYTECODE": "",
}


class MeasureFailedError(Exception):
    """A contender did not load what it was given; the message is its own last line."""


def measure(order: Order, python: Path = Path(sys.executable)) -> Outcome:
    """Runs one measurement. Raises MeasureFailedError."""
    body = run_module("tests.bench.loader.child", json.dumps(asdict(order)), python=python)
    return Outcome(**json.loads(body))


def run_module(module: str, *arguments: str, python: Path = Path(sys.executable)) -> str:
    """Runs a module of the harness to its end and returns what it printed.

    Our package lies on its path too, whichever environment it is: the child asks it what is
    resident. Raises MeasureFailedError.
    """
    package = Path(stoker_loader.__file__).parents[1]
    try:
        done = subprocess.run(
            [str(python), "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, **QUIET, "PYTHONPATH": str(package)},
            capture_output=True,
            text=True,
            timeout=MEASURE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasureFailedError(f"did not end within {MEASURE_TIMEOUT_S} s") from error
    if done.returncode:
        how = f"exit {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
        raise MeasureFailedError(f"{how}: {reason(done.stderr)}")
    return done.stdout


def reason(stderr: str) -> str:
    """The last line that a failed process wrote: a traceback's error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"
