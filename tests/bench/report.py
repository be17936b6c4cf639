"""What a benchmark run leaves behind: JSON with every raw sample, and a table made from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from tests.bench.stats import Summary, summarise

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Page:
    """What a page of figures is called, what makes it, and where its samples are."""

    title: str
    command: str
    raw: str


PLATFORM = Page("Benchmarks", "scripts/bench.py --publish", "docs/benchmarks/latest.json")
LOADER = Page(
    "Loader benchmarks", "scripts/bench_loader.py --publish", "docs/loader-benchmarks/latest.json"
)
CHECKPOINTS = Page(
    "Checkpoint benchmarks",
    "scripts/bench_checkpoints.py --publish",
    "docs/checkpoint-benchmarks/latest.json",
)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Model):
    """Where it ran."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    torch: str
    filesystem: str
    load_before: float  # runnable processes, mean of the minute before: others that compete


class Row(_Model):
    """One question with its answer. `samples` hold every raw measurement, slow ones included;
    a sample's name ends with its unit. `passed` is None where no target is set, and `table` has
    its head as its first line."""

    id: str
    question: str
    target: str
    figure: str
    passed: bool | None
    method: str
    samples: dict[str, list[float]]
    facts: dict[str, float | int | str | bool | None] = Field(default_factory=dict)
    table: list[list[str]] = Field(default_factory=list)

    def spread(self) -> dict[str, Summary]:
        return {name: summarise(values) for name, values in self.samples.items() if values}


class Report(_Model):
    """One run. `notes` say what could not be measured, and why."""

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    started_at: str  # UTC, ISO 8601
    duration_s: float
    commit: str
    dirty: bool  # the working tree differed from the commit
    machine: Machine
    parameters: dict[str, float | int | str | bool]
    notes: list[str] = Field(default_factory=list)
    rows: list[Row]

    @property
    def passed(self) -> bool:
        return all(row.passed is not False for row in self.rows)


def write_json(report: Report, path: Path) -> None:
    """Writes the report with its summaries beside the samples they are made from."""
    body = report.model_dump(mode="json")
    for row, dumped in zip(report.rows, body["rows"], strict=True):
        dumped["spread"] = {name: vars(s) for name, s in row.spread().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1) + "\n")


def read_json(path: Path) -> Report:
    """Reads what `write_json` wrote. Raises pydantic's ValidationError when it is something else.
    The summaries are left behind: they are always made anew from the samples."""
    body = json.loads(path.read_text())
    for row in body.get("rows", []):
        row.pop("spread", None)
    return Report.model_validate(body)


def markdown(report: Report, page: Page = PLATFORM) -> str:
    """The page of a report: the table, then each row's method and spread."""
    machine = report.machine
    tree = ", with uncommitted changes" if report.dirty else ""
    lines = [
        f"# {page.title}",
        "",
        f"Made by `{page.command}`; do not edit. Raw samples: `{page.raw}`.",
        "",
        f"Run of {report.started_at} at commit `{report.commit}`{tree}, "
        f"{report.duration_s:.0f} s long.",
        "",
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB, "
        f"Linux {machine.kernel}, {machine.filesystem}, Python {machine.python}, "
        f"torch {machine.torch}; load before the run {machine.load_before:.1f}. "
        + ", ".join(f"{name} {value}" for name, value in report.parameters.items())
        + ".",
        "",
        *(f"- {note}" for note in report.notes),
        *([""] if report.notes else []),
        "| what | must be | measured | |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.question} | {row.target} | {row.figure} | {_verdict(row)} |" for row in report.rows
    ]
    for row in report.rows:
        lines += ["", f"## {row.id}", "", row.method, ""]
        if row.table:
            lines += [*_table(row.table), ""]
        lines += ["| sample | n | min | median | p90 | p99 | max |", "|" + " --- |" * 7]
        for name, s in row.spread().items():
            values = (s.min, s.median, s.p90, s.p99, s.max)
            lines.append(f"| {name} | {s.n} | " + " | ".join(_number(v) for v in values) + " |")
        if row.facts:
            lines += ["", "; ".join(f"{k}: {_fact(v)}" for k, v in row.facts.items()) + "."]
    return "\n".join(lines) + "\n"


def _table(lines: list[list[str]]) -> list[str]:
    head, *body = ["| " + " | ".join(cells) + " |" for cells in lines]
    return [head, "|" + " --- |" * len(lines[0]), *body]


def _verdict(row: Row) -> str:
    return {True: "met", False: "**missed**", None: ""}[row.passed]


def _number(value: float) -> str:
    """Four significant digits without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _fact(value: object) -> str:
    return _number(value) if isinstance(value, float) else str(value)
