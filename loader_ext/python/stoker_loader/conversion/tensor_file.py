"""Writes tensors as a safetensors file, one after the other, straight into its mapped pages."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stoker_loader.conversion.storage import storage_errors
from stoker_loader.errors import EntryRefusedError
from stoker_loader.page_cache import Progress
from stoker_loader.tensors import PAIRED, format_name

if TYPE_CHECKING:
    import torch

# Integers are indices and 8-bit and 4-bit floats have scales of their own: those stay.
CAST_FROM = ("BF16", "F16", "F32", "F64")
METADATA = "__metadata__"  # which no tensor may be called
HEADER_ALIGNMENT_BYTES = 8  # the largest element of the format


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor, what it is written as, and where: an offset from the beginning of the file."""

    name: str
    tensor: torch.Tensor
    dtype: torch.dtype
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole file: its beginning, its tensors in order, its length."""

    header: bytes
    placed: tuple[Placed, ...]
    file_bytes: int


def plan(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None,
    file: str,
) -> Plan:
    """Place the tensors, largest elements first so that each is aligned, cast to `dtype` if given.

    Raises EntryRefusedError for a tensor that the format cannot hold.
    """
    document: dict[str, object] = {METADATA: dict(metadata)}
    placed: list[Placed] = []
    end_bytes = 0
    written = {name: _written_as(name, tensor, dtype, file) for name, tensor in tensors.items()}
    for name in sorted(tensors, key=lambda name: -written[name].itemsize):
        tensor, target = tensors[name], written[name]
        size_bytes = tensor.numel() * target.itemsize
        document[name] = {
            "dtype": format_name(target),
            "shape": _format_shape(tensor, target),
            "data_offsets": [end_bytes, end_bytes + size_bytes],
        }
        placed.append(Placed(name, tensor, target, end_bytes, size_bytes))
        end_bytes += size_bytes
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT_BYTES)
    header = len(text).to_bytes(8, "little") + text
    moved = tuple(
        Placed(item.name, item.tensor, item.dtype, item.offset_bytes + len(header), item.size_bytes)
        for item in placed
    )
    return Plan(header, moved, len(header) + end_bytes)


@contextmanager
def create(path: Path) -> Iterator[int]:
    """A new file to write to, as a descriptor. Raises StorageError."""
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write(descriptor: int, planned: Plan, advance: Progress) -> None:
    """Write a file to an empty descriptor, calling `advance` after each tensor.

    No tensor is copied on its way unless it is neither contiguous nor cast. The room is reserved
    first, so that a full disk is an error here and not a signal later. Raises StorageError,
    EntryRefusedError for a value that the dtype cannot hold, and what `advance` raises.
    """
    import torch

    with storage_errors(Path("model.safetensors")):
        os.posix_fallocate(descriptor, 0, planned.file_bytes)
        mapping = mmap.mmap(descriptor, planned.file_bytes)
    mapping[: len(planned.header)] = planned.header
    for item in planned.placed:
        if item.size_bytes == 0:
            continue
        place = torch.frombuffer(
            mapping, dtype=torch.uint8, count=item.size_bytes, offset=item.offset_bytes
        )
        source = item.tensor.detach().resolve_conj().resolve_neg()
        if source.dtype == item.dtype:
            place.copy_(source.contiguous().reshape(-1).view(torch.uint8))
        else:
            _cast(source, place.view(item.dtype).view(source.shape), item.name)
        advance(item.offset_bytes + item.size_bytes, planned.file_bytes)


def _cast(source: torch.Tensor, place: torch.Tensor, name: str) -> None:
    """Copy with rounding; a finite number that the narrower type makes infinite is an error."""
    place.copy_(source)
    if place.isinf().any() and not place.isinf().equal(source.isinf()):
        raise EntryRefusedError(
            f"tensor {name!r}: has values beyond {place.dtype}; choose another dtype", tensor=name
        )


def _written_as(
    name: str, tensor: torch.Tensor, dtype: torch.dtype | None, file: str
) -> torch.dtype:
    import torch

    kind = None
    if name == METADATA or not _is_utf8(name):
        kind = "of a name"
    elif tensor.layout != torch.strided or tensor.is_nested:
        kind = f"of layout {tensor.layout}"
    elif tensor.is_quantized or format_name(tensor.dtype) is None:
        kind = f"of {tensor.dtype}"
    elif tensor.is_meta:
        kind = "without data (on the meta device)"
    if kind is not None:
        raise EntryRefusedError(
            f"{file}: tensor {name!r}: is {kind}, which safetensors cannot hold; convert or drop"
            " this entry where you trust the file",
            file=file,
            tensor=name,
        )
    return dtype if dtype is not None and format_name(tensor.dtype) in CAST_FROM else tensor.dtype


def _is_utf8(name: str) -> bool:
    """False for the lone halves of surrogates that Python's texts can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _format_shape(tensor: torch.Tensor, dtype: torch.dtype) -> list[int]:
    shape = list(tensor.shape)
    if format_name(dtype) == PAIRED:
        shape[-1] *= 2
    return shape
