"""A checkpoint is never served from bytes whose digest was not verified on this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from stoker.checkpoints.staging import Upload
from stoker.domain import Artifact
from stoker.errors import (
    CheckpointInvalid,
    CheckpointNotFound,
)


def weights_of(pusher: Any, artifact: Artifact) -> Path:
    path: Path = pusher.path(artifact) / "model.safetensors"
    return path


async def test_a_flipped_bit_is_found_and_named(pusher: Any, checkpoint: Path) -> None:
    artifact = await pusher.push(checkpoint, "small")
    weights = weights_of(pusher, artifact)
    with weights.open("r+b") as file:
        file.seek(50_000)
        byte = file.read(1)
        file.seek(50_000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(
        CheckpointInvalid, match=r"model\.safetensors: chunk 0 is corrupt"
    ) as caught:
        await pusher.folder(artifact.digest)
    assert caught.value.details["reason"] == "chunk_mismatch"
    assert (caught.value.details["file"], caught.value.details["chunk"]) == ("model.safetensors", 0)
    # Pushing the same files again heals it.
    assert isinstance(await pusher.begin(checkpoint), Upload)
    assert (await pusher.push(checkpoint, "small")).digest == artifact.digest
    await pusher.folder(artifact.digest)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda weights: os.truncate(weights, 100), "length_mismatch"),
        (lambda weights: weights.unlink(), "file_missing"),
        (lambda weights: (weights.parent / "extra").write_text("x"), "file_unexpected"),
        (lambda weights: (weights.parent / "link").symlink_to("config.json"), "symlink_refused"),
    ],
)
async def test_every_change_to_a_folder_is_found(
    pusher: Any, checkpoint: Path, spoil: Any, reason: str
) -> None:
    artifact = await pusher.push(checkpoint, "small")
    spoil(weights_of(pusher, artifact))
    with pytest.raises(CheckpointInvalid) as caught:
        await pusher.folder(artifact.digest)
    assert caught.value.details["reason"] == reason


async def test_a_copy_with_the_right_bytes_is_read_once_and_then_known(
    pusher: Any, checkpoint: Path, tmp_path: Path
) -> None:
    artifact = await pusher.push(checkpoint, "small")
    path = pusher.path(artifact)
    record = path.with_suffix(".json")
    before = record.read_bytes()
    await pusher.folder(artifact.digest)
    assert record.read_bytes() == before
    shutil.copytree(path, tmp_path / "copy")
    shutil.rmtree(path)
    shutil.move(tmp_path / "copy", path)
    await pusher.folder(artifact.digest)
    assert record.read_bytes() != before


async def test_a_folder_that_was_only_touched_is_not_pushed_again(
    pusher: Any, checkpoint: Path
) -> None:
    artifact = await pusher.push(checkpoint, "small")
    os.utime(weights_of(pusher, artifact), (1, 1))
    assert await pusher.begin(checkpoint) == artifact


async def test_a_folder_that_was_removed_is_said_and_can_be_pushed_again(
    pusher: Any, checkpoint: Path
) -> None:
    artifact = await pusher.push(checkpoint, "small")
    shutil.rmtree(pusher.path(artifact))
    with pytest.raises(CheckpointNotFound, match="push them again"):
        await pusher.folder(artifact.digest)
    assert (await pusher.registry.recover()).missing == (artifact.digest,)
    assert (await pusher.push(checkpoint, "small")).digest == artifact.digest
