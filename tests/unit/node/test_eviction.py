"""What a full tier gives up, as a pure decision."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stoker.node.eviction import HALF_LIFE_USES, Valued, evict, used, worth

COPIES = st.lists(
    st.builds(
        Valued,
        key=st.uuids(),
        size_bytes=st.integers(1, 10**12),
        reload_s=st.floats(1e-3, 1e4),
        frequency=st.floats(0, 1e3),
        used_at=st.integers(0, 10**6),
    ),
    unique_by=lambda copy: copy.key,
    max_size=20,
)


def copy(key: str, size_bytes: int, reload_s: float = 1.0) -> Valued[str]:
    return Valued(key, size_bytes, reload_s)


def test_what_costs_least_to_bring_again_for_its_bytes_goes_first() -> None:
    far = used(copy("far", 100, reload_s=10), now=1)
    near = used(copy("near", 100, reload_s=1), now=1)
    large = used(copy("large", 1000, reload_s=1), now=1)
    assert evict([far, near, large], 1) == ("large",)
    assert evict([far, near, large], 1001) == ("large", "near")


def test_what_is_used_often_stays_and_what_was_never_used_goes() -> None:
    once, often, never = used(copy("once", 100), now=1), copy("often", 100), copy("never", 100)
    for now in range(1, 6):
        often = used(often, now)
    assert evict([often, once, never], 300) == ("never", "once", "often")


def test_what_was_used_often_but_long_ago_goes_in_the_end() -> None:
    old, new = copy("old", 100), used(copy("new", 100), now=HALF_LIFE_USES)
    for now in range(8):
        old = used(old, now)
    assert evict([old, new], 100) == ("new",)
    later = used(copy("new", 100), now=4 * HALF_LIFE_USES)
    assert evict([old, later], 100) == ("old",)


def test_a_use_counts_half_after_a_half_life() -> None:
    once = used(copy("a", 1), now=10)
    assert used(once, now=10 + HALF_LIFE_USES).frequency == 1.5
    assert worth(used(copy("b", 1), now=10 + HALF_LIFE_USES)) == worth(once) + 1, "twice as much"


def test_nothing_is_given_up_for_nothing() -> None:
    assert evict([copy("a", 1)], 0) == ()
    assert evict([copy("a", 1)], -7) == ()


@given(COPIES, st.integers(0, 10**13))
def test_enough_goes_and_no_copy_more(copies: list[Valued[object]], needed_bytes: int) -> None:
    by_key = {copy.key: copy for copy in copies}
    victims = [by_key[key] for key in evict(copies, needed_bytes)]
    freed_bytes = sum(copy.size_bytes for copy in victims)
    assert freed_bytes >= min(needed_bytes, sum(copy.size_bytes for copy in copies))
    if victims:
        assert freed_bytes - victims[-1].size_bytes < needed_bytes
    kept = [copy for copy in copies if copy not in victims]
    assert all(worth(victim) <= worth(stays) for victim in victims for stays in kept)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_use_never_makes_a_copy_worth_less(first: int, second: int) -> None:
    once = used(copy("a", 1000), min(first, second))
    assert worth(used(once, max(first, second))) > worth(once)
