"""Which copies a full tier gives up: those that are least worth their bytes.

A copy is worth `frequency x reload cost / bytes`, as in greedy-dual with frequency (Cherkasova, HP
Labs 1998; for functions FaasCache, ASPLOS'21). Frequency is a count that loses half of itself with
every `HALF_LIFE_USES` uses of the cache (LRFU, Lee et al., IEEE Trans. Computers 50(12), 2001), and
not one that a rising clock is added to: that ages what is used now and then too fast. Measured in
`tests/unit/node/test_eviction_quality.py`. Everything here is pure; time is the number of uses of
the cache, by whatever copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

HALF_LIFE_USES = 500

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Valued(Generic[Key]):
    """One copy: what it takes, what bringing it again would, and how much it was used, as of its
    last use."""

    key: Key
    size_bytes: int
    reload_s: float
    frequency: float = 0.0
    used_at: int = 0  # the number of that use


def used(copy: Valued[Key], now: int) -> Valued[Key]:
    """The copy after one more use, the `now`th of the cache."""
    faded = copy.frequency * 0.5 ** ((now - copy.used_at) / HALF_LIFE_USES)
    return replace(copy, frequency=faded + 1.0, used_at=now)


def worth(copy: Valued[Key]) -> float:
    """For comparison with others, at any time: all fade alike, so the logarithm of what a copy will
    be worth differs from theirs by the same forever."""
    if not copy.frequency:
        return -math.inf
    per_byte = math.log2(copy.reload_s) - math.log2(max(copy.size_bytes, 1))
    return math.log2(copy.frequency) + per_byte + copy.used_at / HALF_LIFE_USES


def savings(copy: Valued[Key], now: int) -> float:
    """What the copy is worth after `now` uses of the cache, for people: seconds of bringing it
    again that each of its GB spares, times its frequency."""
    if not copy.size_bytes:
        return 0.0
    faded = copy.frequency * math.exp2((copy.used_at - now) / HALF_LIFE_USES)
    return faded * copy.reload_s / copy.size_bytes * 1e9


def evict(candidates: Iterable[Valued[Key]], needed_bytes: int) -> tuple[Key, ...]:
    """The least worthy of `candidates` that together have `needed_bytes`, the first to go first;
    all of them where that is not enough."""
    victims: list[Key] = []
    freed_bytes = 0
    for copy in sorted(candidates, key=worth):
        if freed_bytes >= needed_bytes:
            break
        victims.append(copy.key)
        freed_bytes += copy.size_bytes
    return tuple(victims)
