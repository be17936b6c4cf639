"""Which node keeps what of which checkpoint, by what functions and people ask for. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from stoker.domain import CachePolicy, Digest, NodeId, Revision, Tier
from stoker.node.wire import Keep

BY_HAND = "pinned by hand"
_SLOWEST_FIRST = (Tier.SSD, Tier.DRAM)


@dataclass(slots=True)
class _Wish:
    """What is wanted of one checkpoint on one node, by all who want something."""

    bring: Tier = Tier.SSD
    pin: Tier | None = None
    why: list[str] = field(default_factory=list)

    def add(self, bring: Tier, pin: Tier | None, why: str) -> None:
        self.bring = _faster(self.bring, bring)
        self.pin = pin if self.pin is None else _faster(self.pin, pin or self.pin)
        self.why.append(why)


def plan(
    latest: Iterable[Revision],
    pins: Mapping[NodeId, Mapping[Digest, Tier]],
    holding: Mapping[NodeId, frozenset[Digest]],
) -> dict[NodeId, tuple[Keep, ...]]:
    """What each node keeps, in the order of digests.

    `latest` are the functions' revisions, `pins` what people want, `holding` what each node that
    there is has now. A function's copies stay where they are, as long as that is enough nodes;
    others are chosen by rendezvous hashing (Thaler and Ravishankar, 1998), so that a node that
    comes or goes moves few.
    """
    wishes: dict[NodeId, dict[Digest, _Wish]] = {node: {} for node in holding}
    for revision in latest:
        policy = revision.cache
        bring, why = _brought_to(policy), f"function {revision.function}"
        if bring is None:
            continue
        for digest in _needed(revision):
            for node in _nodes(digest, policy.min_copies, holding):
                wish = wishes[node].setdefault(digest, _Wish())
                wish.add(bring, policy.pinned_in, why)
    for node in wishes.keys() & pins.keys():
        for digest, tier in pins[node].items():
            wishes[node].setdefault(digest, _Wish()).add(tier, tier, BY_HAND)
    return {
        node: tuple(
            Keep(digest=digest, bring=wish.bring, pin=wish.pin, why=tuple(sorted(wish.why)))
            for digest, wish in sorted(of_node.items())
        )
        for node, of_node in wishes.items()
    }


def _brought_to(policy: CachePolicy) -> Tier | None:
    """The fastest tier that a policy names."""
    named = {policy.pinned_in, *policy.prefetch}
    return next((tier for tier in reversed(_SLOWEST_FIRST) if tier in named), None)


def _needed(revision: Revision) -> Iterator[Digest]:
    """What a start of the revision needs."""
    return (one.digest for one in (revision.checkpoint, revision.source) if one is not None)


def _nodes(
    digest: Digest, copies: int, holding: Mapping[NodeId, frozenset[Digest]]
) -> tuple[NodeId, ...]:
    def rank(node: NodeId) -> tuple[bool, bytes]:
        return digest not in holding[node], hashlib.sha256(f"{node} {digest}".encode()).digest()

    return tuple(sorted(holding, key=rank)[:copies])


def _faster(one: Tier, other: Tier) -> Tier:
    return max(one, other, key=_SLOWEST_FIRST.index)
