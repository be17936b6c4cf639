"""Tensors over whole files in the memory of a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stoker_loader.tensors import Record, row_major, torch_dtype, torch_shape

if TYPE_CHECKING:
    import torch


class ImageViews:
    """Tensors over images of files. Each keeps its file's image alive, and nothing else does.

    A tensor shares the storage of its whole file, but is no autograd view: it has its own version
    counter, so writing to one tensor does not invalidate what autograd saved of another.
    """

    def __init__(self, images: Sequence[torch.Tensor], leads: Sequence[int]) -> None:
        """An image for each file (uint8, flat), in which the file begins at its lead."""
        import torch

        self._torch = torch
        self._storages = [image.untyped_storage() for image in images]
        self._leads = leads
        self._empty: dict[str, torch.Tensor] = {}  # one tensor of each dtype, to make others from

    def tensor(self, record: Record) -> torch.Tensor:
        """The tensor as a view, or as a copy if it is misaligned. Raises UnsupportedDtypeError."""
        shape = torch_shape(record.name, record.dtype, record.shape)
        storage = self._storages[record.shard]
        begin = self._leads[record.shard] + record.offset_bytes
        empty = self._empty.get(record.dtype)
        if empty is None:
            dtype = torch_dtype(record.name, record.dtype)
            empty = self._torch.empty(0, dtype=dtype, device=storage.device)
            self._empty[record.dtype] = empty
        offset, rest = divmod(begin, empty.itemsize)
        if not rest:
            # Twice as fast as slicing and viewing, which counts with thousands of tensors.
            return empty.new_empty(0).set_(storage, offset, shape, row_major(shape))
        raw = self._torch.empty(0, dtype=self._torch.uint8, device=storage.device)
        raw.set_(storage, begin, (record.size_bytes,), (1,))
        return raw.clone().view(empty.dtype).view(shape)
