"""Mapped bytes as torch tensors or numpy arrays. Either library is imported when first needed."""

from __future__ import annotations

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


def torch_dtype(record: Record) -> torch.dtype:
    """The torch dtype of a tensor; raises UnsupportedDtypeError where torch has none."""
    import torch

    name, _ = _DTYPES[record.dtype]
    dtype = getattr(torch, name, None) if name else None
    if not isinstance(dtype, torch.dtype):
        raise _unsupported(record, f"torch {torch.__version__} has no dtype for {record.dtype}")
    return dtype


def torch_shape(record: Record) -> tuple[int, ...]:
    """The shape that torch gives a tensor; raises UnsupportedDtypeError where it has none."""
    if record.dtype != PAIRED:
        return record.shape
    *outer, last = record.shape
    if last % 2:
        reason = f"torch pairs {PAIRED} along the last dimension, which is odd in {record.shape}"
        raise _unsupported(record, reason)
    return (*outer, last // 2)


def format_name(dtype: torch.dtype) -> str | None:
    """The format's name of a torch dtype, or None if it has none."""
    attribute = str(dtype).removeprefix("torch.")
    return next(
        (name for name, (torch_name, _) in _DTYPES.items() if torch_name == attribute), None
    )


class TorchViews:
    """Tensors over mapped files. Each keeps its file's mapping alive, and nothing else does.

    A tensor shares the storage of its whole file, but is no autograd view: it has its own version
    counter, so writing to one tensor does not invalidate what autograd saved of another.
    """

    def __init__(self, buffers: list[_native.Buffer]) -> None:
        import torch

        self._torch = torch
        self._storages = [
            torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage() for buffer in buffers
        ]
        self._empty: dict[str, torch.Tensor] = {}  # one tensor of each dtype, to make others from

    def view(self, record: Record) -> torch.Tensor | None:
        """The tensor without a copy, or None if it is misaligned."""
        empty = self._empty.get(record.dtype)
        if empty is None:
            empty = self._torch.empty(0, dtype=torch_dtype(record))
            self._empty[record.dtype] = empty
        offset, rest = divmod(record.offset_bytes, empty.itemsize)
        if rest:
            return None
        shape = torch_shape(record)
        # Twice as fast as slicing and viewing, which counts with thousands of tensors.
        return empty.new_empty(0).set_(
            self._storages[record.shard], offset, shape, row_major(shape)
        )

    def copy(self, record: Record) -> torch.Tensor:
        """The tensor in memory of its own, whatever its alignment."""
        raw = self._torch.empty(0, dtype=self._torch.uint8)
        raw.set_(self._storages[record.shard], record.offset_bytes, (record.size_bytes,), (1,))
        return raw.clone().view(torch_dtype(record)).view(torch_shape(record))


def numpy_view(record: Record, buffer: _native.Buffer) -> np.ndarray[Any, Any]:
    """The array without a copy, of any alignment; bfloat16 as uint16, float8 as uint8."""
    import numpy as np

    name = _DTYPES[record.dtype][1]
    if name is None:
        raise _unsupported(record, f"numpy has no dtype for {record.dtype}")
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


def _unsupported(record: Record, reason: str) -> UnsupportedDtypeError:
    return UnsupportedDtypeError(f"tensor {record.name!r}: {reason}", tensor=record.name)
