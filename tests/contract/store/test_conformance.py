"""What every `Store` promises (see `stoker.store.base`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from stoker.errors import BadRequest, Conflict, ShuttingDown
from stoker.store.base import (
    MAX_TRANSACTION_OPS,
    MAX_VALUE_BYTES,
    Change,
    Compacted,
    Compare,
    Delete,
    LeaseId,
    LeaseNotFound,
    Put,
    Store,
)


async def take(changes: AsyncGenerator[Change], count: int) -> list[Change]:
    return [await anext(changes) for _ in range(count)]


def said(changes: list[Change]) -> list[tuple[int, str, bytes | None]]:
    return [(c.revision, c.key, c.entry.value if c.entry else None) for c in changes]


async def test_an_empty_store_is_at_revision_zero(store: Store) -> None:
    assert await store.get("a") is None
    assert await store.range("") == await store.range("x")
    assert (await store.range("")).revision == 0


async def test_a_key_remembers_who_created_and_who_changed_it(store: Store) -> None:
    first = await store.commit([], [Put("a", b"1")])
    await store.commit([], [Put("b", b"x")])
    third = await store.commit([], [Put("a", b"2")])
    entry = await store.get("a")
    assert entry is not None
    assert (entry.value, entry.create_revision, entry.mod_revision) == (b"2", first, third)
    assert (first, third) == (1, 3)


async def test_a_key_deleted_and_put_again_is_a_new_one(store: Store) -> None:
    await store.commit([], [Put("a", b"1")])
    await store.commit([], [Delete("a")])
    await store.commit([], [Put("a", b"2")])
    entry = await store.get("a")
    assert entry is not None
    assert entry.create_revision == entry.mod_revision == 3


async def test_range_gives_the_prefix_in_order_of_keys(store: Store) -> None:
    await store.commit([], [Put(key, key.encode()) for key in ("b/2", "a/1", "b/1", "b", "c")])
    listing = await store.range("b/")
    assert [entry.key for entry in listing.entries] == ["b/1", "b/2"]
    assert listing.revision == 1


async def test_all_ops_of_a_transaction_share_one_revision(store: Store) -> None:
    await store.commit([], [Put("old", b"")])
    revision = await store.commit([], [Put("a", b"1"), Put("b", b"2"), Delete("old")])
    listing = await store.range("")
    assert {entry.mod_revision for entry in listing.entries} == {revision}
    assert [entry.key for entry in listing.entries] == ["a", "b"]


async def test_ops_that_change_nothing_make_no_revision(store: Store) -> None:
    assert await store.commit([], [Put("a", b"1")]) == 1
    assert await store.commit([], [Delete("missing")]) == 1
    assert await store.commit([Compare("a", 1)], []) == 1


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (Compare("a", 1), True),
        (Compare("a", 0), False),
        (Compare("a", 2), False),
        (Compare("missing", 0), True),
        (Compare("missing", 1), False),
    ],
)
async def test_a_transaction_is_applied_only_if_its_compares_hold(
    store: Store, compare: Compare, holds: bool
) -> None:
    await store.commit([], [Put("a", b"1")])
    if holds:
        await store.commit([compare], [Put("b", b"2")])
    else:
        with pytest.raises(Conflict) as caught:
            await store.commit([Compare("b", 0), compare], [Put("b", b"2"), Delete("a")])
        assert caught.value.details["key"] == compare.key
    assert (await store.get("b") is not None) is holds
    assert await store.get("a") is not None


async def test_of_concurrent_swaps_exactly_one_wins(store: Store) -> None:
    revision = await store.commit([], [Put("a", b"0")])
    swaps = [store.commit([Compare("a", revision)], [Put("a", bytes([n]))]) for n in range(20)]
    outcomes = await asyncio.gather(*swaps, return_exceptions=True)
    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [revision + 1]
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19


async def test_what_a_commit_acknowledged_is_read_at_once(store: Store) -> None:
    for n in range(50):
        await store.commit([], [Put("n", str(n).encode())])
        entry = await store.get("n")
        assert entry is not None
        assert entry.value == str(n).encode()


async def test_bounds_and_doubles_are_refused_whole(store: Store) -> None:
    refused: list[list[Any]] = [
        [Put(f"k{n}", b"") for n in range(MAX_TRANSACTION_OPS + 1)],
        [Put("a", b"x" * (MAX_VALUE_BYTES + 1))],
        [Put("", b"")],
        [Put("a", b"1"), Delete("a")],
    ]
    for ops in refused:
        with pytest.raises(BadRequest):
            await store.commit([], ops)
    assert (await store.range("")).revision == 0


async def test_a_cancelled_commit_leaves_the_next_ones_alone(store: Store) -> None:
    commits = [asyncio.ensure_future(store.commit([], [Put(f"k{n}", b"")])) for n in range(5)]
    await asyncio.wait(commits[:1])
    commits[1].cancel()
    done = await asyncio.gather(*commits, return_exceptions=True)
    assert isinstance(done[0], int)
    assert isinstance(done[4], int)
    assert await store.get("k4") is not None


# --- watches --------------------------------------------------------------------------------


async def test_a_watch_sees_what_came_before_it_and_what_comes_after(store: Store) -> None:
    await store.commit([], [Put("w/a", b"1")])
    revision = await store.commit([], [Put("w/b", b"2"), Put("other", b"")])
    watch = store.watch("w/", 0)
    assert said(await take(watch, 2)) == [(1, "w/a", b"1"), (2, "w/b", b"2")]
    coming = asyncio.ensure_future(anext(watch))
    await store.commit([], [Put("other", b"again")])
    await store.commit([], [Delete("w/a")])
    assert said([await coming]) == [(revision + 2, "w/a", None)]
    await watch.aclose()


async def test_a_watch_after_a_listing_misses_nothing_and_repeats_nothing(store: Store) -> None:
    await store.commit([], [Put("a", b"1")])
    listing = await store.range("")
    await store.commit([], [Put("a", b"2")])
    watch = store.watch("", listing.revision)
    await store.commit([], [Put("a", b"3")])
    assert said(await take(watch, 2)) == [(2, "a", b"2"), (3, "a", b"3")]
    await watch.aclose()


async def test_many_watchers_each_see_every_change_once_in_order(store: Store) -> None:
    async def collect() -> list[tuple[int, str, bytes | None]]:
        watch = store.watch("k/", 0)
        try:
            return said(await take(watch, 20))
        finally:
            await watch.aclose()

    async with asyncio.TaskGroup() as group:
        watchers = [group.create_task(collect()) for _ in range(5)]
        for n in range(20):
            await store.commit([], [Put(f"k/{n % 3}", str(n).encode())])
    expected = [(n + 1, f"k/{n % 3}", str(n).encode()) for n in range(20)]
    assert [watcher.result() for watcher in watchers] == [expected] * 5


async def test_a_watcher_too_far_behind_is_told_to_list_again(
    store: Store, history_limit: int
) -> None:
    watch = store.watch("", 0)
    await store.commit([], [Put("a", b"first")])
    assert said(await take(watch, 1)) == [(1, "a", b"first")]
    for n in range(history_limit + 1):
        await store.commit([], [Put("a", str(n).encode())])
    with pytest.raises(Compacted) as caught:
        await anext(watch)
    listing = await store.range("")
    assert caught.value.details["revision"] == listing.revision
    fresh = store.watch("", listing.revision)
    await store.commit([], [Put("b", b"")])
    assert said(await take(fresh, 1)) == [(listing.revision + 1, "b", b"")]
    await fresh.aclose()


async def test_a_watch_from_the_future_waits_for_it(store: Store) -> None:
    watch = store.watch("", 2)
    coming = asyncio.ensure_future(anext(watch))
    for n in range(3):
        await store.commit([], [Put("a", str(n).encode())])
    assert said([await coming]) == [(3, "a", b"2")]
    await watch.aclose()


async def test_a_cancelled_watch_ends_alone(store: Store) -> None:
    watch, other = store.watch("", 0), store.watch("", 0)
    waiting = [asyncio.ensure_future(anext(each)) for each in (watch, other)]
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    await store.commit([], [Put("a", b"")])
    assert said([await waiting[1]]) == [(1, "a", b"")]
    await other.aclose()


# --- leases ---------------------------------------------------------------------------------


async def test_keys_vanish_with_their_lease_in_one_revision(store: Store, clock: Any) -> None:
    lease = await store.grant(10)
    await store.commit([], [Put("a", b"", lease), Put("b", b"", lease), Put("stays", b"")])
    watch = store.watch("", 1)
    clock.advance(9.9)
    assert await store.get("a") is not None
    clock.advance(0.2)
    assert said(await take(watch, 2)) == [(2, "a", None), (2, "b", None)]
    assert [entry.key for entry in (await store.range("")).entries] == ["stays"]
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(lease)
    with pytest.raises(LeaseNotFound):
        await store.commit([], [Put("c", b"", lease)])
    await watch.aclose()


async def test_a_lease_kept_alive_lives_on(store: Store, clock: Any) -> None:
    lease = await store.grant(10)
    await store.commit([], [Put("a", b"", lease)])
    for _ in range(5):
        clock.advance(8)
        assert await store.keep_alive(lease) == 10
    assert await store.get("a") is not None
    gone = asyncio.ensure_future(anext(store.watch("a", 1)))
    clock.advance(10)
    assert (await gone).entry is None


async def test_an_expired_lease_cannot_be_kept_alive_even_before_its_keys_are_gone(
    store: Store, clock: Any
) -> None:
    lease = await store.grant(1)
    await store.commit([], [Put("a", b"", lease)])
    clock.advance(1)  # the timer has fired; the deletion may still be on its way to the disk
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(lease)


async def test_revoking_a_lease_takes_its_keys_at_once(store: Store) -> None:
    lease = await store.grant(10)
    await store.commit([], [Put("a", b"", lease)])
    await store.revoke(lease)
    assert await store.get("a") is None
    with pytest.raises(LeaseNotFound):
        await store.revoke(lease)


async def test_a_put_without_the_lease_takes_the_key_out_of_it(store: Store) -> None:
    lease = await store.grant(10)
    await store.commit([], [Put("a", b"1", lease)])
    await store.commit([], [Put("a", b"2")])
    await store.revoke(lease)
    assert await store.get("a") is not None


async def test_an_unknown_lease_is_an_error(store: Store) -> None:
    with pytest.raises(LeaseNotFound):
        await store.commit([], [Put("a", b"", LeaseId(7))])
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(LeaseId(7))
    with pytest.raises(BadRequest):
        await store.grant(0)
    assert (await store.range("")).revision == 0


# --- close ----------------------------------------------------------------------------------


async def test_close_finishes_what_was_begun_and_refuses_the_rest(store: Store) -> None:
    commits = [asyncio.ensure_future(store.commit([], [Put(f"k{n}", b"")])) for n in range(3)]
    watching = asyncio.ensure_future(anext(store.watch("never", 0)))
    await asyncio.wait(commits[:1])
    await store.close()
    assert await asyncio.gather(*commits) == [1, 2, 3]
    with pytest.raises(ShuttingDown):
        await watching
    for refused in (store.get("a"), store.range(""), store.commit([], [Put("a", b"")])):
        with pytest.raises(ShuttingDown):
            await refused
    await store.close()  # closing twice is fine
