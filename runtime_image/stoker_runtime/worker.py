"""One worker process, from its first instruction to its exit code.

The order matters. The process ties its life to its parent's before anything slow, so that no
orphan outlives a killed agent; then it imports what every instance needs, runs one tiny forward,
listens, and says on the ready pipe that it is blank.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NoReturn

DEFAULT_DRAIN_S = 10
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class ExitCode(IntEnum):
    """Why a worker ended; a supervisor reads it."""

    DRAINED = 0  # told to stop, and stopped
    BROKEN = 1  # a bug; the log has a traceback
    BAD_USAGE = 2  # arguments that make no sense (argparse's own code)
    ORPHANED = 3  # the parent was gone before life could be tied to it
    LOAD_FAILED = 4  # FailedEvent was sent; the instance never became ready


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker is started."""

    socket_path: str
    parent_pid: int | None  # None where the parent is in another PID namespace (a container)
    ready_fd: int | None
    drain_s: int


def main(argv: Sequence[str]) -> NoReturn:
    """Lives one worker's life and exits with an `ExitCode`."""
    options = _parse(argv)
    if options.parent_pid is not None:
        tie_life_to(options.parent_pid)
    _write_lines_at_once()

    from stoker_runtime.logs import log_to_stderr

    log_to_stderr()
    try:
        code = _live(options)
    except Exception:
        logging.getLogger(__name__).exception("the worker broke")
        code = ExitCode.BROKEN
    sys.stdout.flush()
    sys.stderr.flush()
    # A user's thread that never returns would hold up the interpreter's own exit for ever.
    os._exit(code)


def _live(options: WorkerOptions) -> ExitCode:
    gc.disable()  # nothing that imports make is garbage, but the collector would go looking
    from stoker_loader import explain_bus_errors
    from stoker_runtime.serve import serve
    from stoker_runtime.warmup import warm_up

    explain_bus_errors()
    # libgomp keeps a pool of compute threads for each thread that ever computed, and stops
    # spinning once all pools together outnumber the processors: decoding would lose a third of its
    # speed. A thread that ends takes its pool along, so nothing computes on the main thread.
    warming = threading.Thread(target=warm_up, name="warm up")
    warming.start()
    warming.join()
    gc.freeze()
    gc.enable()
    return serve(options, on_listening=lambda: _announce(options.ready_fd))


def tie_life_to(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent dies, see prctl(2), PR_SET_PDEATHSIG.

    The signal follows the parent's *thread* that spawned us: spawn from one that lives as long
    as the parent. Exits at once when the parent has died already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent_pid:
        sys.exit(ExitCode.ORPHANED)


def process_age_ms() -> float:
    """Milliseconds since the kernel started this process (10 ms resolution, see proc(5))."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:  # noqa: PTH123
        after_name = stat.read().rpartition(")")[2].split()
    started_ticks = int(after_name[19])  # field 22, starttime
    started_s = started_ticks / os.sysconf("SC_CLK_TCK")
    return (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s) * 1000


def _announce(ready_fd: int | None) -> None:
    if ready_fd is None:
        return
    line = json.dumps({"blank_ms": round(process_age_ms(), 1), "pid": os.getpid()})
    with os.fdopen(ready_fd, "w", encoding="ascii") as pipe:
        pipe.write(line + "\n")


def _write_lines_at_once() -> None:
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True)


def _parse(argv: Sequence[str]) -> WorkerOptions:
    parser = argparse.ArgumentParser(prog="stoker_runtime", description=main.__doc__)
    parser.add_argument("--socket", required=True, help="Unix socket to create and listen on")
    parser.add_argument("--parent-pid", type=int, help="die when this parent does")
    parser.add_argument("--ready-fd", type=int, help="where to write one JSON line when blank")
    parser.add_argument(
        "--drain-s",
        type=int,
        default=DEFAULT_DRAIN_S,
        help="seconds that requests under way get after SIGTERM (default: %(default)s)",
    )
    given = parser.parse_args(argv)
    return WorkerOptions(
        socket_path=given.socket,
        parent_pid=given.parent_pid,
        ready_fd=given.ready_fd,
        drain_s=given.drain_s,
    )
