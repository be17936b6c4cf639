"""Products with bfloat16 weights for processors that have no bfloat16 arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stoker_loader import _native

if TYPE_CHECKING:
    from torch import Tensor


def available() -> bool:
    """Whether this processor has AVX-512 or AVX2 with FMA; without them torch is as fast."""
    return _native.has_wide_vectors()


class Kernels:
    """Computes products with a pool of `threads` threads, the caller's included.

    The pool ends with the object. Of several callers at once, one has the pool, and the others
    compute alone. Raises ValueError for no threads, and OSError where the system refuses them.
    """

    __slots__ = ("_bfloat16", "_float32", "_multiply", "_native")

    def __init__(self, threads: int) -> None:
        import torch

        self._float32, self._bfloat16 = torch.float32, torch.bfloat16
        self._native = _native.Kernels(threads)
        self._multiply = self._native.multiply

    @property
    def threads(self) -> int:
        """Threads that work on a product."""
        return self._native.threads

    @property
    def instructions(self) -> str:
        """The vectors in use: `avx512`, `avx2` or `portable`."""
        return self._native.instructions

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """`x [tokens, inputs] @ weight [outputs, inputs].T + bias [outputs]`, summed in float32.

        The weight is bfloat16, all others are bfloat16 or float32, on the CPU; rows are without
        gaps, but those of x and out may be any distance apart. The result goes to `out`, rounded
        once if that is bfloat16, or to a new float32 tensor. No gradient is recorded, and `out`
        must not overlap what is read. Releases the interpreter's lock: nobody may change the
        tensors meanwhile. Raises ValueError for tensors of other types, shapes or strides.
        """
        outputs, inputs = weight.shape
        tokens, found = x.shape
        x_stride, x_step = x.stride()
        if (
            found != inputs
            or weight.dtype is not self._bfloat16
            or not weight.is_contiguous()
            or not (x_step == 1 or inputs < 2)
            or not (x.is_cpu and weight.is_cpu)
            or not (out is None or _is_rows(out, tokens, outputs))
        ):
            raise ValueError(_complaint(x, weight, out))
        if out is None:
            out = x.new_empty((tokens, outputs), dtype=self._float32)
            to = (out.data_ptr(), False, outputs)
        else:
            to = (out.data_ptr(), self._is_short(out), out.stride(0))
        self._multiply(
            (x.data_ptr(), self._is_short(x), x_stride),
            weight.data_ptr(),
            None if bias is None else self._vector(bias, outputs),
            to,
            tokens,
            inputs,
            outputs,
        )
        return out

    def _is_short(self, tensor: Tensor) -> bool:
        if tensor.dtype is self._float32:
            return False
        if tensor.dtype is self._bfloat16:
            return True
        raise ValueError(f"a tensor of {tensor.dtype}: kernels take float32 and bfloat16")

    def _vector(self, bias: Tensor, outputs: int) -> tuple[int, bool]:
        if bias.shape != (outputs,) or not bias.is_contiguous() or not bias.is_cpu:
            raise ValueError(
                f"a bias of shape {tuple(bias.shape)}, stride {bias.stride()} and device "
                f"{bias.device} for {outputs} outputs: it has to be [outputs], contiguous, on cpu"
            )
        return bias.data_ptr(), self._is_short(bias)


def _is_rows(out: Tensor, tokens: int, outputs: int) -> bool:
    """Whether it is `[tokens, outputs]` on the CPU, in rows that neither overlap nor have gaps."""
    if out.shape != (tokens, outputs) or not out.is_cpu:
        return False
    stride, step = out.stride()
    return (step == 1 or outputs < 2) and (stride >= outputs or tokens < 2)


def _complaint(x: Tensor, weight: Tensor, out: Tensor | None) -> str:
    named = [("x", x), ("weight", weight), *([] if out is None else [("out", out)])]
    facts = ", ".join(
        f"{name} {tuple(tensor.shape)} of {tensor.dtype} with strides {tensor.stride()} "
        f"on {tensor.device}"
        for name, tensor in named
    )
    return (
        "kernels take x [tokens, inputs], a contiguous bfloat16 weight [outputs, inputs] and "
        f"out [tokens, outputs], all on cpu and with rows without gaps; these are {facts}"
    )
