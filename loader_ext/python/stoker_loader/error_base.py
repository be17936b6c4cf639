"""The root of the error tree, which is drawn in `stoker_loader.errors`."""

from __future__ import annotations

from typing import ClassVar


class LoaderError(Exception):
    """Base of the tree. `file`, `tensor` and `offset` (a byte of the file) where they are known."""

    code: ClassVar[str] = "loader_error"

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        tensor: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.tensor = tensor
        self.offset = offset
