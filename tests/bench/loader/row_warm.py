"""Rows of a resident checkpoint: attached, and with many tensors."""

from __future__ import annotations

import math

from tests.bench.loader.compare import (
    PROTOCOL,
    all_of,
    best_peers,
    ratios_to_ours,
    samples_of,
    table_of,
)
from tests.bench.loader.contenders import OURS
from tests.bench.loader.results import GB, MAX_FAULT_SHARE, Results, touched_s, usable_s
from tests.bench.report import Row
from tests.bench.stats import median

MAX_ATTACH_MS_PER_GB = 3.0
MIN_ATTACH_RATIO = 50.0
MAX_MANY_MS = 60.0

WARM = (
    "A second load: the files came into the page cache by a load of the same contender a moment "
    "ago (and what it did not leave there by `stoker_loader.prefetch`), and the kernel confirms "
    "that they are resident. "
)
USABLE = (
    "The figure is the time until the dictionary of tensors is there and all its pages are "
    "mapped: the call, and the first pass over all pages less a second pass over other cache "
    "lines of them, which costs what reading a byte of every mapped page costs. So a loader that "
    "leaves page faults for later pays for them here; to one whose first pass takes no page faults "
    f"(at most one for {1 / MAX_FAULT_SHARE:,.0f} pages, counted by the kernel) nothing is added, "
    "since two such passes differ by noise alone. `_touched_s` leaves nothing out. "
)


def attach_row(results: Results) -> Row:
    ms_per_gb = {
        checkpoint: median(usable_s(by_name[OURS]))
        * 1000
        / (results.checkpoint_bytes[checkpoint] / GB)
        for checkpoint, by_name in results.warm.items()
    }
    return Row(
        id="warm-attach",
        question="resident checkpoint to a usable state dict",
        target=f"<= {MAX_ATTACH_MS_PER_GB:g} ms per GB",
        figure="; ".join(f"{name} {value:.2f} ms per GB" for name, value in ms_per_gb.items()),
        passed=max(ms_per_gb.values()) <= MAX_ATTACH_MS_PER_GB,
        method=PROTOCOL + WARM + USABLE,
        samples={
            **samples_of({c: {OURS: n[OURS]} for c, n in results.warm.items()}, usable_s),
            **samples_of(
                {c: {OURS: n[OURS]} for c, n in results.warm.items()}, touched_s, "touched_s"
            ),
        },
    )


def attach_ratio_row(results: Results) -> Row:
    ratios = ratios_to_ours(results.warm, usable_s)
    worst = min((r for by_size in ratios.values() for r in by_size.values()), default=math.nan)
    return Row(
        id="warm-peers",
        question="the same, against the best peer",
        target=f">= {MIN_ATTACH_RATIO:g}x",
        figure="; ".join(best_peers(ratios)),
        passed=worst >= MIN_ATTACH_RATIO,
        method="As `warm-attach`.",
        samples={
            **samples_of(results.warm, usable_s),
            **samples_of(results.warm, touched_s, "touched_s"),
        },
        table=table_of(
            results.warm, lambda _, outcomes: f"{median(usable_s(outcomes)) * 1000:.1f} ms"
        ),
    )


def many_row(results: Results) -> Row:
    ((checkpoint, by_name),) = results.many.items()
    ours = by_name[OURS]
    own_ms = median(usable_s(ours)) * 1000
    ratios = ratios_to_ours(results.many, usable_s)
    tensors = ours[0].tensors
    return Row(
        id="many-tensors",
        question=f"a resident checkpoint of {tensors:,} small tensors, opened and attached",
        target=f"<= {MAX_MANY_MS:g} ms, and faster than every peer",
        figure=f"{own_ms:.1f} ms; " + "; ".join(best_peers(ratios)),
        passed=own_ms <= MAX_MANY_MS
        and all_of(r > 1 for by_size in ratios.values() for r in by_size.values()),
        method=PROTOCOL + WARM + USABLE,
        samples={
            **samples_of(results.many, usable_s),
            **samples_of(results.many, touched_s, "touched_s"),
        },
        table=table_of(
            results.many, lambda _, outcomes: f"{median(usable_s(outcomes)) * 1000:.1f} ms"
        ),
        facts={"checkpoint_bytes": results.checkpoint_bytes[checkpoint]},
    )
