"""One measurement in a process of its own: `python -m tests.bench.loader.child ORDER`.

Imports everything, loads a tiny checkpoint so that nothing is done for the first time, says READY
and waits for a line. Then it touches guest memory, brings the files into the state that is asked
for and checks that they are in it, and the clock starts. It stops when every page was touched.
Prints a line of JSON, and keeps as much memory as it took until another line comes: so it passes,
still warm, to the process that is measured next.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.loader import loaders, ours
from tests.bench.loader.touch import HALF_PAGE_BYTES, Memory, spans, touch

import stoker_loader

BLOCK_BYTES = 8 << 20
READY = "ready"
MAX_COLD_SHARE = 0.01
MIN_WARM_SHARE = 0.999
MAX_EVICTIONS = 20
MAX_WARMINGS = 5
EVICTION_PAUSE_S = 0.05
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
    thereafter, which took `touch_faults` page faults, `again_s` for as many pages again, all of
    them there. `process_bytes` is the growth
    of the peak resident set and of the page tables, `cached_bytes` what the page cache holds of
    the files at the end without this process mapping it."""

    load_s: float
    touch_s: float
    touch_faults: int
    again_s: float
    cpu_s: float
    tensors: int
    tensor_bytes: int
    seen: int
    process_bytes: int
    cached_bytes: int
    resident_share_before: float


def rehearsed(order: Order) -> loaders.Load:
    """The loader, after its first load."""
    load = {**loaders.MAKERS, **ours.MAKERS}[order.maker]()
    tensors = load(order.rehearsal)
    touch(spans(tensors.values()))
    return load


def measure(order: Order, load: loaders.Load) -> Outcome:
    """Raises RuntimeError if the files are not in the state that the order asks for."""
    folder = Path(order.path).parent
    # Both at once: what the loader allocates and what the page cache takes.
    memory = Memory(folder_bytes(folder))
    stoker_loader.evict(folder)
    if not order.cold:
        load_before(order, load)
    if order.cold or resident_share(folder) < MIN_WARM_SHARE:
        stoker_loader.prefetch(folder)
    read(folder)
    gc.collect()
    memory.give_back()
    share = evict(folder) if order.cold else warm(folder)
    if share > MAX_COLD_SHARE if order.cold else share < MIN_WARM_SHARE:
        raise RuntimeError(f"{share:.3f} of {folder} is in the page cache")
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before = Status.now()
    cpu_before = cpu_s()
    began = time.perf_counter()
    tensors = load(order.path)
    loaded = time.perf_counter()
    where = spans(tensors.values())
    faults_before = page_faults()
    seen = touch(where)
    touched = time.perf_counter()
    faults = page_faults() - faults_before
    cpu = cpu_s() - cpu_before
    touch(where, HALF_PAGE_BYTES)
    again = time.perf_counter()
    after = Status.now()
    resident = stoker_loader.residency(folder).resident_bytes
    mapped = max(0, after.file_bytes - before.file_bytes)
    return Outcome(
        load_s=loaded - began,
        touch_s=touched - loaded,
        touch_faults=faults,
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


def load_before(order: Order, load: loaders.Load) -> None:
    """What is resident came in by this loader's own hand: in which folios, and by whose idea of
    what is read next, decides what it costs to map it again."""
    tensors = load(order.path)
    touch(spans(tensors.values()))


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


def page_faults() -> int:
    """Of all threads of this process, whether a disk was read for them or not."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt + used.ru_majflt


def read(folder: Path) -> None:
    """Reads the files by the processor: pages that a disk has filled, and no processor touched, are
    ones that a host may not have mapped yet, which costs whoever touches them first."""
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK_BYTES):
                pass


def evict(folder: Path) -> float:
    """Drops the files' pages; the share that is left. What the kernel itself holds just then, to
    move it or to see its age, is not dropped: so it is asked more than once."""
    for _ in range(MAX_EVICTIONS):
        receive_on_every_processor()
        left = stoker_loader.evict(folder)
        share = left.resident_bytes / left.checkpoint_bytes
        if share <= MAX_COLD_SHARE:
            break
        time.sleep(EVICTION_PAUSE_S)
    return share


def warm(folder: Path) -> float:
    """The share of a folder's bytes that stays in the page cache, from which the kernel may have
    taken some for what it had to make room for."""
    for _ in range(MAX_WARMINGS):
        share = resident_share(folder)
        if share >= MIN_WARM_SHARE:
            break
        stoker_loader.prefetch(folder)
        read(folder)
    return share


def receive_on_every_processor() -> None:
    """Lets go of pages that a server has sent from the page cache (`sendfile`). A packet that is
    done with goes back to the processor that made it, which frees it with the next packet that it
    receives (`skb_attempt_defer_free` in Linux): on a quiet network never."""
    allowed = os.sched_getaffinity(0)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.bind(("127.0.0.1", 0))
            for processor in allowed:
                os.sched_setaffinity(0, {processor})
                own.sendto(b"x", own.getsockname())
    finally:
        os.sched_setaffinity(0, allowed)


def resident_share(folder: Path) -> float:
    found = stoker_loader.residency(folder)
    return found.resident_bytes / found.checkpoint_bytes


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    order = Order(**json.loads(sys.argv[1]))
    # What a library prints must not end up beside the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    load = rehearsed(order)
    answers.write(READY + "\n")
    if not sys.stdin.readline():
        return  # nobody waits for it any more
    outcome = measure(order, load)
    gc.collect()
    folder = Path(order.path).parent
    keep = Memory(folder_bytes(folder))
    answers.write(json.dumps(asdict(outcome)) + "\n")
    sys.stdin.readline()
    keep.give_back()
    if order.cold:
        stoker_loader.evict(folder)
    os._exit(0)  # no peer's teardown is waited for; everything was measured


if __name__ == "__main__":
    main()
