"""Mapped bytes as torch tensors or numpy arrays. Either library is imported when first needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from stoker_loader import _native
from stoker_loader.errors import UnsupportedDtypeError

if TYPE_CHECKING:
    import numpy as np
    import torch

# The format's names -> attributes of torch, and what numpy calls the same bits. numpy has no
# bfloat16 and no float8: those come as unsigned integers of the same size, to be viewed by
# whoever has a dtype for them (`ml_dtypes`). Nobody has the packed 6-bit types, and numpy no
# packed one.
_DTYPES: dict[str, tuple[str | None, str | None]] = {
    "BOOL": ("bool", "bool"),
    "F4": ("float4_e2m1fn_x2", None),
    "F6_E2M3": (None, None),
    "F6_E3M2": (None, None),
    "U8": ("uint8", "uint8"),
    "I8": ("int8", "int8"),
    "F8_E5M2": ("float8_e5m2", "uint8"),
    "F8_E4M3": ("float8_e4m3fn", "uint8"),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", "uint8"),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", "uint8"),
    "F8_E8M0": ("float8_e8m0fnu", "uint8"),
    "I16": ("int16", "int16"),
    "U16": ("uint16", "uint16"),
    "F16": ("float16", "float16"),
    "BF16": ("bfloat16", "uint16"),
    "I32": ("int32", "int32"),
    "U32": ("uint32", "uint32"),
    "F32": ("float32", "float32"),
    "F64": ("float64", "float64"),
    "I64": ("int64", "int64"),
    "U64": ("uint64", "uint64"),
    "C64": ("complex64", "complex64"),
}

# One torch element is a byte of two values, so torch's last dimension is half the format's.
PAIRED = "F4"


class Record(NamedTuple):
    """A tensor as the core lists it; `shard` is a number, `offset_bytes` counts from file start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset_bytes: int
    size_bytes: int


def adjacent(records: Sequence[Record]) -> bool:
    """Whether tensors stand side by side in one file, alike in dtype and in all but their rows."""
    first = records[0]
    return bool(first.shape) and all(
        (after.shard, after.offset_bytes, after.dtype, after.shape[1:], len(after.shape))
        == (
            before.shard,
            before.offset_bytes + before.size_bytes,
            first.dtype,
            first.shape[1:],
            len(first.shape),
        )
        for before, after in pairwise(records)
    )


def torch_dtype(name: str, dtype: str) -> torch.dtype:
    """The torch dtype of a tensor; raises UnsupportedDtypeError where torch has none."""
    import torch

    attribute, _ = _DTYPES[dtype]
    found = getattr(torch, attribute, None) if attribute else None
    if not isinstance(found, torch.dtype):
        raise _unsupported(name, f"torch {torch.__version__} has no dtype for {dtype}")
    return found


def torch_shape(name: str, dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that torch gives a tensor; raises UnsupportedDtypeError where it has none."""
    if dtype != PAIRED:
        return shape
    *outer, last = shape
    if last % 2:
        reason = f"torch pairs {PAIRED} along the last dimension, which is odd in {shape}"
        raise _unsupported(name, reason)
    return (*outer, last // 2)


def format_name(dtype: torch.dtype) -> str | None:
    """The format's name of a torch dtype, or None if it has none."""
    attribute = str(dtype).removeprefix("torch.")
    return next(
        (name for name, (torch_name, _) in _DTYPES.items() if torch_name == attribute), None
    )


@dataclass(slots=True)
class Copied:
    """Counts the bytes of tensors that could not be views."""

    size_bytes: int = 0


class TorchViews:
    """Tensors over memory that the native side keeps, handed over by DLPack.

    Each has a storage of its own, which is its range of that memory and keeps it alive, and its
    own version counter: writing to one tensor does not invalidate what autograd saved of another.
    """

    def __init__(self, native: _native.Checkpoint, copied: Copied) -> None:
        import torch
        from torch.utils import dlpack

        self._torch = torch
        # What `torch.from_dlpack` calls for a capsule: without the way there a fifth faster.
        self._from_dlpack: Callable[[object], torch.Tensor] = getattr(
            torch._C, "_from_dlpack", dlpack.from_dlpack
        )
        self._native = native
        self._copied = copied
        self._direct = [dtype for dtype in _DTYPES if self._is_direct(dtype)]

    def attach(self, source: _native.Checkpoint | _native.Parts) -> dict[str, torch.Tensor]:
        """All tensors of a source, in file order; those that are misaligned are copies."""
        return source.attach(self._direct, self._from_dlpack, self._from_bytes)

    def tensor(self, record: Record) -> torch.Tensor:
        """One tensor; a copy if it is misaligned."""
        direct = record.dtype in self._direct and is_aligned(record)
        dtype, shape = (record.dtype, record.shape) if direct else ("U8", (record.size_bytes,))
        capsule = self._native.capsule(record.shard, record.offset_bytes, dtype, shape)
        if direct:
            return self._from_dlpack(capsule)
        return self._from_bytes(record.name, record.dtype, record.shape, capsule)

    def _from_bytes(
        self, name: str, dtype: str, shape: tuple[int, ...], capsule: object
    ) -> torch.Tensor:
        """The tensor that a capsule of bytes stands for."""
        wanted, shape = torch_dtype(name, dtype), torch_shape(name, dtype, shape)
        raw = self._from_dlpack(capsule)
        if raw.data_ptr() % wanted.itemsize:
            self._copied.size_bytes += raw.nbytes
            return raw.clone().view(wanted).view(shape)
        # A new tensor over the same storage: `raw.view(wanted)` would be an autograd view.
        empty = self._torch.empty(0, dtype=wanted)
        return empty.set_(raw.untyped_storage(), 0, shape, row_major(shape))

    def _is_direct(self, dtype: str) -> bool:
        """Whether this torch knows the dtype and takes it by DLPack: asked, not looked up."""
        attribute, _ = _DTYPES[dtype]
        wanted: torch.dtype | None = getattr(self._torch, attribute, None) if attribute else None
        if wanted is None or dtype == PAIRED:
            return False
        try:
            made = self._from_dlpack(self._native.capsule(0, 0, dtype, (0,)))
        except (BufferError, RuntimeError):
            return False
        return made.dtype is wanted


def is_aligned(record: Record) -> bool:
    """Whether a tensor lies on a multiple of its element, so that it can be a view."""
    return record.offset_bytes % torch_dtype(record.name, record.dtype).itemsize == 0


def numpy_view(record: Record, buffer: _native.Buffer) -> np.ndarray[Any, Any]:
    """The array without a copy, of any alignment; bfloat16 as uint16, float8 as uint8."""
    import numpy as np

    name = _DTYPES[record.dtype][1]
    if name is None:
        raise _unsupported(record.name, f"numpy has no dtype for {record.dtype}")
    dtype = np.dtype(name)
    flat: np.ndarray[Any, Any] = np.frombuffer(
        memoryview(buffer),
        dtype=dtype,
        count=record.size_bytes // dtype.itemsize,
        offset=record.offset_bytes,
    )
    return flat.reshape(record.shape)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a contiguous tensor of this shape."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _unsupported(name: str, reason: str) -> UnsupportedDtypeError:
    return UnsupportedDtypeError(f"tensor {name!r}: {reason}", tensor=name)
