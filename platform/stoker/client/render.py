"""The cold-start waterfall: where the time until the first token went.

It reads without colour, at 80 columns, and in ASCII where the terminal has no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from stoker.client.tables import size
from stoker.domain import Phase, PhaseName, Timeline

EIGHTHS = "▏▎▍▌▋▊▉█"
THIN_MS = 0.1  # a phase shorter than this is a mark, not a bar
PHASE_STYLES = {
    PhaseName.QUEUE: "bright_black",
    PhaseName.SCHEDULE: "bright_black",
    PhaseName.PROVISION: "magenta",
    PhaseName.FETCH: "red",
    PhaseName.LOAD: "blue",
    PhaseName.INIT: "yellow",
    PhaseName.PREFILL: "green",
}


@dataclass(frozen=True, slots=True)
class Span:
    """A bar from `begin` to `end`, both fractions of the line's width; `thin` draws a mark."""

    begin: float
    end: float
    thin: bool
    style: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = self.cells(options.max_width, ascii_only=options.ascii_only)
        yield Segment(line, Style.parse(self.style))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(8, options.max_width)

    def cells(self, width: int, *, ascii_only: bool) -> str:
        """The bar in `width` characters; the finest step is an eighth of one."""
        begin = min(int(self.begin * width), width - 1)
        eighths = round((self.end * width - begin) * 8)
        if self.thin:
            bar = "|" if ascii_only else EIGHTHS[0]
        elif ascii_only:
            bar = "#" * max(1, round(eighths / 8))
        else:
            whole, rest = divmod(max(1, eighths), 8)
            bar = "█" * whole + (EIGHTHS[rest - 1] if rest else "")
        return (" " * begin + bar)[:width].ljust(width)


@dataclass(frozen=True, slots=True)
class Axis:
    """The head of the bars' column: nought at the left, the end at the right."""

    end: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment("0" + self.end.rjust(options.max_width - 1), console.get_style("bold"))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(len(self.end) + 2, options.max_width)


def waterfall(timeline: Timeline) -> RenderableType:
    """The startup phases as bars behind each other on one time axis, with what they took, what
    was expected, and for phases that moved bytes their tier and rate."""
    kind = "cold start" if timeline.cold else "warm"
    title = Text.assemble(
        (timeline.function or "request", "bold"),
        f"  {kind}, first token after ",
        (f"{timeline.total_ms:.1f} ms", "bold"),
    )
    predicted = any(phase.predicted_ms is not None for phase in timeline.phases)
    moved = any(phase.bytes or phase.tier for phase in timeline.phases)
    table = Table(box=None, padding=(0, 1), pad_edge=False, expand=True, show_header=True)
    table.add_column("phase", no_wrap=True)
    table.add_column(Axis(f"{timeline.total_ms:.0f} ms"), ratio=1, no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    if predicted:
        table.add_column("expected", justify="right", no_wrap=True)
    if moved:
        table.add_column("from", no_wrap=True)
    for phase in timeline.phases:
        cells: list[RenderableType] = [
            Text(phase.name, PHASE_STYLES[phase.name]),
            _span(phase, timeline.total_ms),
            milliseconds(phase.duration_ms),
        ]
        if predicted:
            expected = phase.predicted_ms
            cells.append("" if expected is None else milliseconds(expected))
        if moved:
            cells.append(origin(phase))
        table.add_row(*cells)
    return Group(title, table)


def _span(phase: Phase, total_ms: float) -> Span:
    scale = max(total_ms, phase.start_ms + phase.duration_ms, THIN_MS)
    return Span(
        begin=phase.start_ms / scale,
        end=(phase.start_ms + phase.duration_ms) / scale,
        thin=phase.duration_ms < THIN_MS,
        style=PHASE_STYLES[phase.name],
    )


def milliseconds(value_ms: float) -> str:
    """Three significant places at most: 0.04, 3.2, 187."""
    if value_ms < THIN_MS:
        return f"{value_ms:.2f}"
    return f"{value_ms:.1f}" if value_ms < 100 else f"{value_ms:,.0f}"


def origin(phase: Phase) -> str:
    """The tier that a phase's bytes came from, how many, and how fast."""
    parts = [str(phase.tier)] if phase.tier else []
    if phase.bytes:
        parts.append(size(phase.bytes))
        if phase.duration_ms >= THIN_MS:
            parts.append(f"{phase.bytes / phase.duration_ms / 1e6:.1f} GB/s")
    return " ".join(parts)
