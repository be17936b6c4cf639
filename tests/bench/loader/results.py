"""What was measured, before anyone judges it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.bench.loader.child import Outcome
from tests.bench.loader.http_child import Fetching
from tests.bench.loader.touch import PAGE_BYTES
from tests.bench.stats import median

ByName = dict[str, list[Outcome]]
GB = 1e9
MIB = 1 << 20
MAX_FAULT_SHARE = 0.001  # of the pages: the pass itself allocates a little


@dataclass(frozen=True, slots=True)
class HttpResults:
    """Over one link: bytes per second of raw GETs by how they were made, our fetches, and those
    with a load, by when that was."""

    raw: dict[str, list[float]]
    fetched: list[Fetching]
    loaded: dict[str, list[Fetching]]


@dataclass(frozen=True, slots=True)
class Results:
    """Outcomes by checkpoint and then by contender; those of `steps` by what is switched off.
    `limit` has bytes per second by checkpoint and way of reading."""

    checkpoint_bytes: dict[str, int] = field(default_factory=dict)
    limit: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    cold: dict[str, ByName] = field(default_factory=dict)
    warm: dict[str, ByName] = field(default_factory=dict)
    many: dict[str, ByName] = field(default_factory=dict)
    steps: dict[str, ByName] = field(default_factory=dict)
    verification: dict[str, ByName] = field(default_factory=dict)
    http: dict[str, HttpResults] = field(default_factory=dict)  # by link
    verification_warm: dict[str, ByName] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # contender -> why it has no figure


def touched_s(outcomes: list[Outcome]) -> list[float]:
    """From the call until every page was touched."""
    return [one.load_s + one.touch_s for one in outcomes]


def usable_s(outcomes: list[Outcome]) -> list[float]:
    """From the call until every page is mapped, without what reading a byte of each page costs
    when all of them are: that is the harness's own work, and more than a good attach."""
    return [one.load_s + left_for_later_s(one) for one in outcomes]


def left_for_later_s(outcome: Outcome) -> float:
    """What the first pass over the pages costs for those that were not mapped. A pass without page
    faults found them all mapped, and the host had backed them, since the child read the files
    before: what it took longer than another one is the machine's noise."""
    pages = outcome.tensor_bytes / PAGE_BYTES
    if outcome.touch_faults <= MAX_FAULT_SHARE * pages:
        return 0.0
    return max(0.0, outcome.touch_s - outcome.again_s)


def cpu_s(outcomes: list[Outcome]) -> list[float]:
    return [one.cpu_s for one in outcomes]


def rate(checkpoint_bytes: int, seconds: list[float]) -> float:
    """GB/s at the median."""
    return checkpoint_bytes / median(seconds) / GB
