"""What was measured, before anyone judges it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.bench.loader.child import Outcome
from tests.bench.loader.http_child import Fetching
from tests.bench.stats import median

ByName = dict[str, list[Outcome]]
GB = 1e9
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class HttpResults:
    """Over one link: bytes per second of raw GETs by how they were made, and our fetches."""

    raw: dict[str, list[float]]
    fetched: list[Fetching]


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
    return [one.load_s + max(0.0, one.touch_s - one.again_s) for one in outcomes]


def cpu_s(outcomes: list[Outcome]) -> list[float]:
    return [one.cpu_s for one in outcomes]


def rate(checkpoint_bytes: int, seconds: list[float]) -> float:
    """GB/s at the median."""
    return checkpoint_bytes / median(seconds) / GB
