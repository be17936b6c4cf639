"""Digests: what they cover, and what verify says when a byte is not what it was."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import stoker_loader as sl
from stoker_loader import errors

CHUNK_BYTES = 8 << 20


def test_a_directory_and_its_copy_are_the_same(decoder: tuple[Path, dict], disk: Path) -> None:
    found = sl.digest(decoder[0])
    assert found.root.startswith("blake3:")
    assert [file.name for file in found.files] == ["config.json", "model.safetensors"]
    shutil.copytree(decoder[0], disk / "copy")
    assert sl.digest(disk / "copy") == found
    sl.verify(disk / "copy", found)
    sl.verify(disk / "copy", found.root)


def test_a_single_file_may_be_renamed(large: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = sl.digest(large, lambda done, total: seen.append((done, total)))
    size = large.stat().st_size
    assert seen[-1] == (size, size)
    assert len(found.files[0].chunks) == -(-size // CHUNK_BYTES)
    renamed = large.rename(large.with_name("other.safetensors"))
    sl.verify(renamed, found)
    assert sl.digest(renamed).root == found.root


def test_a_flipped_bit_names_file_and_chunk(large: Path) -> None:
    found = sl.digest(large.parent)
    with large.open("r+b") as file:
        file.seek(3 * CHUNK_BYTES + 17)
        byte = file.read(1)[0]
        file.seek(3 * CHUNK_BYTES + 17)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(errors.ChunkMismatchError, match="chunk 3 is corrupt") as caught:
        sl.verify(large.parent, found)
    assert caught.value.file == str(large)
    assert caught.value.offset == 3 * CHUNK_BYTES
    with pytest.raises(errors.RootMismatchError, match=found.root):
        sl.verify(large.parent, found.root)


def test_files_missing_new_and_of_another_length(decoder: tuple[Path, dict]) -> None:
    directory = decoder[0]
    found = sl.digest(directory)
    (directory / "extra").touch()
    with pytest.raises(errors.FileUnexpectedError, match=r"extra: .*remove it"):
        sl.verify(directory, found)
    (directory / "extra").unlink()
    (directory / "config.json").write_text("{ }")
    with pytest.raises(errors.LengthMismatchError, match="should have 2 bytes and has 3"):
        sl.verify(directory, found)
    (directory / "config.json").unlink()
    with pytest.raises(errors.FileMissingError, match=r"config.json: .*fetch it"):
        sl.verify(directory, found)


@pytest.mark.parametrize("text", ["", "blake3:", "sha256:" + "0" * 64, "blake3:" + "g" * 64])
def test_what_is_no_digest(decoder: tuple[Path, dict], text: str) -> None:
    with pytest.raises(errors.DigestInvalidError, match="64 hexadecimal digits"):
        sl.verify(decoder[0], text)


def test_a_digest_that_contradicts_itself(decoder: tuple[Path, dict]) -> None:
    found = sl.digest(decoder[0])
    found.check()
    first, *others = found.files
    renamed = dataclasses.replace(first, name="another")
    for forged in (
        dataclasses.replace(found, root="blake3:" + "0" * 64),
        dataclasses.replace(found, files=(renamed, *others)),
        dataclasses.replace(found, files=tuple(others)),
    ):
        with pytest.raises(errors.RootMismatchError):
            forged.check()
    forged = dataclasses.replace(found, root="blake3:" + "0" * 64)
    with pytest.raises(errors.RootMismatchError):
        sl.verify(decoder[0], forged)


NO_DIGITS = ["", "no hex", "f" * 31, "f" * 33, "+" + "f" * 31, "-" + "0" * 31, "٣" * 16, "0x" * 16]


@pytest.mark.parametrize("chunk", NO_DIGITS)
def test_what_is_no_digest_of_a_chunk(decoder: tuple[Path, dict], chunk: str) -> None:
    """A number of Rust's may have a sign: "+f..." would be parsed as the digest "0f..."."""
    found = sl.digest(decoder[0])
    bad = tuple(dataclasses.replace(file, chunks=(chunk,)) for file in found.files)
    weights = decoder[0] / "model.safetensors"
    doors: list[tuple[str, Callable[[], object]]] = [
        ("config.json", lambda: sl.verify(decoder[0], dataclasses.replace(found, files=bad))),
        ("model.safetensors", lambda: sl.open(weights, verify=bad[1])),
        ("model.safetensors", lambda: sl.fetch("http://none", weights, expected=bad[1])),
    ]
    for name, enter in doors:
        with pytest.raises(errors.DigestInvalidError, match=f'a chunk of "{name}" is not 32 hexa'):
            enter()
