"""The real model, in bfloat16: what a user sees is what Transformers would have said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stoker_runtime.contract import ChatMessage, EngineName, FinishReason
from stoker_runtime.engines.base import TextEngine
from stoker_runtime.tokenizer import TextTokenizer

from .conftest import Parts, StartLoop, engine_and_tokenizer

pytestmark = pytest.mark.model

QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Count from one to ten in Spanish.",
    "Explain photosynthesis to a child in two sentences.",
]
ANSWER_TOKENS = 32
NOISE = 0.5  # what bfloat16 moves a logit of 16 to 32 by, here and in Transformers


@pytest.fixture(scope="module")
def real(smollm2: Path) -> tuple[TextEngine, TextTokenizer]:
    return engine_and_tokenizer(smollm2, EngineName.AUTO)


@dataclass(frozen=True, slots=True)
class Reference:
    """Transformers' greedy answer, and how far its choice lay above the next best token."""

    prompt_ids: list[int]
    tokens: list[int]
    leads: list[float]


@pytest.fixture(scope="module")
def references(smollm2: Path) -> dict[str, Reference]:
    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2)
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    return {question: _reference(tokenizer, model, question) for question in QUESTIONS}


def _reference(tokenizer: Any, model: Any, question: str) -> Reference:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    output = model.generate(
        **prompt, max_new_tokens=ANSWER_TOKENS, do_sample=False,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    best = torch.stack([row[0].float() for row in output.logits]).topk(2).values
    count = prompt["input_ids"].shape[1]
    ids = output.sequences[0].tolist()
    return Reference(ids[:count], ids[count:], (best[:, 0] - best[:, 1]).tolist())


@pytest.fixture(scope="module", autouse=True)
def _two_threads() -> Any:
    """This model is large enough to gain by it."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_choice_is_that_of_transformers_wherever_it_is_decided(
    question: str, real: Parts, references: dict[str, Reference]
) -> None:
    """Along the same tokens: two bfloat16 computations may rank near ties differently."""
    engine, reference = real[0], references[question]
    assert engine.name is EngineName.CAUSAL_LM
    ids = reference.prompt_ids
    row = engine.prefill(0, ids, 0, last=True)
    assert row is not None
    decided = 0
    for number, (token, lead) in enumerate(zip(reference.tokens, reference.leads, strict=True)):
        if lead > NOISE:
            decided += 1
            assert int(row.argmax()) == token, f"token {number}, decided by {lead}"
        else:
            assert float(row.max() - row[token]) < NOISE, f"token {number}"
        row = engine.decode([0], [token], [len(ids) + number])[0]
    assert decided > len(reference.tokens) / 2


async def test_an_answer_is_that_of_transformers(
    real: Parts, references: dict[str, Reference], start: StartLoop
) -> None:
    running = await start(real)
    turn = (ChatMessage(role="user", content=QUESTIONS[0]),)
    found = await running.answer(messages=turn, max_tokens=ANSWER_TOKENS)
    assert list(found.prompt_ids) == references[QUESTIONS[0]].prompt_ids
    assert found.tokens == references[QUESTIONS[0]].tokens


async def test_it_goes_on_from_a_prefix(real: Parts, start: StartLoop) -> None:
    running = await start(real)
    turn = (ChatMessage(role="user", content=QUESTIONS[0]),)
    whole = await running.answer(messages=turn, max_tokens=ANSWER_TOKENS)
    assert whole.text == "The capital of France is Paris."
    assert whole.done.finish_reason is FinishReason.STOP
    for split in range(len(whole.tokens)):
        prefix = tuple(whole.tokens[:split])
        rest = await running.answer(messages=turn, max_tokens=ANSWER_TOKENS, prefix_ids=prefix)
        sent = "".join(frame.text for frame in whole.token_frames[:split])
        assert sent + rest.text == whole.text
