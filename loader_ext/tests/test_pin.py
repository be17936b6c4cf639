"""Pinned files: what survives, what is refused, and what it leaves behind."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import stoker_loader as sl
from stoker_loader import errors

CAP_IPC_LOCK = 14

# Prints what happens to a process with this RLIMIT_MEMLOCK and without CAP_IPC_LOCK.
CHILD = f"""
import ctypes, resource, sys

class Head(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

class Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]

limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
libc = ctypes.CDLL(None, use_errno=True)
head, sets = Head(0x20080522, 0), (Sets * 2)()  # capget(2), version 3
assert libc.capget(ctypes.byref(head), sets) == 0
for one in ("effective", "permitted"):
    setattr(sets[0], one, getattr(sets[0], one) & ~(1 << {CAP_IPC_LOCK}))
assert libc.capset(ctypes.byref(head), sets) == 0

import stoker_loader as sl
try:
    with sl.pin(sys.argv[1]) as pin:
        print("pinned", pin.pinned_bytes)
except sl.LoaderError as error:
    print(type(error).__name__, error)
"""


def may_pin() -> bool:
    """Whether this process may lock the files of these tests."""
    effective = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line
    )
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    allowed = soft == resource.RLIM_INFINITY or soft >= 256 << 20
    return bool(int(effective.split()[1], 16) >> CAP_IPC_LOCK & 1) or allowed


needs_right = pytest.mark.skipif(not may_pin(), reason="RLIMIT_MEMLOCK is too low to pin here")


def locked_bytes() -> int:
    """What the kernel says that this process has locked."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmLck"))


def huge_bytes(path: Path) -> int:
    """What this process maps of a file in huge pages."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = line.endswith(str(path))
        elif ours and line.startswith("FilePmdMapped"):
            found += int(line.split()[1]) << 10
    return found


def in_child(path: Path, limit_bytes: int) -> str:
    command = [sys.executable, "-c", CHILD, str(path), str(limit_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


@needs_right
def test_what_is_pinned_survives_evict(large: Path) -> None:
    size = large.stat().st_size
    sl.evict(large)
    with sl.pin(large) as pin:
        assert pin.pinned_bytes == size
        assert locked_bytes() >= size
        assert sl.evict(large) == sl.Residency(size, size)
        assert f"pinned_bytes={size}" in repr(pin)
    assert (pin.pinned_bytes, locked_bytes()) == (0, 0)
    assert sl.evict(large) == sl.Residency(size, 0)


@needs_right
def test_pinning_neither_copies_nor_splits(large: Path) -> None:
    sl.evict(large)
    with sl.open(large) as checkpoint:
        checkpoint.populate()
        huge = huge_bytes(large)
    del checkpoint
    before = resource.getrusage(resource.RUSAGE_SELF)
    with sl.pin(large):
        assert huge_bytes(large) == huge
        anonymous = sum(
            int(line.split()[1])
            for line in Path("/proc/self/smaps_rollup").read_text().splitlines()
            if line.startswith("Locked")
        )
        assert anonymous << 10 >= large.stat().st_size
    after = resource.getrusage(resource.RUSAGE_SELF)
    # A copy of each page would be 16,384 faults of small pages, or 32 of huge ones that the
    # locked mapping would no longer show as the file's.
    assert after.ru_minflt - before.ru_minflt < large.stat().st_size / 4096 / 4


@needs_right
def test_a_directory_is_pinned_whole_and_by_several(sharded: tuple[Path, dict]) -> None:
    directory, _ = sharded
    (directory / "empty").touch()
    size = sum(path.stat().st_size for path in directory.iterdir())
    first, second = sl.pin(directory), sl.pin(directory, threads=1)
    assert first.pinned_bytes == second.pinned_bytes == size
    sl.unpin(first)
    sl.unpin(first)
    assert sl.evict(directory).resident_bytes == size
    sl.unpin(second)
    assert sl.evict(directory).resident_bytes == 0


@needs_right
def test_progress_and_what_it_raises(large: Path) -> None:
    seen: list[tuple[int, int]] = []
    sl.pin(large, lambda done, total: seen.append((done, total))).close()
    size = large.stat().st_size
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)

    def stop(done: int, total: int) -> None:
        raise RuntimeError("enough")

    sl.evict(large)
    with pytest.raises(RuntimeError, match="enough"):
        sl.pin(large, stop, threads=1)
    assert locked_bytes() == 0
    assert sl.residency(large).resident_bytes < size


@pytest.mark.parametrize("limit_bytes", [0, 1 << 20])
def test_without_the_right_the_limit_is_named_and_nothing_is_read(
    large: Path, limit_bytes: int
) -> None:
    sl.evict(large)
    told = in_child(large, limit_bytes)
    assert told.startswith(f"PinRefusedError {large}: its {large.stat().st_size} bytes may not")
    assert f"limit of this process is {limit_bytes} bytes in all" in told
    assert "ulimit -l" in told
    assert "CAP_IPC_LOCK" in told
    assert sl.residency(large).resident_bytes == 0


def test_a_limit_is_a_limit_for_all_files(sharded: tuple[Path, dict]) -> None:
    files = sorted(sharded[0].glob("*.safetensors"))
    first = files[0].stat().st_size
    room = -(-first // os.sysconf("SC_PAGESIZE")) * os.sysconf("SC_PAGESIZE")
    assert in_child(files[0], room) == f"pinned {first}"
    assert in_child(sharded[0], room).startswith("PinRefusedError")


def test_nothing_there(disk: Path) -> None:
    with pytest.raises(errors.CheckpointNotFoundError):
        sl.pin(disk / "gone")
