"""What was measured, before anyone judges it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.bench.checkpoints.lines import Measured
from tests.bench.stats import median

from stoker.domain import PhaseName, Tier

EMPTY, SSD, DRAM = "empty-node", "ssd-node", "dram-node"
UPLOAD, EVICTION = "upload", "eviction"
TIERS = {EMPTY: Tier.REMOTE, SSD: Tier.SSD, DRAM: Tier.DRAM}
PHASES = tuple(str(phase) for phase in PhaseName)


@dataclass(frozen=True, slots=True)
class Start:
    """One cold start: the client's clock, and the platform's timeline."""

    first_token_s: float
    phases_ms: dict[str, float]


@dataclass(slots=True)
class Starts:
    """Everything about one checkpoint at the end of one link: starts by kind, raw GETs by how they
    were made, and the disk's rate before each start that reads from it."""

    checkpoint_bytes: int = 0
    prompt_tokens: int = 0
    raw_bytes_per_s: dict[str, list[float]] = field(default_factory=dict)
    disk_bytes_per_s: list[float] = field(default_factory=list)
    by_kind: dict[str, list[Start]] = field(default_factory=dict)

    def take(self, one: Measured) -> None:
        """Sorts in what the process at the link's end has said."""
        match one.what:
            case "checkpoint_bytes":
                self.checkpoint_bytes = round(one.value)
            case "prompt_tokens":
                self.prompt_tokens = round(one.value)
            case "raw":
                self.raw_bytes_per_s.setdefault(one.name, []).append(one.value)
            case "disk":
                self.disk_bytes_per_s.append(one.value)
            case "start":
                start = Start(one.value, one.parts)
                self.by_kind.setdefault(one.name, []).append(start)
            case _:
                raise AssertionError(f"nobody says {one.what!r}")

    def first_token_s(self, kind: str) -> float:
        """The median."""
        return median([start.first_token_s for start in self.by_kind[kind]])

    def best_raw(self) -> tuple[str, float]:
        """The way of GETting with the best median, and that."""
        medians = {name: median(values) for name, values in self.raw_bytes_per_s.items()}
        best = max(medians, key=lambda name: medians[name])
        return best, medians[best]


@dataclass(frozen=True, slots=True)
class Upload:
    """One upload: how long after its last byte what had happened; `first_token_s` is a part
    of `answered_s`."""

    completed_s: float
    deployed_s: float
    first_token_s: float
    answered_s: float


ByPolicy = dict[str, list[float]]  # byte hit rates, one a seed


@dataclass(frozen=True, slots=True)
class Results:
    """`starts` by checkpoint and link, `eviction` by how the requests come."""

    starts: dict[tuple[str, str], Starts] = field(default_factory=dict)
    upload_bytes: list[int] = field(default_factory=list)  # of the folder, once
    uploads: list[Upload] = field(default_factory=list)
    eviction: dict[str, ByPolicy] = field(default_factory=dict)

    def of(self, kind: str) -> list[tuple[str, str, Starts]]:
        """Checkpoint, link and starts wherever such starts were measured."""
        return [
            (size, link, starts)
            for (size, link), starts in self.starts.items()
            if kind in starts.by_kind
        ]
