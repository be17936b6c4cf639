"""What a person sees while they wait, always on stderr and only where that is a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

from stoker.domain import PhaseName, Timeline

REFRESHES_PER_S = 12
COLD_START_BAR_CELLS = 28
# What a user is told the platform does in each phase.
DOING = {
    PhaseName.QUEUE: "waiting for a slot",
    PhaseName.SCHEDULE: "choosing a node",
    PhaseName.PROVISION: "claiming a worker",
    PhaseName.FETCH: "fetching the checkpoint",
    PhaseName.LOAD: "loading the weights",
    PhaseName.INIT: "preparing the engine",
    PhaseName.PREFILL: "reading the prompt",
}


class Report(Protocol):
    """Hears how far a stage is; a stage is known by its name alone. Sizes in bytes."""

    def __call__(self, stage: str, bytes_done: int, bytes_total: int) -> None: ...


@contextmanager
def byte_progress(console: Console) -> Iterator[Report]:
    """One bar a stage, drawn as reports come; silent where `console` is not a terminal."""
    progress = Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        disable=not console.is_terminal,
        refresh_per_second=REFRESHES_PER_S,
    )
    bars: dict[str, TaskID] = {}

    def report(stage: str, bytes_done: int, bytes_total: int) -> None:
        if stage not in bars:
            bars[stage] = progress.add_task(stage, total=bytes_total)
        progress.update(bars[stage], completed=bytes_done, total=bytes_total)

    with progress:
        yield report


@dataclass(slots=True)
class ColdStartMeter:
    """How far a start probably is, judged by the last start of the same function.

    `clock` gives seconds; `expected` is None when there was no start to learn from.
    """

    expected: Timeline | None
    clock: Callable[[], float] = time.monotonic
    began_s: float = field(init=False)
    spinner: Spinner = field(init=False)

    def __post_init__(self) -> None:
        self.began_s = self.clock()
        self.spinner = Spinner("dots")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        elapsed_ms = (self.clock() - self.began_s) * 1000
        line = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [self.spinner, "cold start"]
        if self.expected is not None:
            total_ms = max(self.expected.total_ms, 1.0)
            width = min(COLD_START_BAR_CELLS, options.max_width // 3)
            cells.append(
                ProgressBar(total=total_ms, completed=min(elapsed_ms, total_ms), width=width)
            )
        cells.append(f"{elapsed_ms / 1000:.1f} s  {self.doing(elapsed_ms)}")
        line.add_row(*cells)
        yield line

    def doing(self, elapsed_ms: float) -> str:
        """The phase that the last start was in after as long."""
        if self.expected is None:
            return "starting the function's first instance"
        for phase in self.expected.phases:
            if elapsed_ms < phase.start_ms + phase.duration_ms:
                return DOING[phase.name]
        return "longer than last time"


def cold_start(console: Console, expected: Timeline | None) -> AbstractContextManager[object]:
    """Shows a `ColdStartMeter` until its context ends; nothing where there is no terminal."""
    if not console.is_terminal:
        return nullcontext()
    return Live(
        ColdStartMeter(expected),
        console=console,
        transient=True,
        refresh_per_second=REFRESHES_PER_S,
    )
