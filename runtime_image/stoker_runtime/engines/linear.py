"""Matrix products with 16-bit weights on processors that have no 16-bit arithmetic.

Without AVX512-BF16 or AMX torch emulates a bfloat16 product, which is several times slower than
the float32 one. The kernels of stoker_loader read such weights where they lie and widen them in
registers. For float16, and on processors without wide vectors, the weights are widened tile by
tile, so that each tile is used while it is still in the second-level cache. Neither makes a
float32 copy of the weights, and both accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from stoker_loader import kernels

Linear: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`linear(x [rows, inputs], weight [outputs, inputs], bias)` -> `[rows, outputs]`, of the
weight's type or of float32, whichever costs nothing; x may be of either."""

TILE_ELEMENTS = 288 * 1024  # 1.1 MiB of float32: half of what two cores' L2 hold
NATIVE_ROWS = 2  # up to here reading the weights once is all that matters

UPRIGHT_ROWS = 16  # from here on a product is faster with the tile on its left


def linear_for(dtype: torch.dtype) -> Linear:
    """The fastest product with weights of `dtype` on this processor, on torch's threads."""
    if dtype is torch.float32 or _has_arithmetic(dtype):
        return native
    if dtype is torch.bfloat16 and kernels.available():
        return KernelLinear(kernels.Kernels(torch.get_num_threads()))
    return WideningLinear()


def leave_threads_to(linear: Linear) -> None:
    """Takes torch's threads away where `linear` has threads of its own.

    Two pools would fight for the same processors, each spinning while the other computes. What
    else a decoder computes is too small to gain by threads. The setting holds for the calling
    thread and for all that compute for the first time afterwards, in the whole process: call
    this where an engine is built, before the thread that will run it has begun to.
    """
    if isinstance(linear, KernelLinear):
        torch.set_num_threads(1)


def native(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product in the weight's own type."""
    return functional.linear(x.to(weight.dtype), weight, bias)


def _has_arithmetic(dtype: torch.dtype) -> bool:
    has = torch.cpu.get_capabilities()
    if has.get("architecture") != "x86_64":
        return True
    wanted = "bf16" if dtype is torch.bfloat16 else "fp16"
    return bool(has.get(f"avx512_{wanted}") or has.get(f"amx_{wanted}"))


class KernelLinear:
    """A product by native kernels, of any number of rows, in float32 without any rounding."""

    def __init__(self, pool: kernels.Kernels) -> None:
        self._linear = pool.linear

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._linear(x, weight, bias)


class WideningLinear:
    """A product through a float32 tile that is reused; for one thread."""

    def __init__(self) -> None:
        self._tile = torch.empty(0)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Native for a row or two, else float32 without any rounding."""
        if x.shape[0] <= NATIVE_ROWS:
            return native(x, weight, bias)
        outputs, inputs = weight.shape
        tile_rows = min(outputs, max(1, TILE_ELEMENTS // inputs))
        if self._tile.numel() < tile_rows * inputs:
            self._tile = torch.empty(tile_rows * inputs)
        wide = x.float()
        upright = x.shape[0] < UPRIGHT_ROWS
        out = torch.empty((x.shape[0], outputs) if upright else (outputs, x.shape[0]))
        for start in range(0, outputs, tile_rows):
            piece = weight[start : start + tile_rows]
            tile = self._tile[: piece.numel()].view_as(piece)
            tile.copy_(piece)
            if upright:
                torch.mm(wide, tile.t(), out=out[:, start : start + tile_rows])
            else:
                torch.mm(tile, wide.t(), out=out[start : start + tile_rows])
        out = out if upright else out.t().contiguous()
        return out if bias is None else out.add_(bias)
