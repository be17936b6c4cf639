"""The binary sidecar: believed for its own header alone, an error where it is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import stoker_loader as sl
from stoker_loader.errors import ChunkMismatchError, FileMissingError, SidecarInvalidError


@pytest.fixture
def laid(decoder: tuple[Path, dict], disk: Path) -> tuple[Path, dict]:
    """A laid-out checkpoint with its sidecar, and the tensors in it."""
    sl.layout(decoder[0], disk / "laid")
    return disk / "laid", decoder[1]


def test_with_and_without_it_a_checkpoint_is_the_same(laid: tuple[Path, dict]) -> None:
    directory, tensors = laid
    with sl.open(directory) as checkpoint:
        by_sidecar = [checkpoint.info(name) for name in checkpoint.names]
        metadata = checkpoint.metadata
        loaded = checkpoint.load()
    (directory / "model.stx").unlink()
    with sl.open(directory) as checkpoint:
        assert [checkpoint.info(name) for name in checkpoint.names] == by_sidecar
        assert checkpoint.metadata == metadata
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_another_files_sidecar_is_not_believed(laid: tuple[Path, dict], disk: Path) -> None:
    directory, _ = laid
    save_file({"other": torch.ones(3)}, directory / "model.safetensors")
    with sl.open(directory) as checkpoint:
        assert checkpoint.names == ("other",)
    save_file({"third": torch.ones(5)}, disk / "model-1.safetensors")
    shutil.copy(directory / "model.stx", disk / "model-1.stx")
    assert list(sl.load_file(disk / "model-1.safetensors")) == ["third"]


@pytest.mark.parametrize("at", [0, 100, -1])
def test_a_flipped_bit_is_an_error(laid: tuple[Path, dict], at: int) -> None:
    path = laid[0] / "model.stx"
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    with pytest.raises(SidecarInvalidError, match="remove it, or fetch") as caught:
        sl.open(laid[0])
    assert caught.value.file == str(path)
    assert caught.value.offset is not None


def test_every_truncation_is_an_error(laid: tuple[Path, dict]) -> None:
    path = laid[0] / "model.stx"
    content = path.read_bytes()
    for length in (0, 1, 63, 64, 79, 80, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(SidecarInvalidError):
            sl.open(laid[0])


def test_it_is_one_of_the_files_that_are_verified(laid: tuple[Path, dict]) -> None:
    directory, _ = laid
    found = sl.digest(directory)
    path = directory / "model.stx"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ChunkMismatchError) as caught:
        sl.verify(directory, found)
    assert caught.value.file == str(path)
    path.unlink()
    with pytest.raises(FileMissingError):
        sl.verify(directory, found)


def test_a_layout_reads_the_header_and_writes_a_new_one(
    laid: tuple[Path, dict], disk: Path
) -> None:
    directory, tensors = laid
    before = (directory / "model.stx").read_bytes()
    (directory / "model.stx").write_bytes(b"whatever someone pushed")
    report = sl.layout(directory, disk / "again")
    assert (disk / "again" / "model.stx").read_bytes() == before
    assert report.skipped == ()
    assert report.tensors == len(tensors)
