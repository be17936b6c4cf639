"""Results -> rows: every target is computed here from what was measured, and none is typed."""

from __future__ import annotations

from tests.bench.checkpoints.results import DRAM, EMPTY, SSD, Results
from tests.bench.checkpoints.row_dram import dram_row
from tests.bench.checkpoints.row_empty import empty_row
from tests.bench.checkpoints.row_eviction import eviction_row
from tests.bench.checkpoints.row_ssd import ssd_row
from tests.bench.checkpoints.row_upload import upload_row
from tests.bench.loader.judge import doubted
from tests.bench.report import Row


def judge(results: Results) -> list[Row]:
    """All rows that there are results for."""
    rows: list[Row] = []
    if results.of(EMPTY):
        rows.append(empty_row(results))
    if results.of(SSD):
        rows.append(ssd_row(results))
    if results.of(DRAM):
        rows.append(dram_row(results))
    if results.uploads:
        rows.append(upload_row(results))
    if results.eviction:
        rows.append(eviction_row(results))
    return [doubted(row) for row in rows]
