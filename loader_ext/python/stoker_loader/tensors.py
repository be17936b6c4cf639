"""Mapped bytes as torch tensors or numpy arrays. Either library is imported when first needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from stoker_loader import _native
from stoker_loader.errors import UnsupportedDtypeError

if TYPE_CHECKING:
    import numpy as np
    import torch

# The format's names -> attributes of torch, and what numpy calls the same bits. numpy has no
# bfloat16 and no float8: those come as unsigned integers of the same size, to be viewed by
# whoever has a dtype for them (`ml_dtypes`).
_DTYPES = {
    "BOOL": ("bool", "bool"),
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


class Record(NamedTuple):
    """A tensor as the core lists it; `shard` is a number, `offset_bytes` counts from file start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset_bytes: int
    size_bytes: int


def torch_dtype(record: Record) -> torch.dtype:
    """The torch dtype of a tensor; raises UnsupportedDtypeError where torch has none."""
    import torch

    dtype = getattr(torch, _dtype_names(record)[0], None)
    if not isinstance(dtype, torch.dtype):
        raise _unsupported(record, f"torch {torch.__version__}")
    return dtype


class TorchViews:
    """Tensors over the mapped files of a checkpoint, handed over by DLPack.

    Each has a storage of its own, which is its range of the mapping and keeps the mapping alive,
    and its own version counter: writing to one tensor does not invalidate what autograd saved of
    another.
    """

    def __init__(self, native: _native.Checkpoint) -> None:
        import torch

        self._torch = torch
        self._native = native
        self._direct = [dtype for dtype in _DTYPES if self._is_direct(dtype)]

    def attach(self, other: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """All tensors in file order; `other` makes those that cannot be handed over as they are."""
        return self._native.attach(self._direct, self._torch.from_dlpack, other)

    def view(self, record: Record) -> torch.Tensor | None:
        """The tensor without a copy, or None if it is misaligned."""
        dtype = torch_dtype(record)
        if record.offset_bytes % dtype.itemsize:
            return None
        if record.dtype in self._direct:
            return self._from_native(record, record.dtype, record.shape)
        empty = self._torch.empty(0, dtype=dtype)
        storage = self._bytes(record).untyped_storage()
        return empty.set_(storage, 0, record.shape, row_major(record.shape))

    def copy(self, record: Record) -> torch.Tensor:
        """The tensor in memory of its own, whatever its alignment."""
        return self._bytes(record).clone().view(torch_dtype(record)).view(record.shape)

    def _bytes(self, record: Record) -> torch.Tensor:
        return self._from_native(record, "U8", (record.size_bytes,))

    def _from_native(self, record: Record, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        capsule = self._native.capsule(record.shard, record.offset_bytes, dtype, shape)
        return self._torch.from_dlpack(capsule)

    def _is_direct(self, dtype: str) -> bool:
        """Whether this torch knows the dtype and takes it by DLPack: asked, not looked up."""
        wanted = getattr(self._torch, _DTYPES[dtype][0], None)
        if wanted is None:
            return False
        try:
            made = self._torch.from_dlpack(self._native.capsule(0, 0, dtype, (0,)))
        except (BufferError, RuntimeError):
            return False
        return made.dtype == wanted


def numpy_view(record: Record, buffer: _native.Buffer) -> np.ndarray[Any, Any]:
    """The array without a copy, of any alignment; bfloat16 as uint16, float8 as uint8."""
    import numpy as np

    dtype = np.dtype(_dtype_names(record)[1])
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


def _dtype_names(record: Record) -> tuple[str, str]:
    names = _DTYPES.get(record.dtype)
    if names is None:
        raise _unsupported(record, "this package")
    return names


def _unsupported(record: Record, what: str) -> UnsupportedDtypeError:
    return UnsupportedDtypeError(
        f"tensor {record.name!r}: {what} has no dtype for {record.dtype}", tensor=record.name
    )
