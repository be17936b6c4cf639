"""One measurement in a process of its own: `python -m tests.bench.loader.child ORDER`.

Imports everything, loads a tiny checkpoint so that nothing is done for the first time, touches
guest memory, brings the files into the state that is asked for and checks that they are in it;
then the clock starts. It stops when every page was touched. Prints one line of JSON.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.loader import loaders, ours
from tests.bench.loader.touch import HALF_PAGE_BYTES, PAGE_BYTES, Memory, spans, touch

import stoker_loader

BLOCK_BYTES = 8 << 20
MAX_COLD_SHARE = 0.01
MIN_WARM_SHARE = 0.999
RESET_PEAK = "5"  # proc(5): clear_refs sets the peak of the resident set to what it is now


@dataclass(frozen=True, slots=True)
class Order:
    """What to measure. `path` is what the loader gets, in a folder with nothing but the
    checkpoint; `rehearsal` is the same for the tiny one."""

    maker: str
    path: str
    rehearsal: str
    cold: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. `load_s` until the loader returned, `touch_s` until every page was touched
    thereafter, `again_s` for as many pages again, all of them there. `process_bytes` is the growth
    of the peak resident set and of the page tables, `cached_bytes` what the page cache holds of
    the files at the end without this process mapping it."""

    load_s: float
    touch_s: float
    again_s: float
    cpu_s: float
    tensors: int
    tensor_bytes: int
    seen: int
    process_bytes: int
    cached_bytes: int
    resident_share_before: float


def measure(order: Order) -> Outcome:
    make = {**loaders.MAKERS, **ours.MAKERS}[order.maker]
    load = make()
    rehearsal = load(order.rehearsal)
    touch(spans(rehearsal.values()))
    del rehearsal
    folder = Path(order.path).parent
    checkpoint_bytes = stoker_loader.residency(folder).checkpoint_bytes
    # Both at once: what the loader allocates and what the page cache takes.
    memory = Memory(checkpoint_bytes)
    if order.cold:
        read(folder)
    else:
        stoker_loader.evict(folder)
        stoker_loader.prefetch(folder)
    gc.collect()
    memory.give_back()
    share = evict(folder) if order.cold else resident_share(folder)
    if share > MAX_COLD_SHARE if order.cold else share < MIN_WARM_SHARE:
        raise RuntimeError(f"{share:.3f} of {folder} is in the page cache")
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before = Status.now()
    cpu_before = cpu_s()
    began = time.perf_counter()
    tensors = load(order.path)
    loaded = time.perf_counter()
    where = spans(tensors.values())
    seen = touch(where)
    touched = time.perf_counter()
    cpu = cpu_s() - cpu_before
    touch(where, HALF_PAGE_BYTES)
    again = time.perf_counter()
    after = Status.now()
    resident = stoker_loader.residency(folder).resident_bytes
    mapped = max(0, after.file_bytes - before.file_bytes)
    return Outcome(
        load_s=loaded - began,
        touch_s=touched - loaded,
        again_s=again - touched,
        cpu_s=cpu,
        tensors=len(tensors),
        tensor_bytes=sum(size_bytes for _, size_bytes in where),
        seen=seen,
        process_bytes=after.peak_bytes
        - before.resident_bytes
        + after.table_bytes
        - before.table_bytes,
        cached_bytes=max(0, resident - mapped),
        resident_share_before=share,
    )


@dataclass(frozen=True, slots=True)
class Status:
    """Memory as /proc/self/status counts it."""

    peak_bytes: int
    resident_bytes: int
    file_bytes: int
    table_bytes: int

    @staticmethod
    def now() -> Status:
        lines = Path("/proc/self/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return Status(
            *(int(fields[name].split()[0]) << 10 for name in ("VmHWM", "VmRSS", "RssFile", "VmPTE"))
        )


def cpu_s() -> float:
    """CPU seconds of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def read(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK_BYTES):
                pass


def evict(folder: Path) -> float:
    left = stoker_loader.evict(folder)
    return left.resident_bytes / left.checkpoint_bytes


def resident_share(folder: Path) -> float:
    found = stoker_loader.residency(folder)
    return found.resident_bytes / found.checkpoint_bytes


def main() -> None:
    order = Order(**json.loads(sys.argv[1]))
    # What a library prints must not end up beside the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    json.dump(asdict(measure(order)), answer)
    answer.flush()
    os._exit(0)  # no peer's teardown is waited for; everything was measured


if __name__ == "__main__":
    assert resource.getpagesize() == PAGE_BYTES
    main()
