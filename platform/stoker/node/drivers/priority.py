"""CPU priority of workers: those that nobody waits for yield to those that serve.

Two mechanisms, because which one counts depends on the machine. With autogroups (sched(7)) each
session has a niceness of its own and that of its processes counts only within it; a worker is a
session, and anyone may set its niceness between 0 and 19. Without them the niceness of each thread
counts; raising it again needs root or RLIMIT_NICE, and where that is missing it is not lowered,
because it would stay so.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

BACKGROUND_NICE = 19
NORMAL_NICE = 0


def lower(pid: int) -> None:
    """Lets a session leader run on what others leave over; its future threads inherit that."""
    _set(pid, BACKGROUND_NICE)


def restore(pid: int) -> None:
    """Gives a session and every thread of its leader their normal share."""
    _set(pid, NORMAL_NICE)


def _set(pid: int, nice: int) -> None:
    # The process may have ended; kernels without autogroups have no such file, and one that was
    # written to a moment ago refuses (EAGAIN) an unprivileged writer: then the old share stays.
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError, BlockingIOError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))
    if not _may_restore():
        return
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(task.name), nice)


def _may_restore() -> bool:
    """RLIMIT_NICE counts from 20 down: a limit of 20 - n allows niceness n."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NICE)
    return os.geteuid() == 0 or soft == resource.RLIM_INFINITY or soft >= 20 - NORMAL_NICE
