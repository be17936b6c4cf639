"""The node's cache over a store elsewhere: what it fetches, keeps, resumes and gives up."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import stoker_loader.aio
from integration.node.conftest import (
    CHUNKS,
    SIGNED_UNTIL,
    WEIGHTS,
    Make,
    Remote,
    brought,
    opened,
)
from stoker.checkpoints.faults import CHUNK_BYTES
from stoker.checkpoints.store import Signed, StoreRefused, StoreUnreachable
from stoker.domain import Digest
from stoker.errors import CheckpointInvalid, CheckpointNotFound, StorageFull
from support.object_store import Stalls, status


async def test_a_model_is_fetched_once_and_found_again(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    async with opened(tmp_path / "cache", remote) as cache:
        assert await cache.find(model.digest) is None
        path, size_bytes = await brought(cache, model)
        assert size_bytes == model.size_bytes
        assert await cache.find(model.digest) == path
    remote.down = True
    asked = len(model.weights.asked)
    async with opened(tmp_path / "cache", remote) as again:
        assert await brought(again, model) == (path, 0)
        assert await again.resident_bytes(model.digest) > 0
    assert len(model.weights.asked) == asked
    assert remote.located == [model.digest]


async def test_many_who_want_it_at_once_have_it_fetched_once(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    async with opened(tmp_path / "cache", remote) as cache:
        await asyncio.gather(*(brought(cache, model) for _ in range(10)))
    assert remote.located == [model.digest]
    assert sorted(model.weights.ranges) == [n * CHUNK_BYTES for n in range(CHUNKS)]


async def test_weights_can_be_read_while_they_arrive(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    stall = Stalls(model.weights, CHUNK_BYTES)
    model.weights.faults.append(stall)
    async with opened(tmp_path / "cache", remote) as cache, cache.hold(model.digest) as held:
        assert held.arrival is not None
        assert not held.arrival.done()
        assert (held.path / "config.json").exists()
        assert not (held.path / WEIGHTS).exists()
        assert (held.path / f"{WEIGHTS}.part.map").exists()
        waiting = asyncio.create_task(stoker_loader.aio.wait_complete(held.path / WEIGHTS))
        await asyncio.to_thread(stall.reached.wait, 30)
        stall.release()
        await waiting
        await asyncio.shield(held.arrival)
        assert (held.path / WEIGHTS).read_bytes() == model.weights.body


async def test_when_the_last_one_leaves_the_fetch_stops_and_the_next_goes_on(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    stall = Stalls(model.weights, 2 * CHUNK_BYTES)
    model.weights.faults.append(stall)
    async with opened(tmp_path / "cache", remote) as cache:
        async with AsyncExitStack() as first:
            held = await first.enter_async_context(cache.hold(model.digest))
            async with cache.hold(model.digest):
                await asyncio.to_thread(stall.reached.wait, 30)
            assert held.arrival is not None
            assert not held.arrival.done(), "one is still there"
            part = held.path / f"{WEIGHTS}.part"
            async with await stoker_loader.aio.open_arriving(held.path) as checkpoint:
                await checkpoint.wait(["t0"])
        assert part.exists()
        assert await cache.find(model.digest) is None
        before = len(model.weights.ranges)
        path, _ = await brought(cache, model)
        assert len(model.weights.ranges) - before < CHUNKS, "what had come was not asked for again"
        assert not part.exists()
        assert await cache.find(model.digest) == path


async def test_what_a_crash_left_is_compared_and_completed(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    """Complete files without a record, one of them rotten; and a half-removed folder."""
    model = make(1)
    folder = tmp_path / "cache" / model.digest.removeprefix("blake3:")
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(model.weights.body)
    (folder / "config.json").write_text("{x")
    for name in ("tokenizer.json", "vocabulary.txt"):
        (folder / name).write_bytes(model.stores[name].body)
    (folder / "left behind").write_text("of nobody")
    (tmp_path / "cache" / "gone-1").mkdir()
    async with opened(tmp_path / "cache", remote) as cache:
        assert await cache.find(model.digest) is None
        _, size_bytes = await brought(cache, model)
        assert size_bytes == len(model.stores["config.json"].body)
        assert not (folder / "left behind").exists()
    assert model.weights.asked == []
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [folder.name]


async def test_a_copy_that_changed_on_the_disk_is_found_and_mended(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    async with opened(tmp_path / "cache", remote) as cache:
        path, _ = await brought(cache, model)
        weights = path / WEIGHTS
        os.chmod(weights, 0o600)  # noqa: PTH101 - of one file, as a hand would
        with weights.open("r+b") as file:
            file.seek(CHUNK_BYTES + 5)
            file.write(b"x")
        _, size_bytes = await brought(cache, model)
        assert size_bytes == len(model.weights.body)


async def test_a_store_that_sends_other_bytes_is_blamed_and_nothing_is_kept_of_them(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    body = bytearray(model.weights.body)
    body[2 * CHUNK_BYTES + 1] ^= 1
    model.weights.body = bytes(body)
    async with opened(tmp_path / "cache", remote) as cache:
        with pytest.raises(CheckpointInvalid, match="chunk 2 with other bytes") as caught:
            await brought(cache, model)
        assert caught.value.details["file"] == WEIGHTS
        assert await cache.find(model.digest) is None
        model.weights.body = (model.folder / WEIGHTS).read_bytes()
        await brought(cache, model)


async def test_an_object_that_was_put_again_is_asked_for_anew(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    etags = iter(['"two"'])
    located = remote.locate

    async def locate(digest: Digest) -> Signed:
        signed = await located(digest)
        model.weights.etag = next(etags, model.weights.etag)  # when it had been signed
        return signed

    remote.locate = locate  # type: ignore[method-assign]
    async with opened(tmp_path / "cache", remote) as cache:
        await brought(cache, model)
    assert len(remote.located) == 2


@pytest.mark.parametrize(("now", "signed"), [(SIGNED_UNTIL - 1, 2), (SIGNED_UNTIL, 3)])
async def test_what_is_refused_is_signed_again_only_if_that_is_news(
    tmp_path: Path, remote: Remote, make: Make, now: float, signed: int
) -> None:
    model = make(1)
    model.weights.faults.append(status(403))
    async with opened(tmp_path / "cache", remote, now=now) as cache:
        with pytest.raises(StoreRefused, match=WEIGHTS) as caught:
            await brought(cache, model)
        assert "Signature" not in caught.value.message
    assert len(remote.located) == signed


async def test_what_cannot_be_had_is_said_to_everyone_and_tried_anew_by_the_next(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    remote.down = True
    async with opened(tmp_path / "cache", remote) as cache:
        outcomes = await asyncio.gather(
            *(brought(cache, model) for _ in range(3)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [StoreUnreachable] * 3
        remote.down = False
        await brought(cache, model)
        with pytest.raises(CheckpointNotFound):
            async with cache.hold(Digest("blake3:" + "0" * 64)):
                raise AssertionError("it is nowhere")


async def test_the_least_valuable_copy_goes_and_none_that_is_held(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    one, two, three = make(1), make(2), make(3)
    async with opened(tmp_path / "cache", remote, budget_bytes=2 * one.size_bytes + 99) as cache:
        for model in (one, two, one):  # one was used twice
            await brought(cache, model)
        await brought(cache, three)
        assert await cache.find(two.digest) is None
        assert not (tmp_path / "cache" / two.digest.removeprefix("blake3:")).exists()
        assert await cache.find(one.digest)
        async with cache.hold(one.digest), cache.hold(three.digest):
            with pytest.raises(StorageFull, match="is in use: raise --cache-size"):
                await brought(cache, two)
            assert await cache.find(one.digest)
            assert await cache.find(three.digest)
        await brought(cache, two)
        assert (await cache.find(one.digest) is None) != (await cache.find(three.digest) is None)


async def test_a_start_with_a_smaller_budget_gives_up_what_is_too_much(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    one, two = make(1), make(2)
    async with opened(tmp_path / "cache", remote) as cache:
        await brought(cache, one)
        await brought(cache, two)
    async with opened(tmp_path / "cache", remote, budget_bytes=one.size_bytes + (1 << 20)) as cache:
        found = [await cache.find(model.digest) for model in (one, two)]
        assert found.count(None) == 1


async def test_one_that_is_wanted_while_it_is_evicted_is_whole_afterwards(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    one, two = make(1), make(2)
    async with opened(tmp_path / "cache", remote, budget_bytes=one.size_bytes + 99) as cache:
        await brought(cache, one)
        for _ in range(5):
            outcomes = await asyncio.gather(
                brought(cache, one), brought(cache, two), return_exceptions=True
            )
            assert {type(outcome) for outcome in outcomes} <= {tuple, StorageFull}
            assert tuple in {type(outcome) for outcome in outcomes}
            for model in (one, two):
                if path := await cache.find(model.digest):
                    assert stoker_loader.digest(path) == model.content.digest
            files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
            assert sum(path.stat().st_size for path in files) < one.size_bytes + (1 << 20)


async def test_what_could_never_fit_takes_nothing_from_others(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    one, large = make(1), make(2, 3 * CHUNKS)
    async with opened(tmp_path / "cache", remote, budget_bytes=2 * one.size_bytes) as cache:
        await brought(cache, one)
        with pytest.raises(StorageFull, match="raise --cache-size"):
            await brought(cache, large)
        assert await cache.find(one.digest)
    assert large.weights.asked == []
