"""Which copies a full tier gives up: those that are least worth their bytes.

Greedy-dual with frequency (Cherkasova, "Improving WWW proxies performance with
greedy-dual-size-frequency caching", HP Labs 1998; for functions FaasCache, ASPLOS'21): a copy's
value is `clock + uses x reload_s / size_bytes`, with `clock` as it was when the copy was last used.
The clock rises to the value of what was given up, so that a copy which is used no more loses
against newer ones however often it was used once. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Valued(Generic[Key]):
    """One copy: what it takes, what bringing it again would, and how often it was used."""

    key: Key
    size_bytes: int
    reload_s: float
    uses: int = 0
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Eviction(Generic[Key]):
    """What is given up, in this order, and the clock after it."""

    victims: tuple[Key, ...]
    clock: float


def used(copy: Valued[Key], clock: float) -> Valued[Key]:
    """The copy after one more use."""
    uses = copy.uses + 1
    return replace(copy, uses=uses, value=clock + uses * copy.reload_s / max(copy.size_bytes, 1))


def evict(candidates: Iterable[Valued[Key]], needed_bytes: int, clock: float) -> Eviction[Key]:
    """The least valuable of `candidates` that together have `needed_bytes`; all of them where that
    is not enough."""
    victims: list[Key] = []
    freed_bytes = 0
    for copy in sorted(candidates, key=lambda copy: copy.value):
        if freed_bytes >= needed_bytes:
            break
        victims.append(copy.key)
        freed_bytes += copy.size_bytes
        clock = max(clock, copy.value)
    return Eviction(tuple(victims), clock)
