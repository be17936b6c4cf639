"""Split GGUF, as llama.cpp's gguf-split numbers the parts: checked, then read as one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stoker_loader.errors import PartsMismatchError, ShardDuplicateError

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True, slots=True)
class Part:
    """A part and what its metadata says: its number from 0, of how many, and tensors in all."""

    file: str
    tensors: tuple[str, ...]
    number: int = 0
    count: int = 1
    all_tensors: int | None = None


def join(files: Sequence[str]) -> None:
    """Let this process's `gguf.GGUFReader` see these parts, in order, as one file.

    A copy in one file would be as good, and need the room for it.
    Raises PartsMismatchError, ShardDuplicateError, and what the reader itself raises.
    """
    import gguf

    library: Any = gguf
    readers = [gguf.GGUFReader(file) for file in files]
    check([_part(file, reader) for file, reader in zip(files, readers, strict=True)])

    class Joined(gguf.GGUFReader):
        """The first part, which alone has metadata, with the tensors of all parts."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.tensors = [tensor for reader in readers for tensor in reader.tensors]

    if len(readers) > 1:
        library.GGUFReader = Joined


def check(parts: Sequence[Part]) -> None:
    """Whether parts, in the order of their names, are all of one file.

    Raises PartsMismatchError, and ShardDuplicateError for a tensor in two of them.
    """
    seen: dict[str, str] = {}
    total = sum(len(part.tensors) for part in parts)
    for number, part in enumerate(parts):
        if (part.number, part.count) != (number, len(parts)):
            raise PartsMismatchError(
                f"{part.file}: is part {part.number + 1} of {part.count} by its metadata, and"
                f" {number + 1} of {len(parts)} by its name; give each part the name that"
                " gguf-split gave it, or fetch it again",
                file=part.file,
            )
        for name in part.tensors:
            if name in seen:
                raise ShardDuplicateError(
                    f"{part.file}: tensor {name!r}: is in {seen[name]} too; fetch both again",
                    file=part.file,
                    tensor=name,
                )
            seen[name] = part.file
    for part in parts:
        if part.all_tensors not in (None, total):
            raise PartsMismatchError(
                f"{part.file}: says that all parts hold {part.all_tensors} tensors together, and"
                f" they hold {total}; fetch all parts again from one source",
                file=part.file,
            )


def _part(file: str, reader: Any) -> Part:
    def number(key: str, otherwise: int | None) -> Any:
        field = reader.get_field(key)
        return otherwise if field is None else int(field.contents())

    names = tuple(tensor.name for tensor in reader.tensors)
    return Part(file, names, number(NUMBER, 0), number(COUNT, 1), number(TENSORS, None))
