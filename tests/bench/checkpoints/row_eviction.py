"""What a node's cache holds of the bytes that are asked for, by our eviction and by known ones."""

from __future__ import annotations

from tests.bench.checkpoints.results import EVICTION, ByPolicy, Results
from tests.bench.report import Row
from tests.bench.stats import median
from tests.support.zipf_requests import FAVOURITE_FOR, FUNCTIONS, OURS, REQUESTS, ROOM_FOR


def eviction_row(results: Results) -> Row:
    found = results.eviction
    return Row(
        id=EVICTION,
        question=f"byte hit rate of {FUNCTIONS} functions over a cache for {ROOM_FOR}, Zipf "
        "arrivals",
        target="more than LRU's and LFU's",
        figure="; ".join(
            f"{arrivals}: "
            + ", ".join(f"{name} {median(rates):.3f}" for name, rates in by_policy.items())
            for arrivals, by_policy in found.items()
        ),
        passed=all(beats_all(by_policy) for by_policy in found.values()),
        method=f"{REQUESTS:,} requests for functions with the sizes that models have (0.27 to 14.5 "
        "GB, drawn by the seed), as popular as Zipf's law has it, through `stoker.node.eviction` "
        "with our measure of use and with those of the others; all get the same requests. Steady: "
        f"the same ones stay popular. Drifting: each {FAVOURITE_FOR} requests one that was not "
        "becomes the favourite. One sample a seed; medians are compared.",
        samples={
            f"{arrivals}_{name}_share": rates
            for arrivals, by_policy in found.items()
            for name, rates in by_policy.items()
        },
    )


def beats_all(by_policy: ByPolicy) -> bool:
    """Whether ours is more than each of the others."""
    ours = median(by_policy[OURS])
    return all(ours > median(rates) for name, rates in by_policy.items() if name != OURS)
