"""The requests that models get, and how many of their bytes a cache of one policy or another has.

A hundred functions with the sizes that models have, as popular as Zipf's law has it, over a cache
for ten of them: always the same ones popular, or with a new favourite every 500 requests. Byte hit
rates, of the same requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from random import Random

from stoker.node.eviction import Valued, evict, used

FUNCTIONS, ROOM_FOR = 100, 10
REQUESTS, FAVOURITE_FOR = 10_000, 500
SIZES_GB = (0.27, 0.5, 1.1, 2.3, 3.1, 6.4, 14.5)  # of models from 135 million to 7 billion weights
BYTES_PER_S, ASK_S = 1.25e9, 0.02

Use = Callable[[Valued[int], int], Valued[int]]  # a copy, and the number of the request


def least_recently_used(copy: Valued[int], now: int) -> Valued[int]:
    return replace(copy, frequency=copy.size_bytes / copy.reload_s, used_at=now)


def least_frequently_used(copy: Valued[int], _now: int) -> Valued[int]:
    """With the counts of what was given up kept, as ours has them."""
    uses = copy.frequency * copy.reload_s / copy.size_bytes + 1
    return replace(copy, frequency=uses * copy.size_bytes / copy.reload_s)


def requests(seed: int, *, drifting: bool) -> tuple[list[int], list[int]]:
    """Sizes in bytes by function, and which functions are asked for, in turn."""
    random = Random(seed)
    sizes = [round(random.choice(SIZES_GB) * 1e9) for _ in range(FUNCTIONS)]
    ranks = list(range(FUNCTIONS))
    random.shuffle(ranks)
    weights = list(accumulate(1 / (rank + 1) for rank in range(FUNCTIONS)))
    asked = []
    for number in range(REQUESTS):
        if drifting and number % FAVOURITE_FOR == 0:
            ranks.insert(0, ranks.pop(random.randrange(FUNCTIONS // 2, FUNCTIONS)))
        asked.append(random.choices(ranks, cum_weights=weights)[0])
    return sizes, asked


def byte_hit_rate(use: Use, sizes: Sequence[int], asked: Sequence[int]) -> float:
    budget_bytes = ROOM_FOR * sum(sizes) // len(sizes)
    cached: dict[int, Valued[int]] = {}
    seen: dict[int, Valued[int]] = {}
    hit_bytes = 0
    for number, function in enumerate(asked, start=1):
        size_bytes = sizes[function]
        if function in cached:
            hit_bytes += size_bytes
        else:
            taken_bytes = sum(copy.size_bytes for copy in cached.values())
            for victim in evict(cached.values(), taken_bytes + size_bytes - budget_bytes):
                del cached[victim]
        reload_s = ASK_S + size_bytes / BYTES_PER_S
        copy = seen.get(function, Valued(function, size_bytes, reload_s))
        cached[function] = seen[function] = use(copy, number)
    return hit_bytes / sum(sizes[function] for function in asked)


OURS = "ours"
POLICIES: dict[str, Use] = {
    OURS: used,
    "LRU": least_recently_used,
    "LFU": least_frequently_used,
}
