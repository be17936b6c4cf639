"""What every `CheckpointStore` promises (see `stoker.checkpoints.store`)."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

import stoker_loader
from stoker.checkpoints.faults import CHUNK_BYTES
from stoker.checkpoints.multipart import PART_BYTES
from stoker.checkpoints.store import CheckpointStore, Content, InPlace
from stoker.domain import Artifact, Digest
from stoker.errors import CheckpointInvalid, CheckpointNotFound

ABSENT = Digest("blake3:" + "0" * 64)
SIZES = {
    "config.json": 100,
    "empty": 0,
    "tokenizer/ä b+c.json": 1000,
    "model.safetensors": PART_BYTES + 3 * CHUNK_BYTES + 77,
}


def make(folder: Path, seed: int = 0) -> tuple[Path, Content]:
    """A folder of files, and what is known of it."""
    random = Random(seed)
    for path, size_bytes in SIZES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(random.randbytes(size_bytes))
    digest = stoker_loader.digest(folder)
    artifact = Artifact(
        digest=Digest(digest.root),
        size_bytes=sum(SIZES.values()),
        name=f"model-{seed}",
        created_at=1000.0 + seed,
    )
    return folder, Content(artifact, digest)


def ignore(done_bytes: int, total_bytes: int) -> None:
    """A report that nobody reads."""


async def kept_again(store: CheckpointStore, digest: Digest, folder: Path) -> stoker_loader.Digest:
    """The digest of the files as whoever loads them gets them."""
    location = await store.locate(digest)
    if isinstance(location, InPlace):
        return stoker_loader.digest(location.path)
    for file in location.content.digest.files:
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        stoker_loader.fetch(location.sources[file.name], folder / file.name, expected=file)
    return stoker_loader.digest(folder)


async def test_what_is_not_there_is_not_found(kept: Any) -> None:
    store: CheckpointStore = kept.store
    for asked in (
        store.content(ABSENT),
        store.locate(ABSENT),
        store.verify(ABSENT, ignore),
        store.delete(ABSENT),
    ):
        with pytest.raises(CheckpointNotFound, match=ABSENT):
            await asked
    assert [content async for content in store.contents()] == []


async def test_what_was_put_is_what_is_got(kept: Any, tmp_path: Path) -> None:
    folder, content = make(tmp_path / "made")
    seen: list[tuple[int, int]] = []
    await kept.store.put(folder, content, lambda done, total: seen.append((done, total)))
    assert not folder.exists()
    assert (seen[-1], seen) == ((sum(SIZES.values()),) * 2, sorted(seen))
    digest = content.artifact.digest
    assert await kept.store.content(digest) == content
    assert await kept_again(kept.store, digest, tmp_path / "again") == content.digest
    await kept.store.verify(digest, ignore)


async def test_all_are_listed_in_order_and_one_can_be_deleted(kept: Any, tmp_path: Path) -> None:
    contents = []
    for seed in range(3):
        folder, content = make(tmp_path / str(seed), seed)
        await kept.store.put(folder, content, ignore)
        contents.append(content)
    contents.sort(key=lambda content: content.artifact.digest)
    assert [content async for content in kept.store.contents()] == contents
    gone = contents.pop(1).artifact.digest
    await kept.store.delete(gone)
    with pytest.raises(CheckpointNotFound):
        await kept.store.locate(gone)
    assert [content async for content in kept.store.contents()] == contents
    for content in contents:
        await kept.store.verify(content.artifact.digest, ignore)


async def test_the_same_again_changes_nothing(kept: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder, content = make(tmp_path / name)
        await kept.store.put(folder, content, ignore)
        assert not folder.exists()
    assert [found async for found in kept.store.contents()] == [content]


@pytest.mark.parametrize(
    ("path", "offset", "chunk"),
    [("config.json", 7, 0), ("model.safetensors", 2 * CHUNK_BYTES + 5, 2)],
)
async def test_a_flipped_bit_is_found_named_and_healed(
    kept: Any, tmp_path: Path, path: str, offset: int, chunk: int
) -> None:
    folder, content = make(tmp_path / "made")
    digest = content.artifact.digest
    await kept.store.put(folder, content, ignore)
    kept.flip(digest, path, offset)
    with pytest.raises(CheckpointInvalid) as caught:
        await kept.store.verify(digest, ignore)
    assert caught.value.details["file"] == path
    if caught.value.details["reason"] == "chunk_mismatch":  # else the object was seen to change
        assert caught.value.details["chunk"] == chunk
    folder, _ = make(tmp_path / "again")
    await kept.store.put(folder, content, ignore)
    await kept.store.verify(digest, ignore)
    assert await kept_again(kept.store, digest, tmp_path / "got") == content.digest
