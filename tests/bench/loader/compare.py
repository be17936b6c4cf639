"""Contenders beside each other: ratios, tables, and the words that say how they were measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from tests.bench.loader.child import Outcome
from tests.bench.loader.contenders import OURS
from tests.bench.loader.results import ByName
from tests.bench.stats import median

Seconds = Callable[[list[Outcome]], list[float]]
CLOSE = 1.25  # a peer's time over ours, or ours over its

PROTOCOL = (
    "Each measurement is a process of its own that imports everything, loads a tiny checkpoint, "
    "touches as much memory as the checkpoint has, brings the files into the page cache (in huge "
    "folios, which the kernel can split for whoever wants small ones), reads them there, and gives "
    "back what it shall not keep just before the clock starts: so the kernel takes pages that this "
    "machine touched a moment ago. Each process stays until the next has imported everything, and "
    "hands its memory on. "
)
COLD = (
    "Only the checkpoint's pages are dropped (`posix_fadvise`) and the kernel confirms that at "
    "most 1% of them are left. The clock runs from the call to the moment when one byte of every "
    "page of every tensor was read. The contenders take turns in random order within each round, "
    "and each must give the same tensors. Peers whose median is within a factor of "
    f"{CLOSE:g} of ours after those rounds take part in as many again, with ours, as far as the "
    "time allows: all of their samples count. "
)


def close_to_ours(measured: ByName, seconds: Seconds) -> list[str]:
    """The peers that few rounds cannot tell from ours."""
    ours = median(seconds(measured[OURS]))
    return [
        peer
        for peer, outcomes in measured.items()
        if peer != OURS and max(ratio := median(seconds(outcomes)) / ours, 1 / ratio) < CLOSE
    ]


def ratios_to_ours(measured: dict[str, ByName], seconds: Seconds) -> dict[str, dict[str, float]]:
    """Peer -> checkpoint -> how many times as long as ours it takes, at the medians."""
    ratios: dict[str, dict[str, float]] = {}
    for checkpoint, by_name in measured.items():
        ours = median(seconds(by_name[OURS]))
        for peer, outcomes in by_name.items():
            if peer != OURS:
                ratios.setdefault(peer, {})[checkpoint] = median(seconds(outcomes)) / ours
    return ratios


def best_peers(ratios: dict[str, dict[str, float]]) -> list[str]:
    """For each checkpoint the peer that comes closest."""
    closest: dict[str, tuple[float, str]] = {}
    for peer, by_size in ratios.items():
        for checkpoint, ratio in by_size.items():
            closest[checkpoint] = min(closest.get(checkpoint, (math.inf, "")), (ratio, peer))
    return [f"{name}: {peer} {ratio:.2f}x ours" for name, (ratio, peer) in closest.items()]


def closest(means: dict[str, float], ratios: dict[str, dict[str, float]]) -> str:
    if not means:
        return "no peer was measured"
    peer = min(means, key=lambda name: means[name])
    return "; ".join(
        [f"closest by geometric mean: {peer} {means[peer]:.2f}x ours", *best_peers(ratios)]
    )


def all_of(verdicts: Iterable[bool]) -> bool:
    """All of at least one: without a peer nothing was won."""
    found = list(verdicts)
    return bool(found) and all(found)


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def samples_of(
    measured: dict[str, ByName], seconds: Seconds, unit: str = "s"
) -> dict[str, list[float]]:
    return {
        f"{name} {checkpoint} {unit}": seconds(outcomes)
        for checkpoint, by_name in measured.items()
        for name, outcomes in by_name.items()
    }


def table_of(
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
