"""Runs a program in a child whose kernel refuses some system calls, by a real filter (seccomp)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from stoker_loader.conversion import system_calls

NUMBERS = {
    "x86_64": {"io_uring_setup": 425, "madvise": 28},
    "aarch64": {"io_uring_setup": 425, "madvise": 233},
}.get(platform.machine(), {})
SKIP = "no system call numbers are known for this processor"

PROGRAM = """
import json, sys
import torch
import stoker_loader as sl
from forbid import enter

path, source, forbidden = sys.argv[1], sys.argv[2], sys.argv[3:]
enter(forbidden)
with sl.open(path) as checkpoint:
    try:
        tensors = checkpoint.load(source=source)
    except sl.LoaderError as error:
        print(json.dumps({"code": error.code, "message": str(error)}))
        raise SystemExit
    stats = checkpoint.stats
found = sl.backends(path)
print(json.dumps({
    "source": stats.source,
    "refused_sources": dict(stats.refused_sources),
    "sums": {name: int(t.view(torch.uint8).to(torch.int64).sum()) for name, t in tensors.items()},
    "host": found.host, "device": found.device, "refused": dict(found.refused),
}))
"""


def enter(names: list[str]) -> None:
    """Make the kernel refuse (EPERM) these system calls to this process, for good."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges = 38
    assert libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0
    architecture, seccomp, _ = system_calls.ARCHITECTURES[platform.machine()]
    steps = system_calls._instructions(architecture, sorted(NUMBERS[name] for name in names))
    program = system_calls._Program(len(steps) // system_calls.INSTRUCTION_BYTES, steps)
    done = libc.syscall(
        ctypes.c_long(seccomp),
        ctypes.c_uint(system_calls.SECCOMP_SET_MODE_FILTER),
        ctypes.c_uint(system_calls.SECCOMP_FILTER_FLAG_TSYNC),
        ctypes.byref(program),
    )
    assert done == 0, os.strerror(ctypes.get_errno())


def load(path: Path, source: str, *forbidden: str) -> dict:
    """What a load in such a child finds: see PROGRAM."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), source, *forbidden],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert done.returncode == 0, done.stderr
    found: dict = json.loads(done.stdout)
    return found
