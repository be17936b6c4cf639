"""Which node keeps what, as a pure decision."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stoker.domain import (
    Artifact,
    CachePolicy,
    Digest,
    FunctionName,
    NodeId,
    Resources,
    Revision,
    RevisionId,
    RuntimeSpec,
    ScalePolicy,
    StartupPolicy,
    Tier,
)
from stoker.node.wire import Keep
from stoker.scheduler.keeping import BY_HAND, plan

NOTHING: frozenset[Digest] = frozenset()


def digest(of: str) -> Digest:
    return Digest(f"blake3:{of}")


def revision(name: str, policy: CachePolicy, source: str | None = None) -> Revision:
    return Revision(
        id=RevisionId(f"{name}-00001"),
        function=FunctionName(name),
        number=1,
        created_at=0.0,
        content_digest=name,
        checkpoint=Artifact(digest(name), 100),
        source=Artifact(digest(source), 1) if source else None,
        runtime=RuntimeSpec(),
        resources=Resources(),
        scale=ScalePolicy(),
        startup=StartupPolicy(),
        env={},
        cache=policy,
    )


def nodes(count: int, **holding: frozenset[Digest]) -> dict[NodeId, frozenset[Digest]]:
    return {NodeId(f"n{n}"): holding.get(f"n{n}", NOTHING) for n in range(count)}


def keepers(planned: dict[NodeId, tuple[Keep, ...]], of: str) -> set[NodeId]:
    return {node for node, keep in planned.items() if any(k.digest == digest(of) for k in keep)}


def test_a_function_that_asks_for_nothing_has_nothing_kept() -> None:
    assert plan([revision("chat", CachePolicy())], {}, nodes(2)) == {"n0": (), "n1": ()}


def test_a_pin_keeps_one_copy_and_the_handlers_files_with_it() -> None:
    planned = plan([revision("chat", CachePolicy(pin=Tier.DRAM), "code")], {}, nodes(1))
    assert planned[NodeId("n0")] == tuple(
        Keep(digest=digest(of), bring=Tier.DRAM, pin=Tier.DRAM, why=("function chat",))
        for of in ("chat", "code")
    )


def test_copies_stay_where_they_are_and_others_are_added() -> None:
    policy = CachePolicy(min_copies=2)
    here = nodes(4, n2=frozenset({digest("chat")}))
    first = keepers(plan([revision("chat", policy)], {}, here), "chat")
    assert NodeId("n2") in first
    assert len(first) == 2
    (added,) = first - {NodeId("n2")}
    again = {**here, **dict.fromkeys(first, frozenset({digest("chat")}))}
    assert keepers(plan([revision("chat", policy)], {}, again), "chat") == first
    without = {node: held for node, held in again.items() if node != added}
    assert len(keepers(plan([revision("chat", policy)], {}, without), "chat")) == 2


def test_fewer_nodes_than_copies_keep_one_each() -> None:
    planned = plan([revision("chat", CachePolicy(min_copies=5))], {}, nodes(2))
    assert keepers(planned, "chat") == {"n0", "n1"}
    (keep,) = planned[NodeId("n0")]
    assert (keep.bring, keep.pin) == (Tier.SSD, Tier.SSD)


def test_a_prefetch_brings_and_does_not_pin() -> None:
    planned = plan([revision("chat", CachePolicy(prefetch=(Tier.SSD, Tier.DRAM)))], {}, nodes(1))
    (keep,) = planned[NodeId("n0")]
    assert (keep.bring, keep.pin) == (Tier.DRAM, None)


def test_what_several_want_is_the_most_that_one_wants_and_names_all() -> None:
    node = NodeId("n0")
    one = revision("chat", CachePolicy(pin=Tier.SSD))
    two = revision("chat", CachePolicy(prefetch=(Tier.DRAM,)))
    (keep,) = plan([one, two], {node: {digest("chat"): Tier.SSD}}, nodes(1))[node]
    assert (keep.bring, keep.pin) == (Tier.DRAM, Tier.SSD)
    assert keep.why == ("function chat", "function chat", BY_HAND)


def test_a_pin_by_hand_is_of_its_node_alone_and_waits_for_it() -> None:
    pins = {NodeId("n1"): {digest("x"): Tier.DRAM}, NodeId("gone"): {digest("x"): Tier.SSD}}
    planned = plan([], pins, nodes(2))
    assert planned == {
        "n0": (),
        "n1": (Keep(digest=digest("x"), bring=Tier.DRAM, pin=Tier.DRAM, why=(BY_HAND,)),),
    }


@given(
    count=st.integers(1, 8),
    copies=st.integers(1, 10),
    holders=st.sets(st.integers(0, 7)),
)
def test_there_are_as_many_copies_as_asked_for_and_no_needless_move(
    count: int, copies: int, holders: set[int]
) -> None:
    held = {f"n{n}": frozenset({digest("chat")}) for n in holders if n < count}
    here = nodes(count, **held)
    found = keepers(plan([revision("chat", CachePolicy(Tier.SSD, copies))], {}, here), "chat")
    assert len(found) == min(copies, count)
    has = {NodeId(name) for name in held}
    assert found <= has or has <= found
