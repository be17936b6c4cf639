"""Offers, bytes and disks that a push fails on: the exact error, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stoker.checkpoints.files import FileSpec, Kind
from stoker.checkpoints.staging import UploadNotFound
from stoker.errors import (
    BadRequest,
    CheckpointInvalid,
    PayloadTooLarge,
    StorageFull,
)

HEX = "ab" * 32


def staged(home: Path) -> list[str]:
    return [path.name for path in (home / "staging").iterdir()]


def shelved(home: Path) -> list[str]:
    return [path.name for path in home.glob("checkpoints/*")]


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


async def test_an_upload_discarded_in_the_middle_of_a_file_is_not_found(
    pusher: Any, checkpoint: Path, home: Path
) -> None:
    upload = await pusher.begin(checkpoint)
    data = (checkpoint / "config.json").read_bytes()

    async def interrupted() -> AsyncIterator[bytes]:
        yield data[:5]
        await pusher.registry.discard(upload.id)
        yield data[5:]

    with pytest.raises(UploadNotFound):
        await pusher.registry.write(upload.id, "config.json", interrupted())
    assert staged(home) == []


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


async def bytes_of(data: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), 10_000):
        yield data[begin : begin + 10_000]
