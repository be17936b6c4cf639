"""Kernels compute what torch computes, on tensors as they come, from any thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional

from stoker_loader.kernels import Kernels, available

DECODER_SHAPES = [(960, 576), (576, 576), (3072, 576), (576, 1536), (896, 4864), (49152, 576)]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


@pytest.fixture(params=[1, 2, 4])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return Kernels(request.param)


@pytest.mark.parametrize(("outputs", "inputs"), DECODER_SHAPES)
@pytest.mark.parametrize("tokens", [1, 2, 8, 37])
def test_products_of_real_shapes(kernels: Kernels, outputs: int, inputs: int, tokens: int) -> None:
    x, weight = random(tokens, inputs), random(outputs, inputs, dtype=torch.bfloat16)
    found = kernels.linear(x, weight)
    assert found.dtype is torch.float32
    exact = functional.linear(x, weight.float())
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5 * inputs**0.5)


@pytest.mark.parametrize("of_x", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_bias", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_out", [torch.float32, torch.bfloat16])
def test_types_and_rounding(
    of_x: torch.dtype, of_bias: torch.dtype | None, of_out: torch.dtype
) -> None:
    x, weight = random(5, 100, dtype=of_x), random(30, 100, dtype=torch.bfloat16, seed=6)
    bias = None if of_bias is None else random(30, dtype=of_bias, seed=7)
    out = torch.empty(5, 30, dtype=of_out)
    assert Kernels(2).linear(x, weight, bias, out) is out
    wide = None if bias is None else bias.double()
    exact = functional.linear(x.double(), weight.double(), wide)
    # One rounding, and no more than a few steps of float32 before it.
    error = 2**-8 if of_out is torch.bfloat16 else 0.0
    torch.testing.assert_close(out.double(), exact, rtol=error, atol=1e-4)


def test_rows_may_have_gaps_and_gaps_are_left_alone() -> None:
    x, weight = random(9, 300)[:, 100:177], random(21, 77, dtype=torch.bfloat16)
    whole = torch.full((9, 40), 7.0)
    out = whole[:, 3:24]
    Kernels(2).linear(x, weight, out=out)
    torch.testing.assert_close(out, functional.linear(x, weight.float()), rtol=1e-5, atol=1e-4)
    assert (whole[:, :3] == 7).all()
    assert (whole[:, 24:] == 7).all()


def test_rows_of_an_expanded_tensor_are_the_same_row() -> None:
    x, weight = random(1, 64).expand(8, 64), random(16, 64, dtype=torch.bfloat16)
    found = Kernels(1).linear(x, weight)
    assert torch.equal(found, found[:1].expand(8, 16))


def test_columns_with_gaps_are_refused() -> None:
    weight = random(16, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"x \(3, 64\) of torch.float32 with strides \(1, 3\)"):
        Kernels(1).linear(random(64, 3).t(), weight)


@pytest.mark.parametrize(
    ("x", "weight", "out"),
    [
        (torch.zeros(2, 5), torch.zeros(3, 4, dtype=torch.bfloat16), None),
        (torch.zeros(2, 4), torch.zeros(3, 4), None),
        (torch.zeros(2, 4), torch.zeros(3, 8, dtype=torch.bfloat16)[:, ::2], None),
        (torch.zeros(2, 4), torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(2, 2)),
        (torch.zeros(2, 4), torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(3).expand(2, 3)),
        (torch.zeros(2, 4), torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(3, 2).t()),
        (torch.zeros(2, 4, device="meta"), torch.zeros(3, 4, dtype=torch.bfloat16), None),
    ],
)
def test_what_does_not_fit_is_refused(
    x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None
) -> None:
    with pytest.raises(ValueError, match="these are x"):
        Kernels(1).linear(x, weight, None, out)


def test_other_types_and_biases_are_refused() -> None:
    weight = torch.zeros(3, 4, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"torch\.float16: kernels take float32 and bfloat16"):
        Kernels(1).linear(torch.zeros(2, 4, dtype=torch.float16), weight)
    with pytest.raises(ValueError, match=r"a bias of shape \(4,\)"):
        Kernels(1).linear(torch.zeros(2, 4), weight, torch.zeros(4))


def test_it_takes_a_thread() -> None:
    with pytest.raises(ValueError, match="at least one thread"):
        Kernels(0)
    assert Kernels(3).threads == 3


def test_the_instructions_are_known() -> None:
    assert Kernels(1).instructions in ("avx512", "avx2", "portable")
    assert available() == (Kernels(1).instructions != "portable")


def test_callers_at_once(kernels: Kernels) -> None:
    weight = random(1000, 300, dtype=torch.bfloat16)

    def call(seed: int) -> float:
        x = random(1 + seed, 300, seed=seed)
        exact = functional.linear(x, weight.float())
        return max(float((kernels.linear(x, weight) - exact).abs().max()) for _ in range(20))

    with ThreadPoolExecutor(4) as threads:
        assert max(threads.map(call, range(12))) < 1e-3
