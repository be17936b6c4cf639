"""The real model, in bfloat16: what a user sees is what Transformers would have said."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def real(smollm2: Path) -> tuple[TextEngine, TextTokenizer]:
    return engine_and_tokenizer(smollm2, EngineName.AUTO)


@pytest.fixture(scope="module")
def expected(smollm2: Path) -> dict[str, list[int]]:
    """Transformers' greedy answers."""
    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2)
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    answers = {}
    for question in QUESTIONS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True, return_tensors="pt", return_dict=True,
        )  # fmt: skip
        output = model.generate(**prompt, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        answers[question] = output[0].tolist()
    return answers


@pytest.fixture(scope="module", autouse=True)
def _two_threads() -> Any:
    """This model is large enough to gain by it."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_answers_are_those_of_transformers(
    question: str, real: Parts, expected: dict[str, list[int]], start: StartLoop
) -> None:
    assert real[0].name is EngineName.CAUSAL_LM
    running = await start(real)
    turn = (ChatMessage(role="user", content=question),)
    found = await running.answer(messages=turn, max_tokens=ANSWER_TOKENS)
    assert [*found.prompt_ids, *found.tokens] == expected[question]


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
