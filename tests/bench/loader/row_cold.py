"""Rows of a cold load: against the disk, against the peers, in CPU and in memory."""

from __future__ import annotations

from tests.bench.loader.child import Outcome
from tests.bench.loader.compare import (
    COLD,
    PROTOCOL,
    all_of,
    best_peers,
    closest,
    geometric_mean,
    ratios_to_ours,
    samples_of,
    table_of,
)
from tests.bench.loader.contenders import OURS
from tests.bench.loader.results import GB, MIB, Results, cpu_s, rate, touched_s
from tests.bench.report import Row
from tests.bench.stats import median

MIN_LIMIT_SHARE = 0.95
MAX_LIMIT_SHARE = 1.05  # whoever is faster than a limit shows that it is none
MAX_BEHIND = 1.03
MAX_EXTRA_BYTES = 64 * MIB


def limit_row(results: Results) -> Row:
    shares, figures, samples = [], [], {}
    for checkpoint, ways in results.limit.items():
        way = max(ways, key=lambda name: median(ways[name]))
        best = median(ways[way]) / GB
        ours = rate(results.checkpoint_bytes[checkpoint], touched_s(results.cold[checkpoint][OURS]))
        shares.append(ours / best)
        figures.append(f"{checkpoint} {ours:.2f} of {best:.2f} GB/s ({way}): {ours / best:.2f}")
        if ours / best > MAX_LIMIT_SHARE:
            figures[-1] += " (no way that was tried found the limit)"
        samples.update(
            {f"{checkpoint} {name} GB/s": [v / GB for v in values] for name, values in ways.items()}
        )
    return Row(
        id="cold-limit",
        question="cold from disk to every page touched, against the disk's limit",
        target=f">= {MIN_LIMIT_SHARE} of the limit",
        figure="; ".join(figures),
        passed=_reached(shares),
        method="The limit is the best median of all ways of reading the same file with O_DIRECT, "
        "between the contenders of every round: fio's psync and io_uring, and threads of `preadv`, "
        "each at several queue depths; all are tried three times and the fastest three take part "
        "in every round. Their buffers are few and used again and again, and the first use does "
        "not count. The limit's clock touches no pages and maps none.",
        samples=samples,
        table=[
            ["way of reading", *results.limit],
            *(
                [
                    way,
                    *(
                        f"{median(ways[way]) / GB:.2f} GB/s" if way in ways else "slower"
                        for ways in results.limit.values()
                    ),
                ]
                for way in dict.fromkeys(way for ways in results.limit.values() for way in ways)
            ),
        ],
    )


def _reached(shares: list[float]) -> bool | None:
    """None where ours was faster than what was to be the limit."""
    if min(shares) < MIN_LIMIT_SHARE:
        return False
    return True if max(shares) <= MAX_LIMIT_SHARE else None


def peers_row(results: Results) -> Row:
    ratios = ratios_to_ours(results.cold, touched_s)
    means = {peer: geometric_mean(list(by_size.values())) for peer, by_size in ratios.items()}
    return Row(
        id="cold-peers",
        question="cold from disk to every page touched, against every peer",
        target="faster than each by the geometric mean, behind none by more than "
        f"{MAX_BEHIND - 1:.0%} on any size",
        figure=closest(means, ratios),
        passed=all_of(mean > 1 for mean in means.values())
        and all_of(r >= 1 / MAX_BEHIND for by_size in ratios.values() for r in by_size.values()),
        method=PROTOCOL + COLD + "Figures are medians.",
        samples=samples_of(results.cold, touched_s),
        facts={f"{peer} takes as long as ours times": mean for peer, mean in means.items()},
        table=table_of(
            results.cold,
            lambda checkpoint, outcomes: (
                f"{rate(results.checkpoint_bytes[checkpoint], touched_s(outcomes)):.2f} GB/s"
            ),
        ),
    )


def cpu_row(results: Results) -> Row:
    def per_gb(checkpoint: str, outcomes: list[Outcome]) -> float:
        return median(cpu_s(outcomes)) / (results.checkpoint_bytes[checkpoint] / GB)

    ratios = ratios_to_ours(results.cold, cpu_s)
    return Row(
        id="cpu",
        question="CPU seconds per GB of a cold load",
        target="less than every peer on every size",
        figure="; ".join(
            [
                *(
                    f"{checkpoint} {per_gb(checkpoint, by_name[OURS]):.3f} s per GB"
                    for checkpoint, by_name in results.cold.items()
                ),
                *best_peers(ratios),
            ]
        ),
        passed=all_of(r > 1 for by_size in ratios.values() for r in by_size.values()),
        method="User and system time of all threads of the process, from the same measurements as "
        "`cold-peers`, the touching of pages in it.",
        samples=samples_of(results.cold, cpu_s, "cpu_s"),
        table=table_of(
            results.cold, lambda checkpoint, outcomes: f"{per_gb(checkpoint, outcomes):.3f} s"
        ),
    )


def memory_row(results: Results) -> Row:
    def extra_bytes(checkpoint: str, outcomes: list[Outcome]) -> float:
        process_bytes = median([float(one.process_bytes) for one in outcomes])
        return process_bytes - results.checkpoint_bytes[checkpoint]

    def cell(checkpoint: str, outcomes: list[Outcome]) -> str:
        cached = median([float(one.cached_bytes) for one in outcomes])
        return f"{extra_bytes(checkpoint, outcomes) / MIB:.0f} + {cached / MIB:.0f} MiB"

    own = {c: extra_bytes(c, by_name[OURS]) for c, by_name in results.cold.items()}
    return Row(
        id="memory",
        question="memory of a cold load beyond the checkpoint's own pages",
        target=f"<= {MAX_EXTRA_BYTES / MIB:.0f} MiB",
        figure="; ".join(f"{name} {value / MIB:.1f} MiB" for name, value in own.items()),
        passed=max(own.values()) <= MAX_EXTRA_BYTES,
        method="Growth of the peak resident set and of the page tables over the load, less the "
        "checkpoint's size, which is counted once wherever it lies. In the table, behind the plus: "
        "what the page cache holds of the files besides, unmapped, a second copy.",
        samples={
            f"{name} {checkpoint} process_bytes": [float(one.process_bytes) for one in outcomes]
            for checkpoint, by_name in results.cold.items()
            for name, outcomes in by_name.items()
        },
        table=table_of(results.cold, cell),
    )
