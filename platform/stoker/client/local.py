"""A platform of one's own: `stoker up` as a child process, for demos, benchmarks and tests."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stoker.errors import StartupFailed, StokerError

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
TAIL_LINES = 30


@dataclass(frozen=True, slots=True)
class LocalPlatform:
    """A running child: where it answers, and what it was started with."""

    url: str
    pid: int
    home: Path
    log: Path
    warm_pool: int


@contextmanager
def local_platform(
    home: Path,
    *,
    warm_pool: int = 1,
    listen: str = "127.0.0.1:0",
    options: Sequence[str] = (),
    start_timeout_s: float = START_TIMEOUT_S,
) -> Iterator[LocalPlatform]:
    """Runs `stoker up` on a free loopback port while the context is open.

    `options` are further ones of that command. The child says on a pipe when it serves; its log is
    `home/platform.log`. Raises `StartupFailed` with the log's tail when it ends or stays silent for
    `start_timeout_s`, and when it does not end by itself within `STOP_TIMEOUT_S` of being asked to.
    """
    home.mkdir(parents=True, exist_ok=True)
    log = home / "platform.log"
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb"), log.open("ab") as log_file:
        try:
            child = subprocess.Popen(  # noqa: S603 - our own program with our own arguments
                [
                    *(sys.executable, "-m", "stoker.cli", "up"),
                    *("--home", str(home), "--listen", listen),
                    *("--warm-pool", str(warm_pool), "--ready-fd", str(write_fd)),
                    *options,
                ],
                pass_fds=(write_fd,),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
            )
        finally:
            os.close(write_fd)
        try:
            line = _first_line(read_fd, start_timeout_s)
            if line is None:
                raise StartupFailed(
                    f"`stoker up` did not come up; its log {log} ends:\n{tail(log)}"
                )
            yield LocalPlatform(json.loads(line)["url"], child.pid, home, log, warm_pool)
        finally:
            _stop(child, log)


def _first_line(fd: int, timeout_s: float) -> bytes | None:
    """The first line from a pipe; None at its end or after `timeout_s` of silence."""
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([fd], [], [], timeout_s)
        piece = os.read(fd, 4096) if readable else b""
        if not piece:
            return None
        line += piece
    return line


def _stop(child: subprocess.Popen[bytes], log: Path) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        raise StartupFailed(
            f"`stoker up` did not stop within {STOP_TIMEOUT_S:g} s; its log ends:\n{tail(log)}"
        ) from None


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, for an error message."""
    try:
        with log.open(errors="replace") as file:
            return "".join(deque(file, maxlen=lines)).rstrip()
    except OSError as error:
        raise StokerError(f"cannot read {log}: {error.strerror}") from error
