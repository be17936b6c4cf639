"""What becomes of artifacts after they were pushed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stoker.checkpoints.files import Kind
from stoker.checkpoints.upkeep import YOUNG_S, Upkeep
from stoker.domain import FunctionName
from stoker.errors import CheckpointInUse, CheckpointInvalid, CheckpointNotFound
from stoker.store.catalog import Catalog
from stoker.store.draft import RevisionDraft


@pytest.fixture
def upkeep(pusher: Any, catalog: Catalog) -> Callable[..., Upkeep]:
    def at(now: float = 0.0) -> Upkeep:
        registry = pusher.registry
        return Upkeep(catalog, registry.store, registry.turns, now=lambda: now)

    return at


async def test_what_was_pushed_is_described_verified_and_deleted(
    pusher: Any, checkpoint: Path, upkeep: Callable[..., Upkeep], catalog: Catalog
) -> None:
    artifact = await pusher.push(checkpoint, "small")
    described = await upkeep().describe("small")
    assert (described.artifact, described.names, described.revisions) == (artifact, ("small",), ())
    assert {file.name for file in described.files} >= {"config.json", "model.safetensors"}
    seen: list[tuple[int, int]] = []
    assert await upkeep().verify("small", lambda *report: seen.append(report)) == artifact
    assert seen[-1][0] == seen[-1][1]
    revision, _ = await catalog.deploy(RevisionDraft(FunctionName("f"), checkpoint=artifact), 1.0)
    with pytest.raises(CheckpointInUse, match="f-00001"):
        await upkeep().delete("small")
    assert (await upkeep().describe(artifact.digest)).revisions == (revision.id,)
    await catalog.delete("f")
    assert await upkeep().delete("small") == artifact
    assert not pusher.path(artifact).exists()
    with pytest.raises(CheckpointNotFound):
        await upkeep().describe("small")
    assert (await pusher.push(checkpoint, "small")).digest == artifact.digest
    assert (await upkeep().describe("small")).names == ("small",)


async def test_rot_is_found_kept_from_being_served_and_healed_by_a_push(
    pusher: Any, checkpoint: Path, upkeep: Callable[..., Upkeep]
) -> None:
    """Rot under unchanged times: the record is told that the file looks as it should."""
    from stoker.checkpoints.records import read_record, snapshot, write_record

    artifact = await pusher.push(checkpoint, "small")
    weights = pusher.path(artifact) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(data)
    record_path = pusher.path(artifact).with_suffix(".json")
    record = read_record(record_path)
    assert record is not None
    rotten = record.__class__(
        record.version, record.artifact, record.digest, snapshot(pusher.path(artifact))
    )
    write_record(record_path, rotten)
    await pusher.folder(artifact.digest)  # nobody can tell yet
    with pytest.raises(CheckpointInvalid, match=r"model\.safetensors"):
        await upkeep().verify("small", lambda *_: None)
    with pytest.raises(CheckpointInvalid):
        await pusher.folder(artifact.digest)
    assert (await pusher.push(checkpoint, "small")).digest == artifact.digest
    await upkeep().verify("small", lambda *_: None)
    await pusher.folder(artifact.digest)


async def test_a_folder_that_lost_its_files_is_not_taken_for_the_artifact(
    pusher: Any, checkpoint: Path, upkeep: Callable[..., Upkeep]
) -> None:
    artifact = await pusher.push(checkpoint, "small")
    for file in pusher.path(artifact).iterdir():
        file.unlink()
    for _ in range(2):
        with pytest.raises(CheckpointInvalid):
            await upkeep().verify("small", lambda *_: None)
    assert not await pusher.registry.store.is_sound(artifact.digest)
    await pusher.push(checkpoint, "small")
    await upkeep().verify("small", lambda *_: None)


async def test_what_nobody_needs_is_collected_an_hour_after_it_was_pushed(
    pusher: Any, checkpoint: Path, sources: Path, upkeep: Callable[..., Upkeep], catalog: Catalog
) -> None:
    named = await pusher.push(checkpoint, "small")
    used = await pusher.push(sources, kind=Kind.SOURCE)
    (sources / "handler.py").write_text("def predict(x):\n    return 2 * x\n")
    unused = await pusher.push(sources, kind=Kind.SOURCE)
    await catalog.deploy(RevisionDraft(FunctionName("f"), source=used), 1.0)
    young, old = unused.created_at + YOUNG_S, unused.created_at + YOUNG_S + 1
    assert await upkeep(young).collect() == ()
    assert await upkeep(old).collect(keep=True) == (unused,)
    assert pusher.path(unused).exists()
    assert await upkeep(old).collect() == (unused,)
    assert not pusher.path(unused).exists()
    assert await upkeep(old).collect() == ()
    for artifact in (named, used):
        await pusher.folder(artifact.digest)
