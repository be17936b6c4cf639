"""Disks that fail or are full, and files that are cut short while they are mapped."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import stoker_loader as sl
from stoker_loader import errors
from support.failing_disk import failing_disk, mount, unmount
from support.object_store import ObjectStore, served

MIB = 1 << 20
SMALL_DISK_BYTES = 4 * MIB


@pytest.fixture
def failing(disk: Path) -> Iterator[tuple[Path, int]]:
    """A file of 12 MiB on a disk that cannot read what is behind 8 MiB and one page."""
    folder = disk / "mounted"
    folder.mkdir()
    source = disk / "weights.safetensors"
    save_file({"w": torch.arange(3 * MIB, dtype=torch.int32)}, source)
    good_bytes = 8 * MIB + 4096
    with ExitStack() as stack:
        try:
            path = stack.enter_context(failing_disk(folder, source, good_bytes))
        except PermissionError as error:
            pytest.skip(f"no file system of our own can be mounted here: {error}")
        yield path, good_bytes


@pytest.fixture
def small_disk(disk: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = disk / "small"
    folder.mkdir()
    try:
        mount("tmpfs", folder, f"size={SMALL_DISK_BYTES}")
    except PermissionError as error:
        pytest.skip(f"no disk of our own can be mounted here: {error}")
    try:
        yield folder
    finally:
        unmount(folder)


def free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_bsize


# --- a disk that cannot read --------------------------------------------------------------------


def assert_disk_failed(error: errors.StorageError, path: Path, offset: int) -> None:
    assert (error.errno, error.file, error.offset) == (errno.EIO, str(path), offset)


def test_pages_that_cannot_be_read_are_an_error(failing: tuple[Path, int]) -> None:
    path, good_bytes = failing
    with sl.open(path) as checkpoint, pytest.raises(errors.StorageError) as raised:
        checkpoint.load()
    assert_disk_failed(raised.value, path, good_bytes)
    with pytest.raises(errors.StorageError) as raised:
        sl.prefetch(path)
    assert_disk_failed(raised.value, path, good_bytes)


def test_a_digest_of_bytes_that_cannot_be_read_is_an_error(failing: tuple[Path, int]) -> None:
    path, good_bytes = failing
    with pytest.raises(errors.StorageError) as raised:
        sl.digest(path)
    assert_disk_failed(raised.value, path, good_bytes)


def test_a_layout_of_bytes_that_cannot_be_read_leaves_nothing(
    failing: tuple[Path, int], disk: Path
) -> None:
    path, _ = failing
    before = sorted(disk.iterdir())
    with pytest.raises(errors.StorageError) as raised:
        sl.layout(path, disk / "aligned")
    assert raised.value.errno == errno.EIO
    assert raised.value.tensor == "w"
    assert sorted(disk.iterdir()) == before


def test_a_header_that_cannot_be_read_is_an_error(disk: Path) -> None:
    folder = disk / "mounted"
    folder.mkdir()
    source = disk / "weights.safetensors"
    save_file({"w": torch.zeros(1)}, source)
    with ExitStack() as stack:
        try:
            path = stack.enter_context(failing_disk(folder, source, 0))
        except PermissionError as error:
            pytest.skip(f"no file system of our own can be mounted here: {error}")
        with pytest.raises(errors.StorageError) as raised:
            sl.open(path)
    assert (raised.value.errno, raised.value.file) == (errno.EIO, str(path))


# --- a process that a mapped file ends ----------------------------------------------------------

CHILD = """
import os, resource, sys, stoker_loader as sl

path, calls, length = sys.argv[1], *map(int, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for _ in range(calls):
    sl.explain_bus_errors()
tensor = sl.open(path).tensor("w")
if length:
    os.truncate(path, length)
print(tensor[-1].item())
"""


def read_in_child(path: Path, calls: int, length: int = 0) -> subprocess.CompletedProcess[str]:
    """Reads the last number of a file, and of one that is cut to `length` before."""
    command = [sys.executable, "-c", CHILD, str(path), str(calls), str(length)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("calls", [1, 2])
def test_a_file_that_is_truncated_while_it_is_mapped_is_named(large: Path, calls: int) -> None:
    last = large.stat().st_size - 4
    ended = read_in_child(large, calls, 9 * MIB)
    assert ended.returncode == -signal.SIGBUS
    assert ended.stderr == (
        f"stoker_loader: {large}: byte {last} is mapped, and the file has only {9 * MIB} bytes"
        " now: it was truncated while it was open. Replace checkpoints by renaming, never in"
        " place. The process ends with SIGBUS.\n"
    )


def test_nothing_is_said_unless_it_is_asked_for(large: Path) -> None:
    ended = read_in_child(large, 0, 9 * MIB)
    assert (ended.returncode, ended.stderr) == (-signal.SIGBUS, "")


def test_a_page_that_cannot_be_read_is_named(failing: tuple[Path, int]) -> None:
    path, _ = failing
    last = path.stat().st_size - 4
    ended = read_in_child(path, 1)
    assert ended.returncode == -signal.SIGBUS
    assert f"stoker_loader: {path}: byte {last} is mapped, and could not be" in ended.stderr


def test_what_handled_the_signal_before_still_does(large: Path) -> None:
    program = "import faulthandler; faulthandler.enable()" + CHILD
    command = [sys.executable, "-c", program, str(large), "1", str(9 * MIB)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGBUS
    first, _, rest = ended.stderr.partition("\n")
    assert first.startswith(f"stoker_loader: {large}: byte ")
    assert "Fatal Python error: Bus error" in rest


def test_a_signal_that_someone_sends_ends_the_process_without_a_word() -> None:
    program = (
        "import os, signal, stoker_loader as sl\n"
        "sl.explain_bus_errors()\n"
        "os.kill(os.getpid(), signal.SIGBUS)"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGBUS, "")


# --- a disk that is full ------------------------------------------------------------------------


def test_a_fetch_without_room_fails_at_once_and_gives_back_what_it_took(small_disk: Path) -> None:
    before = free_bytes(small_disk)
    with served(ObjectStore(bytes(SMALL_DISK_BYTES + 1))) as store:
        with pytest.raises(errors.StorageError) as raised:
            sl.fetch(store.url, small_disk / "weights")
        assert store.ranges == [], "nothing was fetched"
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.file == str(small_disk / "weights.part")
    assert before - free_bytes(small_disk) <= 2 * os.sysconf("SC_PAGE_SIZE")


FETCH = """
import sys, stoker_loader as sl
try:
    sl.fetch(sys.argv[1], sys.argv[2])
except sl.errors.StorageError as error:
    print(error.errno, error.file)
"""


def test_a_fetch_without_room_for_its_map_is_an_error_and_no_signal(small_disk: Path) -> None:
    (small_disk / "full").write_bytes(bytes(free_bytes(small_disk)))
    target = small_disk / "weights"
    with served(ObjectStore(bytes(10))) as store:
        command = [sys.executable, "-c", FETCH, store.url, str(target)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, f"{errno.ENOSPC} {target}.part.map\n")


def test_a_fetch_goes_on_when_there_is_room_again(small_disk: Path) -> None:
    filler = small_disk / "full"
    filler.write_bytes(bytes(SMALL_DISK_BYTES // 2))
    body = os.urandom(SMALL_DISK_BYTES * 3 // 4)
    with served(ObjectStore(body)) as store:
        with pytest.raises(errors.StorageError):
            sl.fetch(store.url, small_disk / "weights")
        filler.unlink()
        sl.fetch(store.url, small_disk / "weights")
    assert (small_disk / "weights").read_bytes() == body


def test_a_layout_without_room_leaves_nothing(small_disk: Path, disk: Path) -> None:
    source = disk / "weights.safetensors"
    save_file({"w": torch.zeros(SMALL_DISK_BYTES, dtype=torch.uint8)}, source)
    before = free_bytes(small_disk)
    with pytest.raises(errors.StorageError) as raised:
        sl.layout(source, small_disk / "aligned")
    assert raised.value.errno == errno.ENOSPC
    assert str(raised.value.file).endswith("/model.safetensors")
    assert list(small_disk.iterdir()) == []
    assert free_bytes(small_disk) == before


def test_a_file_beyond_what_the_process_may_write_is_an_error(disk: Path) -> None:
    """The same without a right to mount anything: a limit of the process's own."""
    source = disk / "weights.safetensors"
    save_file({"w": torch.zeros(2 * MIB, dtype=torch.uint8)}, source)
    program = (
        "import resource, sys, stoker_loader as sl\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({MIB}, {MIB}))\n"
        "try:\n"
        "    sl.layout(sys.argv[1], sys.argv[2])\n"
        "except sl.errors.StorageError as error:\n"
        "    print(error.errno)\n"
    )
    command = [sys.executable, "-c", program, str(source), str(disk / "aligned")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, f"{errno.EFBIG}\n")
    assert list(disk.iterdir()) == [source]
