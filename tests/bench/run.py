"""Runs the rows that were asked for on one stage, and gathers their report."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.machine import commit, machine
from tests.bench.report import Report, Row
from tests.bench.row_cold import cold_rows, evicted_row
from tests.bench.row_decode import batch_row, decode_row
from tests.bench.row_herd import herd_row
from tests.bench.row_warm import warm_row
from tests.bench.stage import Plan, Stage, stage

ROWS: dict[str, Callable[[Stage], list[Row]]] = {
    "cold": cold_rows,
    "evicted": evicted_row,
    "warm": warm_row,
    "herd": herd_row,
    "decode": decode_row,
    "batch": batch_row,
}


def run(
    root: Path,
    home: Path,
    checkpoint: Path,
    plan: Plan,
    names: Sequence[str],
    tell: Callable[[str], None],
) -> Report:
    """Measures `names` (keys of `ROWS`) in their order; `tell` hears each result as it comes."""
    began = time.monotonic()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    head, dirty = commit(root)
    here = machine(home)
    rows: list[Row] = []
    gc.disable()  # the client's own collector must not sit in a sample
    try:
        with stage(home, checkpoint, plan) as on_stage:
            for name in names:
                tell(f"{name} ...")
                for row in ROWS[name](on_stage):
                    tell(f"  {'met   ' if row.passed else 'MISSED'} {row.question}: {row.figure}")
                    rows.append(row)
                gc.collect()
    finally:
        gc.enable()
    return Report(
        started_at=started_at,
        duration_s=round(time.monotonic() - began, 1),
        commit=head,
        dirty=dirty,
        machine=here,
        parameters={**asdict(plan), "checkpoint": checkpoint.name},
        rows=rows,
    )
