"""Results -> rows: every target is computed here from what was measured, and none is typed.

A row of another kind is one more field of `Results`, one more stage of `run.gather`, and one more
line here.
"""

from __future__ import annotations

from tests.bench.loader.plan import MIN_ROUNDS
from tests.bench.loader.results import Results
from tests.bench.loader.row_cold import cpu_row, limit_row, memory_row, peers_row
from tests.bench.loader.row_http import http_row, pipeline_row
from tests.bench.loader.row_steps import ablation_row, verification_row, warm_verification_row
from tests.bench.loader.row_warm import attach_ratio_row, attach_row, many_row
from tests.bench.report import Row


def judge(results: Results) -> list[Row]:
    """All rows that there are results for."""
    rows: list[Row] = []
    if results.limit:
        rows.append(limit_row(results))
    if results.cold:
        rows.append(peers_row(results))
    if results.warm:
        rows += [attach_row(results), attach_ratio_row(results)]
    if results.many:
        rows.append(many_row(results))
    if results.http:
        rows += [http_row(results), pipeline_row(results)]
    if results.cold:
        rows += [cpu_row(results), memory_row(results)]
    if results.verification:
        rows.append(verification_row(results))
    if results.verification_warm:
        rows.append(warm_verification_row(results))
    if results.steps:
        rows.append(ablation_row(results))
    return [doubted(row) for row in rows]


def doubted(row: Row) -> Row:
    """The row; a target that was met in fewer rounds than say anything of the spread is not."""
    rounds = min((len(values) for values in row.samples.values()), default=0)
    if row.passed is not True or rounds >= MIN_ROUNDS:
        return row
    figure = f"{row.figure} (no verdict by {rounds} rounds, {MIN_ROUNDS} are needed)"
    return row.model_copy(update={"passed": None, "figure": figure})
