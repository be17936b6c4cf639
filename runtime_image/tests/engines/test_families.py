"""The lean decoder computes what Transformers computes, for every family it claims."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import stoker_loader
from stoker_runtime.engines.causal_lm import CausalLM
from stoker_runtime.engines.causal_lm_config import parse_config
from stoker_runtime.engines.causal_lm_weights import DecoderWeights, bind
from stoker_runtime.engines.linear import linear_for
from stoker_runtime.weights import eos_ids, read_json

PROMPT = [5, 17, 3, 88, 41, 9, 9, 60, 23, 71, 14, 2, 33, 50, 8]
SLOTS = 5


def weights_of(checkpoint: Path, *, fuse: bool = True) -> DecoderWeights:
    with stoker_loader.open(checkpoint) as source:
        config = parse_config(read_json(checkpoint / "config.json"))
        dtype = source.tensor("model.norm.weight").dtype
        return bind(config, source, linear_for(dtype), fuse=fuse)


def engine_of(checkpoint: Path, *, fuse: bool = True) -> CausalLM:
    document = read_json(checkpoint / "config.json")
    return CausalLM(
        parse_config(document),
        weights_of(checkpoint, fuse=fuse),
        slots=SLOTS,
        context_tokens=128,
        eos_ids=eos_ids(document, {}),
    )


def prefilled(engine: CausalLM, slot: int, ids: list[int]) -> Tensor:
    logits = engine.prefill(slot, ids, 0, last=True)
    assert logits is not None
    return logits


def greedy(engine: CausalLM, slot: int, ids: list[int], count: int) -> list[int]:
    answer = [int(prefilled(engine, slot, ids).argmax())]
    while len(answer) < count:
        position = len(ids) + len(answer) - 1
        answer.append(int(engine.decode([slot], [answer[-1]], [position])[0].argmax()))
    return answer


def reference_answer(model: PreTrainedModel, ids: list[int], count: int) -> list[int]:
    model.generation_config.eos_token_id = None
    prompt = torch.tensor([ids])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return [int(token) for token in output[0, len(ids) :]]


def test_greedy_answers_are_those_of_transformers(
    family: str,
    checkpoint_of: Callable[[str], Path],
    reference_of: Callable[[str], PreTrainedModel],
) -> None:
    answer = greedy(engine_of(checkpoint_of(family)), 0, PROMPT, 40)
    assert answer == reference_answer(reference_of(family), PROMPT, 40)
    assert len(set(answer)) > 5, "an answer that repeats itself compares nothing"


@torch.inference_mode()
def test_logits_are_those_of_transformers(
    family: str,
    checkpoint_of: Callable[[str], Path],
    reference_of: Callable[[str], PreTrainedModel],
) -> None:
    expected = reference_of(family)(torch.tensor([PROMPT])).logits[0, -1]
    found = prefilled(engine_of(checkpoint_of(family)), 0, PROMPT)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 4, 7, len(PROMPT) - 1])
def test_a_prompt_in_chunks_is_the_same_prompt(
    family: str, chunk: int, checkpoint_of: Callable[[str], Path]
) -> None:
    engine = engine_of(checkpoint_of(family))
    whole = prefilled(engine, 0, PROMPT)
    for start in range(0, len(PROMPT), chunk):
        ids = PROMPT[start : start + chunk]
        logits = engine.prefill(1, ids, start, last=start + len(ids) == len(PROMPT))
    assert logits is not None
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slots", [(0, 1, 2), (1, 2, 4), (0, 4), (3,)])
def test_a_batch_of_unequal_lengths_is_its_members_alone(
    family: str, slots: tuple[int, ...], checkpoint_of: Callable[[str], Path]
) -> None:
    engine = engine_of(checkpoint_of(family))
    prompts = [PROMPT[: 3 + 4 * number] for number in range(len(slots))]
    alone = []
    for prompt in prompts:
        prefilled(engine, 0, prompt)
        alone.append(engine.decode([0], [11], [len(prompt)])[0])
    for slot, prompt in zip(slots, prompts, strict=True):
        prefilled(engine, slot, prompt)
    together = engine.decode(slots, [11] * len(slots), [len(prompt) for prompt in prompts])
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)


def test_a_slot_forgets_who_sat_there_before(
    family: str, checkpoint_of: Callable[[str], Path]
) -> None:
    engine = engine_of(checkpoint_of(family))
    fresh = greedy(engine, 1, PROMPT[:4], 6)
    greedy(engine, 0, PROMPT * 3, 20)
    assert greedy(engine, 0, PROMPT[:4], 6) == fresh


def test_neighbouring_parts_are_fused_without_a_copy(
    family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    aligned = tmp_path / "aligned"
    stoker_loader.layout(checkpoint_of(family), aligned)
    with stoker_loader.open(aligned) as source:
        config = parse_config(read_json(aligned / "config.json"))
        layer = bind(config, source, linear_for(torch.float32)).layers[1]
        first = source.tensor("model.layers.1.self_attn.q_proj.weight")
        gate = source.tensor("model.layers.1.mlp.gate_proj.weight")
    assert [weight.data_ptr() for weight in layer.qkv.weights] == [first.data_ptr()]
    assert [weight.data_ptr() for weight in layer.gate_up.weights] == [gate.data_ptr()]
    plain = greedy(engine_of(checkpoint_of(family)), 0, PROMPT, 12)
    assert greedy(engine_of(aligned), 0, PROMPT, 12) == plain
    assert greedy(engine_of(aligned, fuse=False), 0, PROMPT, 12) == plain


def test_tied_embeddings_are_one_tensor(checkpoint_of: Callable[[str], Path]) -> None:
    tied, free = weights_of(checkpoint_of("llama")), weights_of(checkpoint_of("llama3"))
    assert tied.head.weights[0] is tied.embedding
    assert free.head.weights[0].data_ptr() != free.embedding.data_ptr()
