"""A node that has the checkpoint on its disk, and nothing of it in memory."""

from __future__ import annotations

from tests.bench.checkpoints.results import PHASES, SSD, Results, Starts
from tests.bench.checkpoints.row_parts import CLOCK, GB, facts, phase_cells, size, start_samples
from tests.bench.disk import BLOCK_BYTES, READERS
from tests.bench.report import Row
from tests.bench.stats import median

MIN_DISK_SHARE = 0.95
ADDED_S = 0.3


def bound_s(starts: Starts) -> float:
    """What a start may take, by the disk's rate in the same run."""
    bytes_per_s = MIN_DISK_SHARE * median(starts.disk_bytes_per_s)
    return starts.checkpoint_bytes / bytes_per_s + ADDED_S


def ssd_row(results: Results) -> Row:
    found = results.of(SSD)
    return Row(
        id=SSD,
        question="the same on a node that has the checkpoint on its disk, page cache dropped",
        target=f"<= bytes / ({MIN_DISK_SHARE:.2f} x the disk's rate) + {ADDED_S:g} s",
        figure="; ".join(
            f"{name} {starts.first_token_s(SSD):.3f} s, bound {bound_s(starts):.3f} s"
            for name, _, starts in found
        ),
        passed=all(starts.first_token_s(SSD) <= bound_s(starts) for _, _, starts in found),
        method="Before each start the files of the node's copy are read once and their pages "
        "dropped (`posix_fadvise`), the disk's rate is measured on them (O_DIRECT, "
        f"{READERS} readers, {BLOCK_BYTES >> 20} MiB blocks, buffers touched ahead), and the "
        "kernel confirms that at most 1% of their pages are there. " + CLOCK,
        samples={
            name: values
            for size_name, _, starts in found
            for name, values in (
                *start_samples(size_name, starts.by_kind[SSD]).items(),
                (f"{size_name}_disk_bytes_per_s", starts.disk_bytes_per_s),
            )
        },
        facts=facts(found),
        table=[
            ["checkpoint", "first token", "bound", "disk", *PHASES],
            *(
                [
                    f"{name}, {size(starts)}",
                    f"{starts.first_token_s(SSD):.3f} s",
                    f"{bound_s(starts):.3f} s",
                    f"{median(starts.disk_bytes_per_s) / GB:.2f} GB/s",
                    *phase_cells(starts.by_kind[SSD]),
                ]
                for name, _, starts in found
            ),
        ],
    )
