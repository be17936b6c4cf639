"""Choosing tokens: the filters' laws, the generator's known answers, the frequencies' fit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stoker_runtime.contract import Sampling
from stoker_runtime.generation.philox import philox_4x32, uniform
from stoker_runtime.generation.sampler import Sampler, draw, keep

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40).map(torch.tensor)


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits.double(), -1)


def sampler(**fields: Any) -> Sampler:
    return Sampler(Sampling(**fields), fields.pop("prompt", ()), fields.pop("generated", ()))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the authors' known answers (Random123, kat_vectors, philox4x32 10)
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert philox_4x32(counter, key) == words


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_uniform_numbers_lie_in_the_half_open_interval(seed: int, position: int) -> None:
    assert 0.0 <= uniform(seed, position) < 1.0


def test_uniform_numbers_of_neighbours_are_not_related() -> None:
    numbers = torch.tensor([uniform(5, position) for position in range(20_000)])
    others = torch.tensor([uniform(6, position) for position in range(20_000)])
    for series in (numbers[1:], others[:-1]):
        correlation = torch.corrcoef(torch.stack((numbers[:-1], series)))[0, 1]
        assert abs(float(correlation)) < 4 / math.sqrt(20_000)


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_tokens_appear_as_often_as_they_should(seed: int) -> None:
    expected = torch.tensor([0.5, 0.25, 0.125, 0.1, 0.025], dtype=torch.float64)
    count = 20_000
    tokens = [draw(expected, uniform(seed, position)) for position in range(count)]
    found = torch.bincount(torch.tensor(tokens), minlength=5)
    chi_squared = float(((found - count * expected) ** 2 / (count * expected)).sum())
    assert chi_squared < 18.5  # 4 degrees of freedom: exceeded by chance once in 1,000


def test_temperature_sharpens_and_flattens() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    for temperature in (0.5, 1.0, 2.0):
        chosen = sampler(temperature=temperature, seed=9)
        tokens = [chosen.choose(logits, position).token for position in range(6_000)]
        expected = float(torch.softmax(logits / temperature, -1)[2])
        assert abs(tokens.count(2) / 6_000 - expected) < 4 * math.sqrt(expected / 6_000)


@given(LOGITS, st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_zero_temperature_is_the_maximum(logits: torch.Tensor, seed: int, position: int) -> None:
    choice = sampler(temperature=0.0, seed=seed).choose(logits, position)
    assert logits[choice.token] == logits.max()


@given(LOGITS, st.integers(1, 50))
def test_top_k_keeps_the_k_most_probable(logits: torch.Tensor, top_k: int) -> None:
    p = probabilities(logits)
    kept = keep(p, top_k, 1.0, 0.0)
    assert int((kept > 0).sum()) == min(top_k, int((p > 0).sum()))
    assert float(kept[kept > 0].min()) >= float(p[kept == 0].max()) if (kept == 0).any() else True


@given(LOGITS, st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set_with_the_mass(logits: torch.Tensor, top_p: float) -> None:
    p = probabilities(logits)
    kept = keep(p, 0, top_p, 0.0)
    chosen = p[kept > 0]
    assert float(chosen.sum()) >= top_p - 1e-9
    assert float(chosen.sum() - chosen.min()) < top_p + 1e-9
    assert torch.equal(kept[kept > 0], chosen)


@given(LOGITS, st.floats(0.0, 1.0))
def test_min_p_keeps_what_is_close_to_the_best(logits: torch.Tensor, min_p: float) -> None:
    p = probabilities(logits)
    kept = keep(p, 0, 1.0, min_p)
    assert torch.equal(kept > 0, (p >= min_p * p.max()) & (p > 0))


@given(LOGITS, st.integers(0, 9), st.floats(0.01, 1.0), st.floats(0.0, 1.0), st.floats(0, 1))
@settings(max_examples=200)
def test_a_draw_is_always_a_kept_token(
    logits: torch.Tensor, top_k: int, top_p: float, min_p: float, number: float
) -> None:
    assume(number < 1.0)
    kept = keep(probabilities(logits), top_k, top_p, min_p)
    assert float(kept[draw(kept, number)]) > 0


def test_the_last_number_draws_the_last_possible_token() -> None:
    assert draw(torch.tensor([0.1, 0.2, 0.0], dtype=torch.float64), 1 - 2**-53) == 1


def test_presence_and_frequency_count_what_was_generated_alone() -> None:
    logits = torch.tensor([1.0, 1.2, 0.0])
    options: dict[str, Any] = {"temperature": 0.0, "frequency_penalty": 0.15}
    fresh = Sampler(Sampling(**options), prompt=(1, 1, 1, 1), generated=())
    assert fresh.choose(logits, 4).token == 1
    once = Sampler(Sampling(**options), prompt=(), generated=(1,))
    assert once.choose(logits, 1).token == 1
    once.note(1)
    assert once.choose(logits, 2).token == 0
    present = Sampler(Sampling(temperature=0.0, presence_penalty=0.3), (), (1,))
    assert present.choose(logits, 1).token == 0


def test_repetition_counts_the_prompt_and_pushes_both_signs_down() -> None:
    options = Sampling(temperature=0.0, repetition_penalty=2.0)
    assert Sampler(options, (1,), ()).choose(torch.tensor([0.7, 1.0]), 1).token == 0
    assert Sampler(options, (1,), ()).choose(torch.tensor([-1.5, -1.0]), 1).token == 0
    assert Sampler(options, (), (1,)).choose(torch.tensor([0.7, 1.0]), 1).token == 0


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(0, 12))
def test_penalties_after_a_continuation_are_those_without_it(
    generated: list[int], split: int
) -> None:
    options = Sampling(presence_penalty=0.4, frequency_penalty=0.3, repetition_penalty=1.3, seed=4)
    logits = torch.linspace(-2, 2, 10)
    steady = Sampler(options, (3, 5), ())
    for token in generated:
        steady.note(token)
    moved = Sampler(options, (3, 5), generated[:split])
    for token in generated[split:]:
        moved.note(token)
    position = 2 + len(generated)
    assert moved.choose(logits, position) == steady.choose(logits, position)


def test_logprobs_are_those_of_the_unmodified_model() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, -1.0])
    options = Sampling(temperature=0.0, logprobs=2, presence_penalty=2.0)
    choice = Sampler(options, (), (1,)).choose(logits, 1)
    expected = torch.log_softmax(logits, -1)
    assert choice.token == 2
    assert choice.logprob == pytest.approx(float(expected[2]))
    assert [token for token, _ in choice.alternatives] == [1, 2]
    assert choice.alternatives[0][1] == pytest.approx(float(expected[1]))


def test_only_a_plain_maximum_is_left_to_the_batch() -> None:
    assert sampler(temperature=0.0).greedy
    for field in ("presence_penalty", "frequency_penalty"):
        assert not sampler(temperature=0.0, **{field: 0.1}).greedy
    assert not sampler(temperature=0.0, repetition_penalty=1.1).greedy
    assert not sampler(temperature=0.0, logprobs=0).greedy
    assert not sampler(temperature=0.1).greedy
