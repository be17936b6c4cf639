"""What a full tier gives up, as a pure decision."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stoker.node.greedy_dual import Valued, evict, used

COPIES = st.lists(
    st.builds(
        Valued,
        key=st.uuids(),
        size_bytes=st.integers(1, 10**12),
        reload_s=st.floats(1e-3, 1e4),
        uses=st.integers(0, 1000),
        value=st.floats(0, 1e6),
    ),
    unique_by=lambda copy: copy.key,
    max_size=20,
)


def copy(key: str, size_bytes: int, reload_s: float = 1.0, value: float = 0.0) -> Valued[str]:
    return Valued(key, size_bytes, reload_s, value=value)


def test_what_costs_least_to_bring_again_for_its_bytes_goes_first() -> None:
    far = used(copy("far", 100, reload_s=10), clock=0)
    near = used(copy("near", 100, reload_s=1), clock=0)
    large = used(copy("large", 1000, reload_s=1), clock=0)
    assert evict([far, near, large], 1, clock=0).victims == ("large",)
    assert evict([far, near, large], 1001, clock=0).victims == ("large", "near")


def test_what_is_used_often_stays() -> None:
    once, often = used(copy("once", 100), clock=0), copy("often", 100)
    for _ in range(5):
        often = used(often, clock=0)
    assert (once.uses, often.uses) == (1, 5)
    assert evict([often, once], 100, clock=0).victims == ("once",)


def test_what_was_used_often_but_long_ago_goes_in_the_end() -> None:
    old = copy("old", 100)
    for _ in range(50):
        old = used(old, clock=0)
    clock, rounds = 0.0, 0
    while True:
        new = used(copy(f"new {rounds}", 100), clock)
        eviction = evict([old, new], 100, clock)
        clock, rounds = eviction.clock, rounds + 1
        if eviction.victims == ("old",):
            break
    assert 40 < rounds < 60, "as many new ones as it had uses"


def test_nothing_is_given_up_for_nothing() -> None:
    assert evict([copy("a", 1)], 0, clock=3.5).victims == ()
    assert evict([copy("a", 1)], -7, clock=3.5).clock == 3.5


@given(COPIES, st.integers(0, 10**13), st.floats(0, 1e6))
def test_enough_goes_and_no_copy_more(
    copies: list[Valued[object]], needed_bytes: int, clock: float
) -> None:
    eviction = evict(copies, needed_bytes, clock)
    by_key = {copy.key: copy for copy in copies}
    victims = [by_key[key] for key in eviction.victims]
    freed_bytes = sum(copy.size_bytes for copy in victims)
    assert freed_bytes >= min(needed_bytes, sum(copy.size_bytes for copy in copies))
    if victims:
        assert freed_bytes - victims[-1].size_bytes < needed_bytes
    kept = [copy for copy in copies if copy.key not in eviction.victims]
    assert max((c.value for c in victims), default=0) <= min((c.value for c in kept), default=1e9)
    assert eviction.clock >= clock


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_use_never_makes_a_copy_worth_less(clock: float, later: float) -> None:
    once = used(copy("a", 1000), min(clock, later))
    assert used(once, max(clock, later)).value > once.value
