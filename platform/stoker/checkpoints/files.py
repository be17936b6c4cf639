"""The files that a client offers, as it declares them before it sends a byte."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from blake3 import blake3

from stoker.domain import Digest
from stoker.errors import BadRequest, PayloadTooLarge

MAX_FILES = 10_000
MAX_PATH_BYTES = 1024
MAX_PART_BYTES = 255  # NAME_MAX of every file system that matters
MAX_CHECKPOINT_BYTES = 4 << 40
MAX_SOURCE_BYTES = 64 << 20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # of a checkpoint

_HEX_DIGEST = re.compile(r"(?:blake3:)?([0-9a-f]{64})")


class Kind(StrEnum):
    CHECKPOINT = "checkpoint"  # is laid out and merged
    SOURCE = "source"  # a handler's files, kept as they are


@dataclass(frozen=True, slots=True)
class FileSpec:
    """One file: where it lies in the artifact, its length, and BLAKE3 of its bytes in hex."""

    path: str
    size_bytes: int
    blake3: str


def check_files(kind: Kind, files: Iterable[FileSpec]) -> tuple[FileSpec, ...]:
    """The files by path, if they can make an artifact. Raises BadRequest, PayloadTooLarge."""
    checked = tuple(sorted(map(_check_file, files), key=lambda file: file.path))
    if not checked:
        raise BadRequest("an upload needs at least one file", param="files")
    if len(checked) > MAX_FILES:
        raise PayloadTooLarge(f"an upload holds at most {MAX_FILES} files, not {len(checked)}")
    _check_paths(checked)
    total_bytes = sum(file.size_bytes for file in checked)
    limit_bytes = MAX_SOURCE_BYTES if kind is Kind.SOURCE else MAX_CHECKPOINT_BYTES
    if total_bytes > limit_bytes:
        raise PayloadTooLarge(
            f"a {kind} holds at most {limit_bytes} bytes, not {total_bytes}",
            details={"limit_bytes": limit_bytes, "total_bytes": total_bytes},
        )
    return checked


def check_name(name: str) -> None:
    """Raises BadRequest for what cannot be a checkpoint's name: a digest among others."""
    if not NAME.fullmatch(name) or _HEX_DIGEST.fullmatch(name):
        raise BadRequest(
            f"{name[:64]!r} is not a checkpoint's name: expected up to 128 letters, digits, '.',"
            " '_' and '-', beginning with a letter or digit",
            param="name",
        )


def source_digest(kind: Kind, files: Sequence[FileSpec]) -> Digest:
    """One digest of all files, which must be sorted by path: what was pushed, before any layout."""
    hasher = blake3(b"stoker upload 1\n")
    hasher.update(f"{kind}\n".encode())
    for file in files:
        path = file.path.encode()
        hasher.update(b"%d\n%b%d\n%b\n" % (len(path), path, file.size_bytes, file.blake3.encode()))
    return Digest(f"blake3:{hasher.hexdigest()}")


def is_sound_path(path: str) -> bool:
    """Whether a file of an artifact may be called so: relative, below the artifact, and good on
    every file system that matters."""
    parts = path.split("/")
    return (
        all(part not in {"", ".", ".."} for part in parts)
        and path.isprintable()
        and "\\" not in path
        and len(path.encode(errors="replace")) <= MAX_PATH_BYTES
        and all(len(part.encode(errors="replace")) <= MAX_PART_BYTES for part in parts)
    )


def _check_file(file: FileSpec) -> FileSpec:
    if not is_sound_path(file.path):
        raise BadRequest(
            f"{file.path[:MAX_PART_BYTES]!r} is not a file's path within an artifact;"
            " expected a relative one like tokenizer/vocab.json",
            param="path",
        )
    if file.size_bytes < 0:
        raise BadRequest(f"{file.path}: size_bytes is negative", param="size_bytes")
    match = _HEX_DIGEST.fullmatch(file.blake3)
    if match is None:
        raise BadRequest(f"{file.path}: blake3 is not 64 hexadecimal digits", param="blake3")
    return FileSpec(file.path, file.size_bytes, match[1])


def _check_paths(files: Sequence[FileSpec]) -> None:
    paths = {file.path for file in files}
    if len(paths) < len(files):
        raise BadRequest("the same path is offered twice", param="path")
    for path in paths:
        parts = path.split("/")
        if any("/".join(parts[:depth]) in paths for depth in range(1, len(parts))):
            raise BadRequest(f"{path!r} lies below another file", param="path")
