"""CPU priority of workers: those that nobody waits for yield to those that serve.

A lowered priority can be raised again by root, or within RLIMIT_NICE (see setpriority(2)). Where
that is not allowed nothing is lowered, because it would stay so.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

BACKGROUND_NICE = 19
NORMAL_NICE = 0


def lower(pid: int) -> None:
    """Lets a process run on what others leave over; its future threads inherit that."""
    if _may_restore():
        _set(pid, BACKGROUND_NICE)


def restore(pid: int) -> None:
    """Gives every thread of a process its normal share."""
    if _may_restore():
        _set(pid, NORMAL_NICE)


def _set(pid: int, nice: int) -> None:
    # On Linux niceness belongs to a thread. One that ends meanwhile needs none.
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(task.name), nice)


def _may_restore() -> bool:
    """RLIMIT_NICE counts from 20 down: a limit of 20 - n allows niceness n."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NICE)
    unlimited = soft == resource.RLIM_INFINITY
    return os.geteuid() == 0 or unlimited or soft >= 20 - NORMAL_NICE
