"""What every text engine must do behind the decode loop."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from stoker_runtime.contract import FinishReason, PromptFrame, TokenFrame

from .conftest import EOS, PREFILL_CHUNK, SLOTS, Parts, StartLoop, answer, request

PROMPTS = ["Hello", "a", "One prompt that is a good deal longer than the chunk", "1 + 1 ="]
SAMPLED: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 0.95,
    "seed": 42,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.2,
}


async def test_greedy_answers_are_those_of_transformers(
    both: Parts, start: StartLoop, checkpoint: Path
) -> None:
    running = await start(both)
    model = LlamaForCausalLM.from_pretrained(checkpoint)
    for prompt in PROMPTS:
        found = await running.answer(prompt, max_tokens=30)
        ids = torch.tensor([found.prompt_ids])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=30,
            do_sample=False,
            pad_token_id=0,
        )
        assert found.tokens == expected[0, ids.shape[1] :].tolist()


async def test_it_goes_on_from_any_prefix_as_if_it_had_never_stopped(
    both: Parts, start: StartLoop
) -> None:
    running = await start(both)
    for options in ({}, SAMPLED):
        whole = await running.answer(**options)
        for split in range(len(whole.tokens) + 1):
            prefix = tuple(whole.tokens[:split])
            rest = await running.answer(prefix_ids=prefix, epoch=3, **options)
            sent = "".join(frame.text for frame in whole.token_frames[:split])
            assert rest.tokens == whole.tokens[split:]
            assert sent + rest.text == whole.text
            assert [frame.index for frame in rest.token_frames] == list(
                range(split, len(whole.tokens))
            )
            assert {frame.epoch for frame in rest.frames} == {3}
            assert rest.done.finish_reason is whole.done.finish_reason
            assert rest.done.completion_tokens == whole.done.completion_tokens


async def test_a_seed_gives_the_same_tokens_in_any_batch(both: Parts, start: StartLoop) -> None:
    running = await start(both)
    alone = await running.answer(**SAMPLED)
    assert alone.tokens != (await running.answer(**SAMPLED | {"seed": 43})).tokens
    crowd = [running.answer(prompt, temperature=1.0, seed=n) for n, prompt in enumerate(PROMPTS)]
    async with asyncio.TaskGroup() as group:
        for neighbour in crowd:
            group.create_task(neighbour)
        among = group.create_task(running.answer(**SAMPLED))
    assert among.result().tokens == alone.tokens


async def test_requests_join_and_leave_a_running_batch(both: Parts, start: StartLoop) -> None:
    running = await start(both)
    lengths = [3, 25, 9, 14, 1, 30, 6]
    alone = [
        await running.answer(f"{n} {'x' * n}", max_tokens=length)
        for n, length in enumerate(lengths)
    ]
    running.engine.calls.clear()
    async with asyncio.TaskGroup() as group:
        together = [
            group.create_task(running.answer(f"{n} {'x' * n}", max_tokens=length))
            for n, length in enumerate(lengths)
        ]
    assert [task.result().tokens for task in together] == [one.tokens for one in alone]
    widths = {len(slots) for kind, slots, _ in running.engine.calls if kind == "decode"}
    assert max(widths) == SLOTS
    assert len(widths) > 1


async def test_chunks_of_a_prompt_do_not_change_the_answer(both: Parts, start: StartLoop) -> None:
    running = await start(both)
    long = "z" * (4 * PREFILL_CHUNK + 3)
    found = await running.answer(long, max_tokens=8)
    chunks = [count for kind, _, count in running.engine.calls if kind == "prefill"]
    assert chunks == [PREFILL_CHUNK] * 4 + [3]
    ids = found.prompt_ids
    whole = both[0].prefill(0, ids, 0, last=True)
    assert whole is not None
    assert found.tokens[0] == int(whole.argmax())


async def test_a_long_prompt_does_not_stall_its_neighbour(both: Parts, start: StartLoop) -> None:
    running = await start(both)
    stream = running.loop.stream(request("Hello", max_tokens=60, ignore_eos=True))
    async with aclosing(stream):
        seen = 0
        async for frame in stream:
            seen += isinstance(frame, TokenFrame)
            if seen == 2:
                break
        await running.answer("y" * (4 * PREFILL_CHUNK), max_tokens=1)
    calls = running.engine.calls
    newcomer = [at for at, call in enumerate(calls) if call[:2] == ("prefill", (1,))]
    assert len(newcomer) == 4
    for before, after in pairwise(newcomer):
        assert [kind for kind, _, _ in calls[before + 1 : after]] == ["decode"]


async def test_leaving_ends_a_generation_within_a_token(both: Parts, start: StartLoop) -> None:
    running = await start(both)
    reached, left = threading.Event(), threading.Event()

    def hold(step: int) -> None:
        if step == 3:
            reached.set()
            assert left.wait(30)

    running.engine.before_decode = hold
    stream = running.loop.stream(request("Hello", max_tokens=60, ignore_eos=True))
    async with aclosing(stream):
        assert isinstance(await anext(stream), PromptFrame)
        assert await asyncio.to_thread(reached.wait, 30)
    left.set()
    after = await running.answer("b", max_tokens=2, ignore_eos=True)
    assert len(after.tokens) == 2
    # The step that was under way ends; then the slot is free and the newcomer has it.
    kinds = [(kind, slots) for kind, slots, _ in running.engine.calls]
    assert kinds[:6] == [
        ("prefill", (0,)), *[("decode", (0,))] * 4, ("prefill", (0,)),
    ]  # fmt: skip


async def test_leaving_between_chunks_ends_a_prefill(both: Parts, start: StartLoop) -> None:
    running = await start(both)
    reached, left = threading.Event(), threading.Event()

    def hold(step: int) -> None:
        if step == 2:  # the newcomer's first chunk has been read by now
            reached.set()
            assert left.wait(30)

    companion = asyncio.create_task(running.answer("Hello", max_tokens=6, ignore_eos=True))
    running.engine.before_decode = hold
    stream = running.loop.stream(request("y" * 80, max_tokens=1))
    async with aclosing(stream):
        await anext(stream)
        assert await asyncio.to_thread(reached.wait, 30)
    left.set()
    assert len((await companion).tokens) == 6
    read = sum(n for kind, slots, n in running.engine.calls if (kind, slots) == ("prefill", (1,)))
    assert read < 80


async def test_the_end_token_ends_an_answer_unless_told_otherwise(
    both: Parts, start: StartLoop
) -> None:
    running = await start(both)
    found = None
    for seed in range(200):
        found = await running.answer(temperature=2.0, seed=seed, max_tokens=40)
        if found.done.finish_reason is FinishReason.STOP:
            break
    assert found is not None
    assert found.tokens[-1] == EOS
    assert found.token_frames[-1].text == ""
    again = await running.answer(temperature=2.0, seed=seed, max_tokens=40, ignore_eos=True)
    assert again.done.finish_reason is FinishReason.LENGTH
    assert again.tokens[: len(found.tokens)] == found.tokens


async def test_frames_come_in_order_and_agree(both: Parts, start: StartLoop) -> None:
    running = await start(both)
    found = await answer(running.loop, request("Hello", max_tokens=7, ignore_eos=True))
    assert found.prompt_ids == tuple(b"Hello")
    assert [frame.index for frame in found.token_frames] == list(range(7))
    done = found.done
    assert (done.prompt_tokens, done.completion_tokens) == (5, 7)
    assert done.finish_reason is FinishReason.LENGTH
    assert found.text == both[1].decode(found.tokens)
