"""Mapped bytes as torch tensors or numpy arrays. Either library is imported when first needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

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
    """Tensors over files in memory. Each keeps its file's memory alive, and nothing else does.

    A tensor shares the storage of its whole file, but is no autograd view: it has its own version
    counter, so writing to one tensor does not invalidate what autograd saved of another.
    """

    def __init__(
        self, storages: Sequence[torch.UntypedStorage], leads: Sequence[int] | None = None
    ) -> None:
        """A storage for each file, whose byte 0 is that of the file, or the one at its lead."""
        import torch

        self._torch = torch
        self._storages = storages
        self._leads = leads or [0] * len(storages)
        self._empty: dict[str, torch.Tensor] = {}  # one tensor of each dtype, to make others from

    @classmethod
    def of_buffers(cls, buffers: Sequence[_native.Buffer]) -> Self:
        """Views of mappings."""
        import torch

        return cls([torch.frombuffer(b, dtype=torch.uint8).untyped_storage() for b in buffers])

    def view(self, record: Record, shape: tuple[int, ...] | None = None) -> torch.Tensor | None:
        """The tensor without a copy (of another shape if given), or None if it is misaligned."""
        empty = self._empty.get(record.dtype)
        if empty is None:
            device = self._storages[record.shard].device
            empty = self._torch.empty(0, dtype=torch_dtype(record), device=device)
            self._empty[record.dtype] = empty
        offset, rest = divmod(self._leads[record.shard] + record.offset_bytes, empty.itemsize)
        if rest:
            return None
        if shape is None:
            shape = record.shape
        # Twice as fast as slicing and viewing, which counts with thousands of tensors.
        return empty.new_empty(0).set_(
            self._storages[record.shard], offset, shape, row_major(shape)
        )

    def tensor(self, record: Record) -> torch.Tensor:
        """The tensor as a view, or as a copy if it is misaligned."""
        view = self.view(record)
        return self.copy(record) if view is None else view

    def copy(self, record: Record) -> torch.Tensor:
        """The tensor in memory of its own, whatever its alignment."""
        storage = self._storages[record.shard]
        begin = self._leads[record.shard] + record.offset_bytes
        raw = self._torch.empty(0, dtype=self._torch.uint8, device=storage.device)
        raw.set_(storage, begin, (record.size_bytes,), (1,))
        return raw.clone().view(torch_dtype(record)).view(record.shape)


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
