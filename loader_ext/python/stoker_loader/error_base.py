"""The root of the error tree, which is drawn in `stoker_loader.errors`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypedDict, Unpack

MAX_NAMES_IN_MESSAGE = 8


class Place(TypedDict, total=False):
    """What every error may say of where it happened."""

    file: str | None
    tensor: str | None
    offset: int | None


class LoaderError(Exception):
    """Base of the tree. `file`, `tensor` and `offset` (a byte of the file) where they are known."""

    code: ClassVar[str] = "loader_error"

    def __init__(self, message: str, **place: Unpack[Place]) -> None:
        super().__init__(message)
        self.message = message
        self.file = place.get("file")
        self.tensor = place.get("tensor")
        self.offset = place.get("offset")


def listing(misfits: Mapping[str, Sequence[str]]) -> str:
    """The names of each kind that has any, the first few of many, as words of a message."""
    parts = []
    for kind, names in misfits.items():
        more = len(names) - MAX_NAMES_IN_MESSAGE
        shown = ", ".join(names[:MAX_NAMES_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")
        if names:
            parts.append(f"{kind}: {shown}")
    return "; ".join(parts)
