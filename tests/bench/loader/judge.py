"""Results -> rows: every target of the table is computed here, and nothing is measured."""

from __future__ import annotations

import math
from collections.abc import Callable

from tests.bench.loader.child import Outcome
from tests.bench.loader.contenders import OURS
from tests.bench.loader.ours import ABLATION, VERIFICATION
from tests.bench.loader.results import (
    GB,
    MIB,
    ByName,
    Results,
    cpu_s,
    rate,
    touched_s,
    usable_s,
)
from tests.bench.report import Row
from tests.bench.stats import median

MIN_LIMIT_SHARE = 0.95
MAX_BEHIND = 1.03
MAX_ATTACH_MS_PER_GB = 3.0
MIN_ATTACH_RATIO = 50.0
MAX_MANY_MS = 60.0
MAX_EXTRA_BYTES = 64 * MIB
MAX_VERIFY_RATIO = 1.05

Seconds = Callable[[list[Outcome]], list[float]]

PROTOCOL = (
    "Each measurement is a process of its own that imports everything, loads a tiny checkpoint, "
    "touches as much memory as the checkpoint has, reads the files once, and gives both back just "
    "before the clock starts, so that the kernel takes pages that this machine had a moment ago. "
)
COLD = (
    "Only the checkpoint's pages are dropped (`posix_fadvise`) and the kernel confirms that at "
    "most 1% of them are left. The clock runs from the call to the moment when one byte of every "
    "page of every tensor was read. The contenders take turns in random order within each round, "
    "and each must give the same tensors. "
)


def judge(results: Results) -> list[Row]:
    """All rows that there are results for."""
    rows: list[Row] = []
    if results.cold:
        rows += [limit_row(results), peers_row(results)]
    if results.warm:
        rows += [attach_row(results), attach_ratio_row(results)]
    if results.many:
        rows.append(many_row(results))
    if results.cold:
        rows += [cpu_row(results), memory_row(results)]
    if results.verification:
        rows.append(verification_row(results))
    if results.steps:
        rows.append(ablation_row(results))
    return rows


def limit_row(results: Results) -> Row:
    shares, figures, samples = [], [], {}
    for checkpoint, ways in results.limit.items():
        way = max(ways, key=lambda name: median(ways[name]))
        best = median(ways[way]) / GB
        ours = rate(results.checkpoint_bytes[checkpoint], touched_s(results.cold[checkpoint][OURS]))
        shares.append(ours / best)
        figures.append(f"{checkpoint} {ours:.2f} of {best:.2f} GB/s ({way}): {ours / best:.2f}")
        samples.update(
            {f"{checkpoint} {name} GB/s": [v / GB for v in values] for name, values in ways.items()}
        )
    return Row(
        id="cold-limit",
        question="cold from disk to every page touched, against the disk's limit",
        target=f">= {MIN_LIMIT_SHARE} of the limit",
        figure="; ".join(figures),
        passed=min(shares) >= MIN_LIMIT_SHARE,
        method="The limit is the best median of all ways of reading the same file with O_DIRECT, "
        "between the contenders of every round: fio's psync and io_uring over queue depths (its "
        "buffers are reused over three passes), and threads of `preadv` into buffers that were "
        "touched ahead. The limit's clock touches no pages and maps none.",
        samples=samples,
        table=[
            ["way of reading", *results.limit],
            *(
                [way, *(f"{median(ways[way]) / GB:.2f} GB/s" for ways in results.limit.values())]
                for way in next(iter(results.limit.values()))
            ),
        ],
    )


def peers_row(results: Results) -> Row:
    ratios = _ratios(results.cold, touched_s)
    means = {peer: _geometric_mean(list(by_size.values())) for peer, by_size in ratios.items()}
    return Row(
        id="cold-peers",
        question="cold from disk to every page touched, against every peer",
        target="faster than each by the geometric mean, behind none by more than "
        f"{MAX_BEHIND - 1:.0%} on any size",
        figure=_closest(means, ratios),
        passed=_all(mean > 1 for mean in means.values())
        and _all(r >= 1 / MAX_BEHIND for by_size in ratios.values() for r in by_size.values()),
        method=PROTOCOL + COLD + "Figures are medians.",
        samples=_samples(results.cold, touched_s),
        facts={f"{peer} takes as long as ours times": mean for peer, mean in means.items()},
        table=_table(
            results.cold,
            lambda checkpoint, outcomes: (
                f"{rate(results.checkpoint_bytes[checkpoint], touched_s(outcomes)):.2f} GB/s"
            ),
        ),
    )


WARM = (
    "The files were brought in by `stoker_loader.prefetch` for every contender alike and the "
    "kernel confirms that they are resident. "
)
USABLE = (
    "The figure is the time until the dictionary of tensors is there and all its pages are "
    "mapped: the call, and the first pass over all pages less a second pass over other cache "
    "lines of them, which costs what reading a byte of every mapped page costs. So a loader that "
    "leaves page faults for later pays for them here. `_touched_s` leaves nothing out. "
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
            **_samples({c: {OURS: n[OURS]} for c, n in results.warm.items()}, usable_s),
            **_samples(
                {c: {OURS: n[OURS]} for c, n in results.warm.items()}, touched_s, "touched_s"
            ),
        },
    )


def attach_ratio_row(results: Results) -> Row:
    ratios = _ratios(results.warm, usable_s)
    worst = min((r for by_size in ratios.values() for r in by_size.values()), default=math.nan)
    return Row(
        id="warm-peers",
        question="the same, against the best peer",
        target=f">= {MIN_ATTACH_RATIO:g}x",
        figure="; ".join(_best_peers(ratios)),
        passed=worst >= MIN_ATTACH_RATIO,
        method="As `warm-attach`.",
        samples={
            **_samples(results.warm, usable_s),
            **_samples(results.warm, touched_s, "touched_s"),
        },
        table=_table(
            results.warm, lambda _, outcomes: f"{median(usable_s(outcomes)) * 1000:.1f} ms"
        ),
    )


def many_row(results: Results) -> Row:
    ((checkpoint, by_name),) = results.many.items()
    ours = by_name[OURS]
    own_ms = median(usable_s(ours)) * 1000
    ratios = _ratios(results.many, usable_s)
    tensors = ours[0].tensors
    return Row(
        id="many-tensors",
        question=f"a resident checkpoint of {tensors:,} small tensors, opened and attached",
        target=f"<= {MAX_MANY_MS:g} ms, and faster than every peer",
        figure=f"{own_ms:.1f} ms; " + "; ".join(_best_peers(ratios)),
        passed=own_ms <= MAX_MANY_MS
        and _all(r > 1 for by_size in ratios.values() for r in by_size.values()),
        method=PROTOCOL + WARM + USABLE,
        samples={
            **_samples(results.many, usable_s),
            **_samples(results.many, touched_s, "touched_s"),
        },
        table=_table(
            results.many, lambda _, outcomes: f"{median(usable_s(outcomes)) * 1000:.1f} ms"
        ),
        facts={"checkpoint_bytes": results.checkpoint_bytes[checkpoint]},
    )


def cpu_row(results: Results) -> Row:
    def per_gb(checkpoint: str, outcomes: list[Outcome]) -> float:
        return median(cpu_s(outcomes)) / (results.checkpoint_bytes[checkpoint] / GB)

    ratios = _ratios(results.cold, cpu_s)
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
                *_best_peers(ratios),
            ]
        ),
        passed=_all(r > 1 for by_size in ratios.values() for r in by_size.values()),
        method="User and system time of all threads of the process, from the same measurements as "
        "`cold-peers`, the touching of pages in it.",
        samples=_samples(results.cold, cpu_s, "cpu_s"),
        table=_table(
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
        table=_table(results.cold, cell),
    )


def verification_row(results: Results) -> Row:
    ((checkpoint, by_name),) = results.verification.items()
    off = median(touched_s(by_name["all_steps"]))
    ratios = {name: median(touched_s(by_name[name])) / off for name in VERIFICATION}
    best = min(ratios, key=lambda name: ratios[name])
    return Row(
        id="verification",
        question=f"cold load of {checkpoint} with every chunk verified, against without",
        target=f"<= {MAX_VERIFY_RATIO - 1:.0%} slower",
        figure=f"{ratios[best] - 1:+.1%} ({best})",
        passed=ratios[best] <= MAX_VERIFY_RATIO,
        method=PROTOCOL + COLD + "`verify_in_pipeline` reads and hashes chunk by chunk "
        "(`stoker_loader.verify`) and then maps what is resident; `verify_afterwards` reads all "
        "before it hashes all, which is what the pipeline saves.",
        samples={
            **_samples(results.verification, touched_s),
            **_samples(results.verification, cpu_s, "cpu_s"),
        },
        table=[
            ["variant", "until every page is touched", "CPU", "against off"],
            *(
                [
                    name,
                    f"{median(touched_s(outcomes)):.3f} s",
                    f"{median(cpu_s(outcomes)):.3f} s",
                    f"{median(touched_s(outcomes)) / off - 1:+.1%}",
                ]
                for name, outcomes in by_name.items()
            ),
        ],
    )


def ablation_row(results: Results) -> Row:
    ((checkpoint, by_name),) = results.steps.items()
    whole = median(touched_s(by_name["all_steps"]))
    slowdown = {
        name: median(touched_s(outcomes)) / whole
        for name, outcomes in by_name.items()
        if name != "all_steps"
    }
    return Row(
        id="ablation",
        question=f"cold load of {checkpoint} with one step switched off",
        target="",
        figure="; ".join(f"{name} {factor:.2f}x as long" for name, factor in slowdown.items()),
        passed=None,
        method=PROTOCOL + COLD + "Reading from a disk into the page cache is one stage, so there "
        "is no pipeline to switch off but that of `verification`; and it is the page cache that "
        "takes the place of direct reads, which `cold-limit` shows.",
        samples={
            **_samples(results.steps, touched_s),
            **_samples(results.steps, cpu_s, "cpu_s"),
        },
        table=[
            ["switched off", "rate", "CPU", "takes as long as all steps times"],
            *(
                [
                    ABLATION[name][0],
                    f"{rate(results.checkpoint_bytes[checkpoint], touched_s(outcomes)):.2f} GB/s",
                    f"{median(cpu_s(outcomes)):.3f} s",
                    f"{median(touched_s(outcomes)) / whole:.2f}",
                ]
                for name, outcomes in by_name.items()
            ),
        ],
    )


def _ratios(measured: dict[str, ByName], seconds: Seconds) -> dict[str, dict[str, float]]:
    """Peer -> checkpoint -> how many times as long as ours it takes, at the medians."""
    ratios: dict[str, dict[str, float]] = {}
    for checkpoint, by_name in measured.items():
        ours = median(seconds(by_name[OURS]))
        for peer, outcomes in by_name.items():
            if peer != OURS:
                ratios.setdefault(peer, {})[checkpoint] = median(seconds(outcomes)) / ours
    return ratios


def _best_peers(ratios: dict[str, dict[str, float]]) -> list[str]:
    """For each checkpoint the peer that comes closest."""
    closest: dict[str, tuple[float, str]] = {}
    for peer, by_size in ratios.items():
        for checkpoint, ratio in by_size.items():
            closest[checkpoint] = min(closest.get(checkpoint, (math.inf, "")), (ratio, peer))
    return [f"{name}: {peer} {ratio:.2f}x as much" for name, (ratio, peer) in closest.items()]


def _closest(means: dict[str, float], ratios: dict[str, dict[str, float]]) -> str:
    if not means:
        return "no peer was measured"
    peer = min(means, key=lambda name: means[name])
    return "; ".join(
        [f"closest by geometric mean: {peer} {means[peer]:.2f}x as long", *_best_peers(ratios)]
    )


def _all(verdicts: object) -> bool:
    """All of at least one: without a peer nothing was won."""
    found = list(verdicts)  # type: ignore[call-overload]
    return bool(found) and all(found)


def _geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _samples(
    measured: dict[str, ByName], seconds: Seconds, unit: str = "s"
) -> dict[str, list[float]]:
    return {
        f"{name} {checkpoint} {unit}": seconds(outcomes)
        for checkpoint, by_name in measured.items()
        for name, outcomes in by_name.items()
    }


def _table(
    measured: dict[str, ByName], cell: Callable[[str, list[Outcome]], str]
) -> list[list[str]]:
    names = dict.fromkeys(name for by_name in measured.values() for name in by_name)
    return [
        ["", *measured],
        *(
            [
                name,
                *(
                    cell(checkpoint, by_name[name]) if name in by_name else "not measured"
                    for checkpoint, by_name in measured.items()
                ),
            ]
            for name in names
        ),
    ]
