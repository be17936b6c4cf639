"""Folders that are uploaded to a real bucket become checkpoints, and say what they lack."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from stoker.checkpoints.bucket import Bucket
from stoker.checkpoints.bucket_store import BucketStore
from stoker.checkpoints.import_state import Import, ImportState, NotImported
from stoker.checkpoints.imports import Imports
from stoker.checkpoints.registry import Registry
from stoker.checkpoints.store import StoreUnreachable
from stoker.errors import Unavailable
from stoker.store.catalog import Catalog


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def registry(bucket: Bucket, catalog: Catalog, home: Path) -> Registry:
    return Registry(home, catalog, BucketStore(bucket))


@pytest.fixture
def imports(bucket: Bucket, registry: Registry, home: Path) -> Imports:
    return Imports(bucket, registry, home / "imports")


def contents(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The files of these names, or all."""
    found = names or tuple(path.name for path in folder.iterdir())
    return {name: (folder / name).read_bytes() for name in found}


async def put(bucket: Bucket, folder: Path, *names: str, into: str = "smol") -> None:
    for name, data in contents(folder, names).items():
        await bucket.put(f"models/{into}/{name}", data)


@asynccontextmanager
async def running(imports: Imports) -> AsyncIterator[None]:
    task = asyncio.create_task(imports.run())
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def settled(imports: Imports, name: str = "smol") -> Import:
    """The folder as one look finds it."""
    await imports.look(name)
    (found,) = [one for one in imports.imports() if one.name == name]
    return found


async def test_a_folder_becomes_a_checkpoint_with_the_last_of_its_files(
    bucket: Bucket, imports: Imports, registry: Registry, checkpoint: Path
) -> None:
    await imports.look_at_all()
    with pytest.raises(NotImported, match="no folder models/smol"):
        imports.require("smol")
    await put(bucket, checkpoint, "config.json")
    found = await settled(imports)
    assert (found.state, found.lacking) == (ImportState.INCOMPLETE, ("model.safetensors",))
    with pytest.raises(NotImported, match=r"models/smol lacks model\.safetensors; upload it"):
        imports.require("smol")
    await put(bucket, checkpoint)
    found = await settled(imports)
    assert found.state is ImportState.IMPORTED
    artifact = await registry.resolve("smol")
    assert imports.require("smol") == found.digest == artifact.digest
    await registry.store.verify(artifact.digest, lambda *_: None)


async def test_shards_are_waited_for_by_their_index(
    bucket: Bucket, imports: Imports, checkpoint: Path, write_shards: Any, tmp_path: Path
) -> None:
    shards = write_shards(tmp_path / "shards")
    names = sorted(path.name for path in shards.iterdir())
    *first, last = [name for name in names if name.endswith(".safetensors")]
    others = [name for name in names if name not in (*first, last)]
    await put(bucket, shards, *others, *first)
    assert (await settled(imports)).lacking == (last,)
    await put(bucket, shards, last)
    sharded = await settled(imports)
    assert sharded.state is ImportState.IMPORTED
    await put(bucket, checkpoint, into="single")
    assert (await settled(imports, "single")).digest == sharded.digest, "the same weights"


async def test_a_replaced_file_is_a_new_checkpoint_and_the_old_one_stays(
    bucket: Bucket, imports: Imports, registry: Registry, checkpoint: Path
) -> None:
    await put(bucket, checkpoint)
    first = await settled(imports)
    assert first.digest is not None
    (checkpoint / "config.json").write_text('{"changed": true}')
    await put(bucket, checkpoint, "config.json")
    second = await settled(imports)
    assert second.state is ImportState.IMPORTED
    assert second.digest != first.digest
    assert (await registry.resolve("smol")).digest == second.digest
    await registry.store.verify(first.digest, lambda *_: None)
    # While it is incomplete again, what was imported is what its name stands for.
    await bucket.delete(["models/smol/model.safetensors"])
    assert (await settled(imports)).state is ImportState.INCOMPLETE
    assert imports.require("smol") == second.digest


async def test_what_was_imported_is_known_after_a_restart_and_not_brought_again(
    bucket: Bucket, imports: Imports, registry: Registry, checkpoint: Path, home: Path
) -> None:
    await put(bucket, checkpoint)
    first = await settled(imports)
    asked: list[str] = []
    bucket.client.meta.events.register(
        "before-parameter-build.s3.PutObject", lambda params, **_: asked.append(params["Key"])
    )
    again = Imports(bucket, registry, home / "imports")
    assert await settled(again) == first
    assert asked == []
    assert not any((home / "imports").rglob("*.safetensors")), "nothing of it is left"


async def test_pickles_and_paths_that_climb_are_refused(
    bucket: Bucket, imports: Imports, checkpoint: Path
) -> None:
    await put(bucket, checkpoint, "config.json")
    await bucket.put("models/smol/pytorch_model.bin", b"a program")
    found = await settled(imports)
    assert found.state is ImportState.REFUSED
    with pytest.raises(NotImported, match="stoker_loader convert"):
        imports.require("smol")


async def test_a_damaged_file_is_named_and_another_upload_of_it_heals(
    bucket: Bucket, imports: Imports, checkpoint: Path, home: Path
) -> None:
    await put(bucket, checkpoint)
    await bucket.put("models/smol/model.safetensors", b"\xff" * 100)
    found = await settled(imports)
    assert found.state is ImportState.REFUSED
    assert found.reason is not None
    assert "model.safetensors" in found.reason
    assert not list((home / "imports").iterdir()), "nothing of it is kept"
    await put(bucket, checkpoint, "model.safetensors")
    assert (await settled(imports)).state is ImportState.IMPORTED


async def test_one_bad_folder_stops_no_other_and_an_empty_file_comes_along(
    bucket: Bucket, imports: Imports, registry: Registry, checkpoint: Path
) -> None:
    await bucket.put("models/bad/model.safetensors.index.json", b'{"weight_map": {"w": []}}')
    await bucket.put("models/deep/config.json", b"[" * 100_000)
    await put(bucket, checkpoint, into="good")
    await bucket.put("models/good/merges.txt", b"")
    await imports.look_at_all()
    await imports.until(lambda: imports.imports()[-1].state is ImportState.IMPORTED)
    assert {one.name: one.state for one in imports.imports()} == {
        "bad": ImportState.REFUSED,
        "deep": ImportState.REFUSED,
        "good": ImportState.IMPORTED,
    }
    content = await registry.store.content(imports.require("good"))
    assert "merges.txt" in {file.name for file in content.digest.files}


async def test_a_bucket_that_is_away_is_not_taken_for_an_empty_one(
    bucket: Bucket, imports: Imports, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable, match="not looked at yet"):
        imports.require("smol")

    def away(_prefix: str) -> Any:
        raise StoreUnreachable("it is away")

    monkeypatch.setattr(bucket, "objects", away)
    await imports.look_at_all()
    with pytest.raises(StoreUnreachable):
        imports.require("smol")


async def test_events_say_where_to_look_and_a_listing_finds_what_they_missed(
    bucket: Bucket, registry: Registry, checkpoint: Path, home: Path
) -> None:
    clock = Clock()
    imports = Imports(bucket, registry, home / "imports", clock=clock)
    await put(bucket, checkpoint, into="before")
    async with running(imports):
        await imports.until(lambda: imports.knows("before"))
        await put(bucket, checkpoint, into="told")
        await put(bucket, checkpoint, into="missed")
        for key in ("models/told/config.json", "elsewhere/x", "models/told/config.json"):
            imports.changed(key)
        clock.now += 1.0
        imports.changed("models/told/model.safetensors")
        clock.now += 1.0
        imports.changed("models/nobody/x")
        await imports.until(lambda: imports.knows("told"))
        assert not imports.knows("missed")
        clock.now += 120.0
        imports.changed("models/nobody/x")
        await imports.until(lambda: imports.knows("missed"))
