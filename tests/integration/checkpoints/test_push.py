"""From files on a client's disk to a verified, aligned checkpoint in the store."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import stoker_loader
from stoker.checkpoints.files import Kind
from stoker.domain import Artifact
from stoker.errors import (
    BadRequest,
    CheckpointNotFound,
    Conflict,
)

HEX = "ab" * 32


def staged(home: Path) -> list[str]:
    return [path.name for path in (home / "staging").iterdir()]


async def test_a_pushed_checkpoint_is_laid_out_named_and_verified(
    pusher: Any, checkpoint: Path, home: Path
) -> None:
    artifact = await pusher.push(checkpoint, "small")
    path = await pusher.folder(artifact.digest)
    assert path == pusher.path(artifact)
    assert path == home / "checkpoints" / artifact.digest.removeprefix("blake3:")
    assert stoker_loader.digest(path).root == artifact.digest
    assert artifact.size_bytes == sum(f.stat().st_size for f in path.iterdir())
    expected = load_file(checkpoint / "model.safetensors")
    found = load_file(path / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (path / "config.json").read_text() == (checkpoint / "config.json").read_text()
    assert await pusher.registry.checkpoints() == (artifact,)
    for uri in ("store://small", "small", f"store://small@{artifact.digest}", artifact.digest):
        assert (await pusher.registry.resolve(uri)).digest == artifact.digest
    assert staged(home) == []
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o444 for file in path.iterdir())


async def test_progress_is_reported_in_stages_that_end_at_their_total(
    pusher: Any, checkpoint: Path
) -> None:
    await pusher.push(checkpoint, "small")
    stages = {stage for stage, _, _ in pusher.reports}
    _, done_bytes, total_bytes = pusher.reports[-1]
    assert stages == {"layout", "storing"}
    assert done_bytes == total_bytes > 0


async def test_shards_are_merged_into_one_file(
    pusher: Any, checkpoint: Path, tmp_path: Path, write_shards: Any
) -> None:
    sharded = await pusher.push(write_shards(tmp_path / "shards"), "sharded")
    path = await pusher.folder(sharded.digest)
    names = ["config.json", "model.safetensors", "model.stx"]
    assert sorted(file.name for file in path.iterdir()) == names
    # The same weights from one file are the same checkpoint.
    single = await pusher.push(checkpoint, "single")
    assert single.digest == sharded.digest
    names = {(await pusher.registry.resolve(name)).digest for name in ("sharded", "single")}
    assert names == {single.digest}


async def test_pushing_the_same_files_again_uploads_nothing(
    pusher: Any, checkpoint: Path, home: Path
) -> None:
    artifact = await pusher.push(checkpoint, "small")
    again = await pusher.begin(checkpoint)
    assert again == artifact
    renamed = await pusher.begin(checkpoint, name="other")
    assert isinstance(renamed, Artifact)
    assert (await pusher.registry.resolve("store://other")).digest == artifact.digest
    assert (await pusher.registry.resolve("store://small")).digest == artifact.digest
    assert staged(home) == []


async def test_an_interrupted_push_goes_on_where_it_ended(pusher: Any, checkpoint: Path) -> None:
    upload = await pusher.begin(checkpoint)
    assert set(upload.missing) == {"config.json", "model.safetensors"}
    config = (checkpoint / "config.json").read_bytes()
    await pusher.registry.write(upload.id, "config.json", bytes_of(config))
    again = await pusher.begin(checkpoint)
    assert (again.id, again.missing) == (upload.id, ("model.safetensors",))
    with pytest.raises(BadRequest, match=r"first is 'model\.safetensors'"):
        await pusher.commit(again)
    await pusher.send(checkpoint, again)
    await pusher.commit(again, "small")


async def test_sources_are_kept_as_they_are(pusher: Any, sources: Path) -> None:
    artifact = await pusher.push(sources, kind=Kind.SOURCE)
    path = await pusher.folder(artifact.digest)
    kept = {
        file.relative_to(path).as_posix(): file.read_text()
        for file in path.rglob("*")
        if file.is_file()
    }
    assert kept == {
        "handler.py": "def predict(x):\n    return x\n",
        "lib/helper.py": "ANSWER = 42\n",
    }
    assert artifact.name is None
    assert await pusher.registry.checkpoints() == ()
    assert await pusher.begin(sources, Kind.SOURCE) == artifact
    with pytest.raises(BadRequest, match="have no name"):
        await pusher.begin(sources, Kind.SOURCE, "named")


async def test_a_name_moves_to_what_was_pushed_last_and_a_pin_stays(
    pusher: Any, checkpoint: Path, tmp_path: Path, write_checkpoint: Any
) -> None:
    first = await pusher.push(checkpoint, "small")
    second = await pusher.push(write_checkpoint(tmp_path / "other", seed=1), "small")
    assert first.digest != second.digest
    assert (await pusher.registry.resolve("store://small")).digest == second.digest
    pinned = await pusher.registry.resolve(f"store://small@{first.digest}")
    assert pinned.digest == first.digest


async def test_what_was_never_pushed_names_the_next_step(pusher: Any, checkpoint: Path) -> None:
    await pusher.push(checkpoint, "small")
    with pytest.raises(CheckpointNotFound, match=r"did you mean 'small'.*stoker push DIR smal`"):
        await pusher.registry.resolve("store://smal")
    with pytest.raises(CheckpointNotFound, match="stoker push DIR NAME"):
        await pusher.registry.resolve(f"blake3:{HEX}")
    with pytest.raises(CheckpointNotFound, match="stoker push DIR NAME"):
        await pusher.folder(f"blake3:{HEX}")


# --- at the same time -----------------------------------------------------------------------


async def test_of_two_commits_of_one_upload_one_is_told_so(pusher: Any, checkpoint: Path) -> None:
    upload = await pusher.uploaded(checkpoint)
    both = await asyncio.gather(
        pusher.commit(upload, "small"), pusher.commit(upload, "small"), return_exceptions=True
    )
    # Which of the two arrives first is the network's choice; that only one does is ours.
    assert sorted(type(outcome).__name__ for outcome in both) == ["Artifact", "Conflict"]
    [refusal] = [outcome for outcome in both if isinstance(outcome, Conflict)]
    assert upload.id in str(refusal)


async def test_many_pushes_at_once_all_arrive(
    pusher: Any, tmp_path: Path, write_checkpoint: Any
) -> None:
    folders = [write_checkpoint(tmp_path / str(seed), seed) for seed in range(6)]
    async with asyncio.TaskGroup() as group:
        pushes = [
            group.create_task(pusher.push(folder, f"m{number}"))
            for number, folder in enumerate(folders)
        ]
    assert len({push.result().digest for push in pushes}) == 6
    assert len(await pusher.registry.checkpoints()) == 6


async def test_a_cancelled_commit_can_be_done_again(pusher: Any, checkpoint: Path) -> None:
    upload = await pusher.uploaded(checkpoint)
    reported = asyncio.Event()
    committing = asyncio.ensure_future(
        pusher.registry.commit(upload.id, "small", lambda *_: reported.set())
    )
    await reported.wait()
    committing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await committing
    again = await pusher.begin(checkpoint)
    artifact = again if isinstance(again, Artifact) else await pusher.commit(again, "small")
    assert stoker_loader.digest(pusher.path(artifact)).root == artifact.digest


async def bytes_of(data: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), 10_000):
        yield data[begin : begin + 10_000]
