"""The disk's limit on one file: the best that reading it past the page cache gives.

fio's psync and io_uring engines over queue depths where fio is there, and always our own threads
of O_DIRECT reads into buffers that were touched ahead. `python -m tests.bench.loader.limit FILE
READERS BLOCK_BYTES` is one pass of the latter in a process of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.bench.loader.processes import MeasureFailedError, reason, run_module

MIB = 1 << 20
FIO_TIMEOUT_S = 120
# fio touches its buffers only when it reads into them; the first pass does, the others count less.
FIO_LOOPS = 3


@dataclass(frozen=True, slots=True)
class Way:
    """One way of reading a file: `depth` requests of `block_bytes` under way at a time."""

    engine: str  # "threads" (ours), or fio's "psync" or "io_uring"
    depth: int
    block_bytes: int = 8 * MIB

    def __str__(self) -> str:
        return f"{self.engine} x{self.depth}, {self.block_bytes // MIB} MiB"

    def bytes_per_s(self, file: Path) -> float:
        """One pass. Raises MeasureFailedError."""
        if self.engine == "threads":
            return float(
                run_module(
                    "tests.bench.loader.limit", str(file), str(self.depth), str(self.block_bytes)
                )
            )
        return fio_bytes_per_s(self, file)


def ways() -> tuple[Way, ...]:
    """All that are tried."""
    found = [Way("threads", depth) for depth in (4, 8, 16)]
    if shutil.which("fio"):
        found += [Way("psync", depth) for depth in (4, 8, 16)]
        found += [Way("io_uring", depth) for depth in (4, 8, 16, 32)]
        found += [Way("psync", 8, MIB), Way("io_uring", 32, MIB)]
    return tuple(found)


def fio_bytes_per_s(way: Way, file: Path) -> float:
    """What fio reports for `FIO_LOOPS` passes over a file that it must not write."""
    jobs = way.depth if way.engine == "psync" else 1
    # Each job has a part of the file, in whole blocks; a remainder of less is not read.
    part_bytes = file.stat().st_size // jobs // MIB * MIB
    command = [
        "fio",
        "--name=limit",
        "--readonly",
        "--rw=read",
        "--direct=1",
        "--thread",
        "--group_reporting",
        "--output-format=json",
        f"--filename={file}",
        f"--ioengine={way.engine}",
        f"--bs={min(way.block_bytes, part_bytes)}",
        f"--size={part_bytes}",
        f"--offset_increment={part_bytes}",
        f"--numjobs={jobs}",
        f"--iodepth={way.depth // jobs}",
        f"--loops={FIO_LOOPS}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FIO_TIMEOUT_S)
    if done.returncode:
        raise MeasureFailedError(f"fio: {reason(done.stderr or done.stdout)}")
    read = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]
    return float(read["io_bytes"] / (read["runtime"] / 1000))


def main() -> None:
    from tests.bench.disk import DiskRate

    file, readers, block_bytes = sys.argv[1:]
    sys.stdout.write(str(DiskRate(int(readers), int(block_bytes)).bytes_per_s([Path(file)])))


if __name__ == "__main__":
    main()
