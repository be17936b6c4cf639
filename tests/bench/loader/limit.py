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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.loader.processes import MeasureFailedError, reason, run_module
from tests.bench.stats import median

MIB = 1 << 20
FIO_TIMEOUT_S = 120
# What fio reads: of a larger file the beginning, a smaller one several times.
PASS_BYTES = 2 << 30
MAX_LOOPS = 8
# fio touches its buffers when it reads into them for the first time: that part does not count,
# where enough is read to leave it out.
RAMP = "200ms"
MIN_RAMP_BYTES = 1 << 30
MAX_WAYS = 3  # that take part in every round
TRIALS = 3  # of every way, in turns: a shared disk's rate changes from one second to the next


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


def best_ways(file: Path, tell: Callable[[str], None]) -> list[Way]:
    """The fastest of all on this file, by a few trials each. None where nothing can read so."""
    rates: dict[Way, list[float]] = {way: [] for way in ways()}
    for _ in range(TRIALS):
        for way in list(rates):
            try:
                rates[way].append(way.bytes_per_s(file))
            except MeasureFailedError as error:
                tell(f"  {way}: {error}")
                del rates[way]
    for way, found in rates.items():
        tell(f"  {way}: {', '.join(f'{rate / 1e9:.2f}' for rate in found)} GB/s")
    return sorted(rates, key=lambda way: median(rates[way]), reverse=True)[:MAX_WAYS]


def fio_bytes_per_s(way: Way, file: Path) -> float:
    """What fio reports of reading a file that it must not write."""
    jobs = way.depth if way.engine == "psync" else 1
    file_bytes = file.stat().st_size
    # Each job has a part of the file, in whole blocks; a remainder of less is not read.
    part_bytes = min(file_bytes, PASS_BYTES) // jobs // MIB * MIB
    loops = min(max(1, PASS_BYTES // file_bytes), MAX_LOOPS)
    ramp = [f"--ramp_time={RAMP}"] if file_bytes * loops >= MIN_RAMP_BYTES else []
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
        f"--loops={loops}",
        *ramp,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FIO_TIMEOUT_S)
    if done.returncode:
        raise MeasureFailedError(f"fio: {reason(done.stderr or done.stdout)}")
    read = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]
    if not read["runtime"]:
        raise MeasureFailedError("fio was done before it began to count")
    return float(read["io_bytes"] / (read["runtime"] / 1000))


def main() -> None:
    from tests.bench.disk import DiskRate

    file, readers, block_bytes = sys.argv[1:]
    sys.stdout.write(str(DiskRate(int(readers), int(block_bytes)).bytes_per_s([Path(file)])))


if __name__ == "__main__":
    main()
