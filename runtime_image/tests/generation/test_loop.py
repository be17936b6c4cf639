"""What the decode loop refuses, survives and leaves behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from stoker_runtime.contract import ChatMessage, ErrorFrame, FinishReason, TokenFrame
from stoker_runtime.detokenizer import Detokenizer
from stoker_runtime.errors import EngineFailed, InvalidRequest, Overloaded, RuntimeFault
from stoker_runtime.generation import Bounds

from .conftest import CONTEXT_TOKENS, PREFILL_CHUNK, SLOTS, Parts, StartLoop, answer, request


async def refusal(running: Any, prompt: Any = "Hello", **fields: Any) -> RuntimeFault:
    with pytest.raises(RuntimeFault) as caught:
        await running.answer(prompt, **fields)
    return caught.value


async def test_a_prompt_beyond_the_context_is_refused_with_all_lengths(
    lean: Parts, start: StartLoop
) -> None:
    running = await start(lean)
    fault = await refusal(running, "x" * 90, max_tokens=7)
    assert isinstance(fault, InvalidRequest)
    assert fault.error.code == "context_length_exceeded"
    assert fault.error.details == {
        "prompt_tokens": 90,
        "prefix_tokens": 0,
        "context_tokens": CONTEXT_TOKENS,
        "max_tokens": 7,
    }
    assert "90" in fault.error.message
    assert str(CONTEXT_TOKENS) in fault.error.message
    assert (await refusal(running, "x" * 96, max_tokens=None)).error.param == "messages"
    fits = await running.answer("x" * 90, max_tokens=6, ignore_eos=True)
    assert len(fits.tokens) == 6
    rest = await running.answer("x" * 90, max_tokens=None, ignore_eos=True)
    assert len(rest.tokens) == 6, "without a bound an answer fills the context"


@pytest.mark.parametrize(
    ("prompt", "fields", "code", "param"),
    [
        ("", {}, "empty_prompt", "prompt"),
        ([], {}, "empty_prompt", "prompt"),
        ([3, 258], {}, "invalid_token", "prompt_ids"),
        ([-1], {}, "invalid_token", "prompt_ids"),
        ("a", {"prefix_ids": (999,)}, "invalid_token", "prefix_ids"),
        ("a", {"prefix_ids": (256, 5)}, "prefix_after_end", "prefix_ids"),
        ("a", {"stop": ("",)}, "invalid_sampling", "stop"),
        ("a", {"stop": ("x" * 2000,)}, "invalid_sampling", "stop"),
    ],
)
async def test_bad_requests_are_refused_before_the_first_frame(
    prompt: Any, fields: dict[str, Any], code: str, param: str, lean: Parts, start: StartLoop
) -> None:
    running = await start(lean)
    fault = await refusal(running, prompt, **fields)
    assert (fault.error.code, fault.error.param) == (code, param)
    assert running.engine.calls == []


async def test_messages_go_through_the_chat_template(lean: Parts, start: StartLoop) -> None:
    running = await start(lean)
    turns = (ChatMessage(role="user", content="Hi"), ChatMessage(role="user", content="you"))
    found = await running.answer(messages=turns, max_tokens=1)
    assert found.prompt_ids == (257, *b"Hi", 257, *b"you")


async def test_a_complete_prefix_is_only_finished(lean: Parts, start: StartLoop) -> None:
    running = await start(lean)
    whole = await running.answer(max_tokens=5, ignore_eos=True)
    running.engine.calls.clear()
    rest = await running.answer(max_tokens=5, ignore_eos=True, prefix_ids=tuple(whole.tokens))
    assert rest.done.finish_reason is FinishReason.LENGTH
    assert "".join(frame.text for frame in whole.token_frames) + rest.text == whole.text
    ended = await running.answer(prefix_ids=(65, 256))
    assert ended.done.finish_reason is FinishReason.STOP
    assert running.engine.calls == []


async def test_a_stop_string_ends_the_answer_before_itself(lean: Parts, start: StartLoop) -> None:
    running = await start(lean)
    whole = await running.answer(max_tokens=30, ignore_eos=True)
    stop = whole.text[4:7]
    cut = whole.text.index(stop)
    found = await running.answer(max_tokens=30, ignore_eos=True, stop=(stop,))
    assert found.text == whole.text[:cut]
    assert found.done.finish_reason is FinishReason.STOP
    assert len(found.tokens) < 30
    for split in range(len(found.tokens)):
        rest = await running.answer(
            max_tokens=30, ignore_eos=True, stop=(stop,), prefix_ids=tuple(found.tokens[:split])
        )
        assert "".join(f.text for f in found.token_frames[:split]) + rest.text == found.text


async def test_logprobs_come_with_their_tokens(lean: Parts, start: StartLoop) -> None:
    running = await start(lean)
    plain = await running.answer(max_tokens=5)
    found = await running.answer(max_tokens=5, logprobs=3)
    assert found.tokens == plain.tokens
    for frame in found.token_frames:
        assert len(frame.top_logprobs) == 3
        assert frame.top_logprobs[0].token == frame.token
        assert frame.top_logprobs[0].logprob == pytest.approx(frame.logprob)
        assert frame.top_logprobs[0].text == lean[1].spell(frame.token)
    assert plain.token_frames[0].logprob is None


async def test_a_full_queue_refuses_and_a_client_that_leaves_it_makes_room(
    lean: Parts, start: StartLoop
) -> None:
    running = await start(lean, Bounds(prefill_chunk_tokens=PREFILL_CHUNK, max_waiting=1))
    reached, go_on = threading.Event(), threading.Event()

    def hold(step: int) -> None:
        if step == 0:
            reached.set()
            assert go_on.wait(30)

    running.engine.before_decode = hold
    first = asyncio.create_task(running.answer(max_tokens=3, ignore_eos=True))
    assert await asyncio.to_thread(reached.wait, 30)
    waiting = running.loop.stream(request("b"))
    await anext(waiting)
    fault = await refusal(running, "c")
    assert isinstance(fault, Overloaded)
    assert fault.error.code == "queue_full"
    await waiting.aclose()
    third = running.loop.stream(request("d", max_tokens=1))
    async with aclosing(third):
        await anext(third)
        go_on.set()
        assert isinstance(await anext(third), TokenFrame)
    assert len((await first).tokens) == 3


async def test_an_engine_that_breaks_ends_everything_and_says_so(
    lean: Parts, start: StartLoop
) -> None:
    running = await start(lean)

    def fail_at(step: int) -> None:
        if step == 2:
            raise RuntimeError("no more memory")

    running.engine.before_decode = fail_at
    asked = [running.answer(str(n), ignore_eos=True) for n in range(SLOTS + 2)]
    answers = await asyncio.gather(*asked)
    assert {one.error.error.code for one in answers} == {"engine_failed"}
    assert running.loop.fault is not None
    assert isinstance(await refusal(running), EngineFailed)


@dataclass(frozen=True, slots=True)
class TornDetokenizer:
    """Breaks at its third token."""

    pushed: Iterator[int] = field(default_factory=lambda: count(1))

    def push(self, token: int) -> str:
        if next(self.pushed) == 3:
            raise ValueError("torn")
        return "."

    def flush(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class TornOnce:
    """A real tokenizer whose first detokenizer is torn."""

    whole: Any
    made: Iterator[int] = field(default_factory=count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def detokenizer(self) -> Detokenizer:
        return TornDetokenizer() if next(self.made) == 0 else self.whole.detokenizer()


async def test_a_generation_that_breaks_leaves_its_neighbours_alone(
    lean: Parts, start: StartLoop
) -> None:
    whole = await start(lean)
    expected = await whole.answer("b", ignore_eos=True)
    running = await start((lean[0], TornOnce(lean[1])))
    torn, sound = await asyncio.gather(
        running.answer("a", ignore_eos=True), running.answer("b", ignore_eos=True)
    )
    assert torn.error.error.code == "generation_failed"
    assert len(torn.tokens) == 2
    assert sound.frames[1:-1] == expected.frames[1:-1]
    assert running.loop.fault is None


async def test_closing_lets_answers_finish_within_the_deadline(
    lean: Parts, start: StartLoop
) -> None:
    running = await start(lean)
    stream = running.loop.stream(request("a", max_tokens=40, ignore_eos=True))
    await anext(stream)
    closing = asyncio.create_task(running.loop.close(60))
    frames = [frame async for frame in stream]
    assert frames[-1].kind == "done"
    await closing
    late = await refusal(running)
    assert late.error.code == "shutting_down"


async def test_closing_ends_answers_after_the_deadline(lean: Parts, start: StartLoop) -> None:
    running = await start(lean)
    reached, go_on = threading.Event(), threading.Event()

    def hold(step: int) -> None:
        if step == 1:
            reached.set()
            assert go_on.wait(30)

    running.engine.before_decode = hold
    task = asyncio.create_task(answer(running.loop, request("a", max_tokens=60, ignore_eos=True)))
    assert await asyncio.to_thread(reached.wait, 30)
    closing = asyncio.create_task(running.loop.close(0))
    done, _ = await asyncio.wait([closing], timeout=0)
    assert not done, "it waits for the step that is under way"
    go_on.set()
    await closing
    last = (await task).frames[-1]
    assert isinstance(last, ErrorFrame)
    assert last.error.code == "shutting_down"


async def test_times_are_those_of_the_clock(lean: Parts, start: StartLoop) -> None:
    ticks = count()
    running = await start(lean, clock=lambda: next(ticks) / 1000)
    done = (await running.answer(max_tokens=4, ignore_eos=True)).done
    # One reading when submitted, one when seated, one for each token.
    assert done.queue_ms == pytest.approx(1)
    assert done.prefill_ms == pytest.approx(1)
    assert done.decode_ms == pytest.approx(3)
