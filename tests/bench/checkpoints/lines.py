"""What a measuring process says, and how it is started at the end of a link and heard.

One line of JSON for each measurement, as soon as it is made.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import TypeVar

import httpx
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from tests.bench.loader.processes import ROOT, MeasureFailedError, reason

from stoker.errors import StokerError
from stoker_loader import LoaderError

SILENCE_S = 600.0  # longer than any one measurement
END_TIMEOUT_S = 90.0  # its platform has its own bound
MAX_TRIES = 3  # of a measurement: what hindered one may have passed
NOTE = "note"

# What may hinder one measurement, and not the next.
PASSING = (
    MeasureFailedError,
    StokerError,
    LoaderError,
    httpx.HTTPError,
    Boto3Error,
    BotoCoreError,
    ClientError,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Measured:
    """`what` was measured, of whom, and what it is made of; a note is a `name` alone."""

    what: str
    name: str = ""
    value: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)


def say(one: Measured) -> None:
    """To whoever started this process."""
    print(json.dumps(asdict(one)), flush=True)


def tried(what: str, measure: Callable[[], T]) -> T:
    """Measures, and again where it fails, a bounded number of times, each with a note. Raises what
    the last one raised."""
    for number in range(1, MAX_TRIES + 1):
        try:
            return measure()
        except PASSING as error:
            if number == MAX_TRIES:
                raise
            say(Measured(NOTE, f"{what}: measured again, since {error}"))
    raise AssertionError("every try returns or raises")


def end_when_told() -> None:
    """Has SIGTERM end this process as an exception does: what it started ends first."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        sys.exit("was told to end")

    signal.signal(signal.SIGTERM, leave)


def heard(
    module: str, order: str, *, before: tuple[str, ...], environment: Mapping[str, str]
) -> Generator[Measured]:
    """Runs a module with its `order`, the words `before` its command, and yields what it says. Who
    does not hear it to the end closes it.

    Raises MeasureFailedError when it fails or is silent for `SILENCE_S`.
    """
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [*before, sys.executable, "-m", module, order],
            cwd=ROOT,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as child,
    ):
        try:
            while line := _line(child):
                yield Measured(**json.loads(line))
            if child.wait(END_TIMEOUT_S):
                errors.seek(0)
                raise MeasureFailedError(reason(errors.read()))
        finally:
            _end(child)


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    watchdog = threading.Timer(SILENCE_S, child.terminate)
    watchdog.start()
    try:
        return child.stdout.readline()
    finally:
        watchdog.cancel()


def _end(child: subprocess.Popen[str]) -> None:
    """Also when nobody listens any more. A platform that it runs would outlive its being killed."""
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
