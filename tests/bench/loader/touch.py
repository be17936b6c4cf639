"""Touching every page: of the tensors that a loader gave, and of guest memory ahead."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from typing import Any

import numpy as np

PAGE_BYTES = mmap.PAGESIZE
HALF_PAGE_BYTES = PAGE_BYTES // 2


def spans(tensors: Iterable[Any]) -> list[tuple[int, int]]:
    """Address and length of each tensor of torch or numpy."""
    found = []
    for tensor in tensors:
        if isinstance(tensor, np.ndarray):
            found.append((tensor.__array_interface__["data"][0], tensor.nbytes))
        else:
            found.append((tensor.data_ptr(), tensor.nbytes))
    return found


def touch(where: Iterable[tuple[int, int]], first: int = 0) -> int:
    """Reads byte `first` of each tensor and one every page behind it, and its last byte: so every
    page. Returns their exclusive or, which is the same for every loader of the same tensors."""
    seen = 0
    for address, size_bytes in where:
        if not size_bytes:
            continue
        raw = np.frombuffer((ctypes.c_char * size_bytes).from_address(address), dtype=np.uint8)
        seen ^= int(np.bitwise_xor.reduce(raw[min(first, size_bytes - 1) :: PAGE_BYTES]))
        seen ^= int(raw[-1])
    return seen


class Memory:
    """Guest memory that was touched a moment ago. On a virtual machine memory that has been free
    for seconds may be back with the host, and touching it again costs more than a disk."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = mmap.mmap(-1, max(size_bytes, PAGE_BYTES))
        raw = np.frombuffer(self._memory, dtype=np.uint8)
        raw[::PAGE_BYTES] = 1
        del raw

    def give_back(self) -> None:
        """To the kernel, which hands out last what it got last."""
        self._memory.close()
