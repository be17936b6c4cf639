"""One fetch over HTTP in a process of its own: `python -m tests.bench.loader.http_child ORDER`.

Imports everything, fetches the file once and drops it, then fetches it again against the clock,
while a second thread opens it as it arrives and waits for the first tensor, and where it is asked
to loads all of them. Prints a line of JSON.

The first fetch is what `touch.Memory` is elsewhere: the page cache then takes pages for the second
that this machine used a moment ago. With pages that the host had taken back, the same fetch took
up to four times the CPU.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch  # noqa: F401 - imports are not timed
from tests.bench.loader.touch import spans, touch

import stoker_loader

NOT_LOADED, AS_IT_ARRIVES, AFTERWARDS = "not loaded", "as it arrives", "afterwards"


@dataclass(frozen=True, slots=True)
class FetchOrder:
    """What to fetch to where. `digest` is a file with the chunks' digests as JSON; without it
    (None) the fetch is a first sight, which computes them. `loading` says when all tensors are
    loaded, by one of the words above."""

    url: str
    destination: str
    digest: str | None
    loading: str = NOT_LOADED


@dataclass(frozen=True, slots=True)
class Fetching:
    """What came of it. `fetch_s` is the whole call, `sync_s` the part of it after the last byte.
    `loaded_s` ends when every page of every tensor was touched; 0 where none was loaded."""

    size_bytes: int
    fetch_s: float
    sync_s: float
    first_tensor_s: float
    loaded_s: float
    cpu_s: float


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def fetch(order: FetchOrder) -> Fetching:
    """Raises what the loader raises."""
    expected = None
    if order.digest is not None:
        name, size_bytes, chunks = json.loads(Path(order.digest).read_text())
        expected = stoker_loader.FileDigest(name, size_bytes, tuple(chunks))
    destination = Path(order.destination)
    begun = threading.Event()  # the part file is there
    cpu_before = cpu_s()
    began = time.perf_counter()

    def read() -> tuple[float, float]:
        """Seconds until the first tensor and, if it loads, until all."""
        begun.wait()
        with stoker_loader.open_arriving(destination) as checkpoint:
            checkpoint.numpy(checkpoint.names[0])
            first_tensor_s = time.perf_counter() - began
            return first_tensor_s, load(checkpoint) if order.loading == AS_IT_ARRIVES else 0.0

    def load(checkpoint: stoker_loader.Checkpoint) -> float:
        tensors = checkpoint.load()
        touch(spans(tensors.values()))
        return time.perf_counter() - began

    with ThreadPoolExecutor(max_workers=1) as reader:
        reading = reader.submit(read)
        try:
            fetched = stoker_loader.fetch(
                order.url, destination, expected=expected, progress=lambda done, total: begun.set()
            )
        finally:
            begun.set()  # nobody waits for a fetch that never began
        ended = time.perf_counter()
        first_tensor_s, loaded_s = reading.result()
        if order.loading == AFTERWARDS:
            with stoker_loader.open(destination) as checkpoint:
                loaded_s = load(checkpoint)
        cpu = cpu_s() - cpu_before
    return Fetching(
        size_bytes=fetched.digest.size_bytes,
        fetch_s=ended - began,
        sync_s=fetched.stats.sync_s,
        first_tensor_s=first_tensor_s,
        loaded_s=loaded_s,
        cpu_s=cpu,
    )


def main() -> None:
    order = FetchOrder(**json.loads(sys.argv[1]))
    with tempfile.TemporaryDirectory(dir=Path(order.destination).parent) as folder:
        rehearsal = str(Path(folder) / Path(order.destination).name)
        fetch(replace(order, destination=rehearsal))
    print(json.dumps(asdict(fetch(order))))


if __name__ == "__main__":
    main()
