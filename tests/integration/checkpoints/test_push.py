"""From files on a client's disk to a verified, aligned checkpoint in the store."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import stoker_loader
from stoker.checkpoints.files import FileSpec, Kind
from stoker.checkpoints.staging import Upload, UploadNotFound
from stoker.domain import Artifact
from stoker.errors import (
    BadRequest,
    CheckpointInvalid,
    CheckpointNotFound,
    Conflict,
    PayloadTooLarge,
    StorageFull,
)

HEX = "ab" * 32


def staged(home: Path) -> list[str]:
    return [path.name for path in (home / "staging").iterdir()]


def shelved(home: Path) -> list[str]:
    return [path.name for path in home.glob("checkpoints/*")]


async def test_a_pushed_checkpoint_is_laid_out_named_and_verified(
    pusher: Any, checkpoint: Path, home: Path
) -> None:
    artifact = await pusher.push(checkpoint, "small")
    path = await pusher.registry.ensure_verified(artifact.digest)
    assert path == pusher.registry.path(artifact.digest)
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
    assert stages == {"layout"}
    assert done_bytes == total_bytes > 0


async def test_shards_are_merged_into_one_file(
    pusher: Any, checkpoint: Path, tmp_path: Path, write_shards: Any
) -> None:
    sharded = await pusher.push(write_shards(tmp_path / "shards"), "sharded")
    path = await pusher.registry.ensure_verified(sharded.digest)
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors"]
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
    path = await pusher.registry.ensure_verified(artifact.digest)
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
        await pusher.registry.ensure_verified(f"blake3:{HEX}")


# --- offers that are refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../../x", "/etc/passwd", "a//b", "", ".", "a/.", "a\\..\\b", "a\0b", "x" * 300],
)
async def test_a_path_that_leaves_the_artifact_is_refused(
    pusher: Any, path: str, home: Path
) -> None:
    with pytest.raises(BadRequest, match="is not a file's path within an artifact"):
        await pusher.registry.begin([FileSpec(path, 1, HEX)], Kind.CHECKPOINT)
    assert not (home / "staging").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "at least one file"),
        ([FileSpec("a", 1, HEX), FileSpec("a", 1, HEX)], "offered twice"),
        ([FileSpec("a", 1, HEX), FileSpec("a/b", 1, HEX)], "below another file"),
        ([FileSpec("a", -1, HEX)], "negative"),
        ([FileSpec("a", 1, "abc")], "64 hexadecimal digits"),
    ],
)
async def test_an_unsound_offer_is_refused(
    pusher: Any, files: list[FileSpec], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        await pusher.registry.begin(files, Kind.CHECKPOINT)


async def test_sources_have_a_bound(pusher: Any) -> None:
    with pytest.raises(PayloadTooLarge):
        await pusher.registry.begin([FileSpec("weights.bin", 1 << 30, HEX)], Kind.SOURCE)


@pytest.mark.parametrize("name", ["a/b", "", "-a", "a@b", "ä", "x" * 200, HEX])
async def test_a_name_that_could_not_be_asked_for_is_refused(
    pusher: Any, checkpoint: Path, name: str
) -> None:
    with pytest.raises(BadRequest, match="not a checkpoint's name"):
        await pusher.begin(checkpoint, name=name)


# --- bytes that are refused -----------------------------------------------------------------


async def test_bytes_other_than_offered_are_refused_and_leave_nothing(
    pusher: Any, checkpoint: Path, home: Path
) -> None:
    upload = await pusher.begin(checkpoint)
    good = (checkpoint / "config.json").read_bytes()
    flipped = bytes([good[0] ^ 1]) + good[1:]
    cases: list[tuple[bytes, type[Exception], str]] = [
        (flipped, CheckpointInvalid, "other bytes than were offered"),
        (good + b" ", BadRequest, "longer than the"),
        (good[:-1], BadRequest, "ended after"),
    ]
    for data, error, message in cases:
        with pytest.raises(error, match=message):
            await pusher.registry.write(upload.id, "config.json", bytes_of(data))
    assert list((home / "staging" / upload.id / "parts").iterdir()) == []
    assert "config.json" in (await pusher.begin(checkpoint)).missing


async def test_a_client_that_leaves_in_the_middle_of_a_file_leaves_nothing(
    pusher: Any, checkpoint: Path, home: Path
) -> None:
    upload = await pusher.begin(checkpoint)

    async def broken() -> AsyncIterator[bytes]:
        yield (checkpoint / "model.safetensors").read_bytes()[:1000]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await pusher.registry.write(upload.id, "model.safetensors", broken())
    assert list((home / "staging" / upload.id / "parts").iterdir()) == []
    await pusher.send(checkpoint, upload)
    await pusher.commit(upload, "small")


async def test_a_cancelled_write_leaves_nothing(pusher: Any, checkpoint: Path, home: Path) -> None:
    upload = await pusher.begin(checkpoint)
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        begun.set()
        await asyncio.Event().wait()

    writing = asyncio.ensure_future(
        pusher.registry.write(upload.id, "model.safetensors", endless())
    )
    await begun.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert list((home / "staging" / upload.id / "parts").iterdir()) == []


async def test_only_offered_files_of_known_uploads_are_taken(pusher: Any, checkpoint: Path) -> None:
    upload = await pusher.begin(checkpoint)
    with pytest.raises(BadRequest, match="not one of the files"):
        await pusher.registry.write(upload.id, "../../../x", bytes_of(b""))
    for unknown in ("0" * 32, "..", "../" + upload.id, ""):
        with pytest.raises(UploadNotFound, match="begin again"):
            await pusher.registry.write(unknown, "config.json", bytes_of(b""))
        with pytest.raises(UploadNotFound):
            await pusher.registry.discard(unknown)
    await pusher.registry.discard(upload.id)
    with pytest.raises(UploadNotFound):
        await pusher.registry.commit(upload.id, "small", print)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 10)


def break_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8] = ord("x")
    path.write_bytes(data)


def make_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"w": torch.zeros(4)}, folder / "pytorch_model.bin")


def disguise_pickle(folder: Path) -> None:
    torch.save({"w": torch.zeros(4)}, folder / "model.safetensors")


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncate, "data_truncated"),
        (break_header, "header_start"),
        (make_pickle, "pickle_refused"),
        (disguise_pickle, "pickle_refused"),
        (remove_weights, "no_safetensors"),
    ],
)
async def test_what_is_no_sound_checkpoint_is_refused_by_name_and_forgotten(
    pusher: Any, checkpoint: Path, home: Path, spoil: Any, reason: str
) -> None:
    spoil(checkpoint)
    upload = await pusher.uploaded(checkpoint)
    with pytest.raises(CheckpointInvalid) as caught:
        await pusher.commit(upload, "small")
    assert caught.value.details["reason"] == reason
    assert str(home) not in caught.value.message
    assert staged(home) == []
    assert await pusher.registry.checkpoints() == ()
    assert shelved(home) == []


# --- full and read-only disks ---------------------------------------------------------------


async def test_an_offer_larger_than_the_disk_is_refused_at_once(
    small_pusher: Any, small_disk: Path
) -> None:
    with pytest.raises(StorageFull, match="the upload needs") as caught:
        await small_pusher.registry.begin(
            [FileSpec("model.safetensors", 3 << 20, HEX)], Kind.CHECKPOINT
        )
    assert caught.value.details["needed_bytes"] == 6 << 20
    assert staged(small_disk) == []


async def test_a_disk_that_fills_up_while_a_file_arrives_is_said_and_cleaned(
    small_pusher: Any, small_disk: Path, checkpoint: Path
) -> None:
    upload = await small_pusher.begin(checkpoint)
    fill(small_disk, leave=50 << 10)
    with pytest.raises(StorageFull, match="is full"):
        await small_pusher.send(checkpoint, upload)
    assert staged(small_disk) == []
    (small_disk / "ballast").unlink()
    await small_pusher.push(checkpoint, "small")


async def test_a_disk_that_fills_up_during_the_layout_is_said_and_cleaned(
    small_pusher: Any, small_disk: Path, checkpoint: Path
) -> None:
    upload = await small_pusher.uploaded(checkpoint)
    fill(small_disk, leave=50 << 10)
    with pytest.raises(StorageFull, match="is full"):
        await small_pusher.commit(upload, "small")
    assert staged(small_disk) == []
    assert shelved(small_disk) == []
    (small_disk / "ballast").unlink()
    await small_pusher.push(checkpoint, "small")


async def test_a_read_only_disk_is_said(
    small_pusher: Any, small_disk: Path, checkpoint: Path, remount_read_only: Any
) -> None:
    remount_read_only(small_disk)
    with pytest.raises(StorageFull, match="cannot be written") as caught:
        await small_pusher.begin(checkpoint)
    assert caught.value.code == "storage_read_only"


def fill(disk: Path, leave: int) -> None:
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - leave))


# --- at the same time -----------------------------------------------------------------------


async def test_of_two_commits_of_one_upload_one_is_told_so(pusher: Any, checkpoint: Path) -> None:
    upload = await pusher.uploaded(checkpoint)
    both = await asyncio.gather(
        pusher.commit(upload, "small"), pusher.commit(upload, "small"), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in both) == ["Artifact", "Conflict"]
    assert isinstance(both[1], Conflict)


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
    assert stoker_loader.digest(pusher.registry.path(artifact.digest)).root == artifact.digest


# --- verification ---------------------------------------------------------------------------


def weights_of(pusher: Any, artifact: Artifact) -> Path:
    path: Path = pusher.registry.path(artifact.digest) / "model.safetensors"
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
        await pusher.registry.ensure_verified(artifact.digest)
    assert caught.value.details["reason"] == "chunk_mismatch"
    assert (caught.value.details["file"], caught.value.details["chunk"]) == ("model.safetensors", 0)
    # Pushing the same files again heals it.
    assert isinstance(await pusher.begin(checkpoint), Upload)
    assert (await pusher.push(checkpoint, "small")).digest == artifact.digest
    await pusher.registry.ensure_verified(artifact.digest)


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
        await pusher.registry.ensure_verified(artifact.digest)
    assert caught.value.details["reason"] == reason


async def test_a_copy_with_the_right_bytes_is_read_once_and_then_known(
    pusher: Any, checkpoint: Path, tmp_path: Path
) -> None:
    artifact = await pusher.push(checkpoint, "small")
    path = pusher.registry.path(artifact.digest)
    record = path.with_suffix(".json")
    before = record.read_bytes()
    await pusher.registry.ensure_verified(artifact.digest)
    assert record.read_bytes() == before
    shutil.copytree(path, tmp_path / "copy")
    shutil.rmtree(path)
    shutil.move(tmp_path / "copy", path)
    await pusher.registry.ensure_verified(artifact.digest)
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
    shutil.rmtree(pusher.registry.path(artifact.digest))
    with pytest.raises(CheckpointNotFound, match="push them again"):
        await pusher.registry.ensure_verified(artifact.digest)
    assert (await pusher.registry.recover()).missing == (artifact.digest,)
    assert (await pusher.push(checkpoint, "small")).digest == artifact.digest


async def bytes_of(data: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), 10_000):
        yield data[begin : begin + 10_000]
