"""What has happened in a node's tiers since its agent started."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from stoker.domain import Tier
from stoker.node.wire import CacheCounters, Evictions

BUCKET = "bucket"  # a source: the store of checkpoints itself


@dataclass(slots=True)
class Counters:
    """Only ever counts up."""

    hits: Counter[Tier] = field(default_factory=Counter)
    misses: Counter[Tier] = field(default_factory=Counter)
    fetched_bytes: Counter[str] = field(default_factory=Counter)
    evictions: Counter[tuple[Tier, str]] = field(default_factory=Counter)

    def found_in(self, tier: Tier) -> None:
        """A start found its checkpoint there, and in no faster tier."""
        self.hits[tier] += tier is not Tier.REMOTE
        for faster in (Tier.DRAM, Tier.SSD):
            if faster is tier:
                break
            self.misses[faster] += 1

    def fetched(self, source: str, size_bytes: int) -> None:
        self.fetched_bytes[source] += size_bytes

    def evicted(self, tier: Tier, reason: str) -> None:
        """A copy was given up: for the tier's "budget", since the "disk" was full, or since
        somebody "asked"."""
        self.evictions[tier, reason] += 1

    def said(self) -> CacheCounters:
        return CacheCounters(
            hits={tier: n for tier, n in self.hits.items() if n},
            misses=dict(self.misses),
            fetched_bytes=dict(self.fetched_bytes),
            evictions=tuple(
                Evictions(tier=tier, reason=reason, count=n)
                for (tier, reason), n in self.evictions.items()
            ),
        )
