"""What parent and child of a conversion say to each other: one job, then lines of messages."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from stoker_loader.conversion.limits import Limits
from stoker_loader.errors import (
    ConversionFailedError,
    ConversionLimitError,
    EntryRefusedError,
    IndexMismatchError,
    LoaderError,
    MissingPackageError,
    PartsMismatchError,
    PickleInvalidError,
    PickleUnsafeError,
    ShardDuplicateError,
    StorageError,
)

# All that a child may raise in its parent.
TOLD: dict[str, type[LoaderError]] = {
    error.code: error
    for error in (
        ConversionFailedError,
        ConversionLimitError,
        EntryRefusedError,
        IndexMismatchError,
        MissingPackageError,
        PartsMismatchError,
        PickleInvalidError,
        PickleUnsafeError,
        ShardDuplicateError,
        StorageError,
    )
}


@dataclass(frozen=True, slots=True)
class Job:
    """One conversion: `files` to read, and a descriptor or a folder to write to.

    `dtype` is an attribute of torch, `parent` the process to die with, and `tensors` are names that
    the files must hold.
    """

    kind: Literal["pickle", "gguf"]
    files: tuple[str, ...]
    dtype: str | None
    limits: Limits
    parent: int
    output_fd: int | None = None
    output_folder: str | None = None
    read_tokenizer: bool = False
    tie_word_embeddings: bool = False
    tensors: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The job as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, text: bytes) -> Job:
        """What `encode` gave."""
        fields = json.loads(text)
        fields |= {name: tuple(fields[name]) for name in ("files", "tensors")}
        fields["limits"] = Limits(**fields["limits"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a child did: which walls held, which tied names it dropped, which entries it skipped."""

    walls: tuple[str, ...] = ()
    tied: dict[str, str] = field(default_factory=dict)
    skipped_entries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Progressed:
    """Bytes of the output that are written, of how many."""

    done_bytes: int
    total_bytes: int


Message = Outcome | Progressed | LoaderError


def encode(message: Message) -> bytes:
    """A message as a line of JSON."""
    match message:
        case Outcome():
            content: dict[str, object] = {"outcome": asdict(message)}
        case Progressed():
            content = {"progressed": [message.done_bytes, message.total_bytes]}
        case LoaderError():
            facts = {name: getattr(message, name, None) for name in ("file", "tensor", "errno")}
            content = {"error": {"code": message.code, "message": message.message, **facts}}
    return json.dumps(content).encode() + b"\n"


def decode(line: bytes) -> Message:
    """A message from a child that may be hostile: all is checked, and nothing is evaluated.

    Raises ValueError for what is none.
    """
    match json.loads(line):
        case {"progressed": [int(done_bytes), int(total_bytes)]}:
            return Progressed(done_bytes, total_bytes)
        case {"outcome": {"walls": walls, "tied": tied, "skipped_entries": skipped}}:
            names = [*_texts(walls), *_texts(skipped), *_texts(list(tied)), *tied.values()]
            return Outcome(tuple(walls), dict(tied), tuple(skipped)) if _texts(names) else Outcome()
        case {"error": {"code": str(code), "message": str(words), **facts}} if code in TOLD:
            message = printable(words)
            known: dict[str, Any] = {
                name: value
                for name, value in facts.items()
                if name in ("file", "tensor") and isinstance(value, str)
            }
            if TOLD[code] is StorageError:
                number = facts.get("errno")
                return StorageError(message, errno=number if type(number) is int else None, **known)
            return TOLD[code](message, **known)
    raise ValueError("no message of a conversion")


def printable(text: str) -> str:
    """A text of nobody knows whom with all escaped that could steer a terminal, but line ends."""
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode()
        for sign in text
    )


def _texts(values: object) -> list[str]:
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return values
    raise ValueError("not a list of texts")
