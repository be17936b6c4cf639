"""The branch of the error tree for bytes that are not what a digest says."""

from __future__ import annotations

from typing import Unpack

from stoker_loader.error_base import LoaderError, Place


class IntegrityError(LoaderError):
    """Bytes are not what they were when they were checked."""


class FileChangedError(IntegrityError):
    """The file's length changed after it was opened."""

    code = "file_changed"


class ChunkMismatchError(IntegrityError):
    """A file's bytes are not those that the digest was made of."""

    code = "chunk_mismatch"

    def __init__(
        self, message: str, *, tensors: tuple[str, ...] = (), **place: Unpack[Place]
    ) -> None:
        """`tensors` are all that have bytes in the chunk, where the file's header is known."""
        super().__init__(message, **place)
        self.tensors = tensors


class LengthMismatchError(IntegrityError):
    """A file's length is not the one in the digest."""

    code = "length_mismatch"


class FileMissingError(IntegrityError):
    """A file that the digest names is missing."""

    code = "file_missing"


class FileUnexpectedError(IntegrityError):
    """A file that the digest does not name is there."""

    code = "file_unexpected"


class RootMismatchError(IntegrityError):
    """The root digest differs."""

    code = "root_mismatch"
