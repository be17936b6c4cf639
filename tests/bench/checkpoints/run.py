"""Measures what the plan asks for, stage after stage, and gathers the report."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.checkpoints import starts, uploads
from tests.bench.checkpoints.judge import judge
from tests.bench.checkpoints.lines import NOTE, Measured, heard
from tests.bench.checkpoints.models import SIZES, servable
from tests.bench.checkpoints.plan import Plan
from tests.bench.checkpoints.results import (
    DRAM,
    EMPTY,
    EVICTION,
    SSD,
    UPLOAD,
    Results,
    Starts,
    Upload,
)
from tests.bench.loader.network import LOOPBACK, Link, NoLinkError, shaped
from tests.bench.loader.processes import QUIET, MeasureFailedError
from tests.bench.machine import commit, machine
from tests.bench.report import Report
from tests.support.minio import Minio, executable, running
from tests.support.zipf_requests import POLICIES, byte_hit_rate, requests

# What ends a stage: a measurement, a server that does not start, a disk, a program.
STOPPING = (MeasureFailedError, RuntimeError, OSError, subprocess.SubprocessError)
DIRECT = {"NO_PROXY": "*", "no_proxy": "*"}  # no proxy stands between the ends of a link
ROWS = (EMPTY, SSD, DRAM, UPLOAD, EVICTION)
STARTS = (EMPTY, SSD, DRAM)
FAILED = "not measured:"
BUCKET = "shelf"

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Bench:
    """One run: `models` are what `make models` prepared, `data` is kept between runs, and
    `scratch`, on the disk that is measured, is not."""

    plan: Plan
    models: Path
    data: Path
    scratch: Path
    tell: Tell
    notes: list[str] = field(default_factory=list)
    results: Results = field(default_factory=Results)

    def note(self, text: str) -> None:
        # Notes are published: where on this machine the files are is nobody's business.
        text = text.replace(f"{self.scratch}/", "").replace(f"{self.data}/", "")
        self.notes.append(" ".join(text.split()))  # each is one line of a list
        self.tell(self.notes[-1])

    def model(self, size: str) -> Path:
        return servable(size, self.models, self.data, self.tell)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for one stage. Its name is short, since paths of Unix sockets must be."""
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="") as folder:
            yield Path(folder)

    def hear(
        self,
        what: str,
        module: str,
        order: str,
        before: tuple[str, ...],
        server: Minio,
        **extra: str,
    ) -> Iterator[Measured]:
        """What a process says that finds the server in its environment; notes are kept."""
        environment = {**os.environ, **QUIET, **DIRECT, **server.environment, **extra}
        with closing(heard(module, order, before=before, environment=environment)) as lines:
            for one in lines:
                if one.what == NOTE:
                    self.note(f"{what}: {one.name}")
                    continue
                self.tell(f"  {what} {shown(one)}")
                yield one


def run(bench: Bench, root: Path, rows: Iterable[str]) -> Report:
    """Measures `rows` (of `ROWS`) and judges them; `bench.tell` hears each measurement as it
    comes."""
    began = time.monotonic()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    head, dirty = commit(root)
    here = machine(bench.scratch)
    version = server_version()
    gather(bench, set(rows))
    report = Report(
        started_at=started_at,
        duration_s=round(time.monotonic() - began, 1),
        commit=head,
        dirty=dirty,
        machine=here,
        parameters={**bench.plan.parameters(), **version},
        notes=bench.notes,
        rows=judge(bench.results),
    )
    for row in report.rows:
        verdict = {True: "met   ", False: "MISSED", None: "      "}[row.passed]
        bench.tell(f"{verdict} {row.question}: {row.figure}")
    return report


def gather(bench: Bench, rows: set[str]) -> None:
    """Measures stage after stage."""
    stages: list[tuple[str, Callable[[], None]]] = []
    kinds = tuple(kind for kind in STARTS if kind in rows)
    if kinds:
        stages += [
            (f"cold starts of {size}", lambda size=size: start_over_links(bench, size, kinds))
            for size in bench.plan.sizes
        ]
    if UPLOAD in rows:
        stages.append(("upload", lambda: upload(bench)))
    if EVICTION in rows:
        stages.append(("eviction", lambda: simulate_eviction(bench)))
    for name, measure in stages:
        bench.tell(f"{name} ...")
        attempt(bench, name, measure)


def attempt(bench: Bench, name: str, measure: Callable[[], None]) -> None:
    """One stage; what fails is noted, and costs no other."""
    try:
        measure()
    except STOPPING as error:
        bench.note(f"{FAILED} {name}: {error}")


def start_over_links(bench: Bench, size: str, kinds: tuple[str, ...]) -> None:
    """All kinds over the shaped link; over loopback what has to be known of it, and what the shaped
    link could not be had for."""
    left = set(kinds)
    if EMPTY in kinds:
        try:
            with shaped() as link:
                start(bench, size, link, kinds)
                left = {EMPTY}
        except NoLinkError as error:
            if left == set(kinds):  # and not while it was taken down
                bench.note(f"no figure of {size} over a shaped link: {error}")
        except STOPPING as error:
            bench.note(f"{FAILED} {size} over a shaped link: {error}")
    start(bench, size, LOOPBACK, tuple(kind for kind in kinds if kind in left))


def start(bench: Bench, size: str, link: Link, kinds: tuple[str, ...]) -> None:
    """Cold starts of one checkpoint at the end of one link. Raises MeasureFailedError."""
    what = f"{size} over {link.name}"
    found = Starts()
    with (
        bench.folder() as folder,
        running(folder / "minio", host=link.address, before=link.at_server) as server,
    ):
        order = starts.Order(
            checkpoint=str(bench.model(size)),
            bucket=BUCKET,
            served=str(server.folder / "data" / BUCKET),
            home=str(folder / "home"),
            kinds=kinds,
            runs=bench.plan.runs,
            seed=bench.plan.seed,
        )
        said = json.dumps(asdict(order))
        for one in bench.hear(what, starts.__name__, said, link.at_client, server):
            found.take(one)
    bench.results.starts[size, link.name] = found


def upload(bench: Bench) -> None:
    """Uploads of the small model. Raises MeasureFailedError."""
    found: list[Upload] = []
    size_bytes: list[int] = []
    listen = free_address()
    token = secrets.token_hex(16)
    with bench.folder() as folder:
        webhook = {
            "ENABLE": "on",
            "ENDPOINT": f"http://{listen}/v1/bucket-events",
            "AUTH_TOKEN": token,
            "QUEUE_DIR": str(folder / "events"),
        }
        settings = {f"MINIO_NOTIFY_WEBHOOK_{name}_STOKER": value for name, value in webhook.items()}
        with running(folder / "minio", **settings) as server:
            order = uploads.Order(
                model=str(bench.model(SIZES[0])),
                bucket=BUCKET,
                home=str(folder / "home"),
                scratch=str(folder),
                listen=listen,
                runs=bench.plan.runs,
            )
            said = json.dumps(asdict(order))
            heard_lines = bench.hear(
                UPLOAD, uploads.__name__, said, (), server, STOKER_EVENTS_TOKEN=token
            )
            for one in heard_lines:
                if one.what == "upload_bytes":
                    size_bytes.append(round(one.value))
                else:
                    found.append(Upload(**one.parts))
    bench.results.upload_bytes.extend(size_bytes)
    bench.results.uploads.extend(found)


def simulate_eviction(bench: Bench) -> None:
    """Byte hit rates, of as many seeds as there are runs."""
    for arrivals, drifting in {"steady": False, "drifting": True}.items():
        rates: dict[str, list[float]] = {name: [] for name in POLICIES}
        for seed in range(bench.plan.runs):
            sizes, asked = requests(seed, drifting=drifting)
            for name, use in POLICIES.items():
                rates[name].append(byte_hit_rate(use, sizes, asked))
        bench.results.eviction[arrivals] = rates


def free_address() -> str:
    """One that both sides have to know before they start."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def server_version() -> Mapping[str, str]:
    """What the object store calls itself; nothing where there is none."""
    program = executable()
    if program is None:
        return {}
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    words = said.stdout.partition("\n")[0].split()
    return {"minio": words[2] if len(words) > 2 else "unknown"}


def shown(one: Measured) -> str:
    match one.what:
        case "raw" | "disk":
            return f"{one.name or one.what}: {one.value / 1e9:.2f} GB/s"
        case "start":
            parts = ", ".join(f"{name} {ms:.0f} ms" for name, ms in one.parts.items())
            return f"{one.name}: {one.value:.3f} s ({parts})"
        case "upload":
            parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in one.parts.items())
            return f"{one.name}: {one.value:.2f} s ({parts})"
    return f"{one.what}: {one.value:g}"
