"""A checkpoint's identity: digests of its chunks, and one root over them (see the README)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from stoker_loader import _native
from stoker_loader.errors import DigestInvalidError
from stoker_loader.page_cache import Progress


@dataclass(frozen=True, slots=True)
class FileDigest:
    """One file: its name below the root, its length, XXH3-128 of each 8 MiB as 32 hex digits."""

    name: str
    size_bytes: int
    chunks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Digest:
    """`root` ("blake3:" and 64 hex digits) is the identity; `files`, by name, are what it is of."""

    root: str
    files: tuple[FileDigest, ...]

    def check(self) -> None:
        """Return only if `root` is that of `files`; reads nothing. For digests from elsewhere.

        Raises RootMismatchError, DigestInvalidError.
        """
        try:
            _native.check_digest((self.root, files_to_native(self.files)))
        except OverflowError as error:
            raise DigestInvalidError(f"a file's length is none: {error}") from error


Verify = bool | Digest | FileDigest
"""Whether to compare chunks as they come in: with the digests of sidecars, or with these."""


def digest(path: str | os.PathLike[str], progress: Progress | None = None) -> Digest:
    """Digest a file, or every regular file under a directory.

    A single file's name is no part of its identity. Raises CheckpointNotFoundError,
    SymlinkRefusedError, FileChangedError, StorageError.
    """
    return digest_from_native(_native.digest(path, progress))


def verify(
    path: str | os.PathLike[str], expected: Digest | str, progress: Progress | None = None
) -> None:
    """Return only if the bytes at `path` are those that `expected` (a Digest or its root) is of.

    With a Digest the error names the file and the first corrupt chunk: FileMissingError,
    FileUnexpectedError, LengthMismatchError, ChunkMismatchError; with a root it is
    RootMismatchError. Also raises DigestInvalidError and what `digest` raises.
    """
    if isinstance(expected, str):
        _native.verify_root(path, expected, progress)
        return
    _native.verify(path, (expected.root, files_to_native(expected.files)), progress)


def sidecar_digest(path: str | os.PathLike[str]) -> FileDigest:
    """The digest of `x.safetensors` by its sidecar `x.stx` alone: what `fetch` is to expect of it.

    Raises SidecarInvalidError, CheckpointNotFoundError, SymlinkRefusedError, StorageError.
    """
    name, size_bytes, chunks = _native.sidecar_digest(path)
    return FileDigest(name, size_bytes, tuple(chunks))


def files_to_native(files: Iterable[FileDigest]) -> list[tuple[str, int, list[str]]]:
    """Values as the core's tuples."""
    return [(file.name, file.size_bytes, list(file.chunks)) for file in files]


def known_to_native(
    verify: Verify,
) -> tuple[str | None, list[tuple[str, int, list[str]]]] | None:
    """The digests that were given, if any were, and their root."""
    if isinstance(verify, bool):
        return None
    if isinstance(verify, FileDigest):
        return None, files_to_native([verify])
    return verify.root, files_to_native(verify.files)


def digest_from_native(native: tuple[str, list[tuple[str, int, list[str]]]]) -> Digest:
    """The core's tuples as values."""
    root, files = native
    return Digest(root, tuple(FileDigest(name, size, tuple(c)) for name, size, c in files))
