"""A node that has the checkpoint in memory."""

from __future__ import annotations

from tests.bench.checkpoints.results import DRAM, PHASES, Results
from tests.bench.checkpoints.row_parts import CLOCK, facts, phase_cells, size, start_samples
from tests.bench.report import Row

MAX_FIRST_TOKEN_S = 0.35


def dram_row(results: Results) -> Row:
    found = results.of(DRAM)
    return Row(
        id=DRAM,
        question="the same on a node that has the checkpoint in its page cache",
        target=f"<= {MAX_FIRST_TOKEN_S:g} s",
        figure="; ".join(f"{name} {starts.first_token_s(DRAM):.3f} s" for name, _, starts in found),
        passed=all(starts.first_token_s(DRAM) <= MAX_FIRST_TOKEN_S for _, _, starts in found),
        method="The kernel confirms before each start that the files of the node's copy are "
        "resident. " + CLOCK,
        samples={
            name: values
            for size_name, _, starts in found
            for name, values in start_samples(size_name, starts.by_kind[DRAM]).items()
        },
        facts=facts(found),
        table=[
            ["checkpoint", "first token", *PHASES],
            *(
                [
                    f"{name}, {size(starts)}",
                    f"{starts.first_token_s(DRAM):.3f} s",
                    *phase_cells(starts.by_kind[DRAM]),
                ]
                for name, _, starts in found
            ),
        ],
    )
