"""What chat and plain completions share: sampling, tokens to chunks, usage, the last chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from stoker.domain import Revision
from stoker.errors import Unavailable
from stoker.gateway.call import Call
from stoker.gateway.events import DONE, Emit, event
from stoker.gateway.exchange import Generate
from stoker.gateway.invoke import Invoker
from stoker.gateway.schema import TextRequest
from stoker.gateway.timelines import startup_of
from stoker_runtime.contract import (
    DoneFrame,
    FinishReason,
    Frame,
    GenerateRequest,
    Sampling,
    TokenFrame,
)

SEED_MODULUS = 2**64  # the contract's seeds are unsigned, OpenAI's are signed

Json = dict[str, Any]
DrawSeed = Callable[[], int]


class Dialect(Protocol):
    """How one API names the parts of an answer. A choice is what stands in `choices[0]`."""

    id_prefix: ClassVar[str]
    chunk_object: ClassVar[str]
    whole_object: ClassVar[str]

    def opening(self) -> Json | None:
        """The choice of a stream's first chunk, if it says anything before the first token."""
        ...

    def token(self, frame: TokenFrame) -> Json | None:
        """The choice of one token's chunk; None when it has nothing to show yet."""
        ...

    def closing(self, text: str, finish_reason: str) -> Json:
        """The choice of the chunk that says why the answer ended; `text` was held back."""
        ...

    def whole(self, text: str, tokens: list[TokenFrame], finish_reason: str) -> Json:
        """The choice of an answer in one piece."""
        ...


def sampling_of(
    request: TextRequest, *, max_tokens: int | None, logprobs: int | None, draw_seed: DrawSeed
) -> Sampling:
    """How the runtime is to choose tokens; a seed is drawn where the client gives none, so that
    the generation can be continued elsewhere with the same randomness."""
    given: Json = {
        name: value for name in _SAMPLING_FIELDS if (value := getattr(request, name)) is not None
    }
    seed = draw_seed() if request.seed is None else request.seed % SEED_MODULUS
    return Sampling(
        **given,
        seed=seed,
        stop=request.stop_strings,
        max_tokens=max_tokens,
        logprobs=logprobs,
    )


_SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_eos",
)

_GENERATION_FIELDS = ("queue_ms", "prefill_ms", "decode_ms")


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """One text request on its way: which words the answer uses, and who gets it."""

    invoker: Invoker
    call: Call
    revision: Revision
    request: GenerateRequest
    dialect: Dialect
    model: str
    created: int  # Unix seconds
    include_usage: bool
    timeout_s: float | None

    async def stream(self, emit: Emit) -> None:
        """Emits one piece of bytes for each batch of frames that arrived together."""
        exchange = Generate(self.request)
        opening = self.dialect.opening()
        async with self.invoker.answer(
            self.call, self.revision, exchange, self.timeout_s
        ) as answer:
            async for batch in answer:
                events = [] if opening is None else [self._chunk(opening)]
                opening = None
                for frame in batch:
                    if events and isinstance(frame, DoneFrame):
                        # No token waits for what is said about the whole answer.
                        await emit(b"".join(events))
                        events = []
                    events += self._events(frame, exchange)
                if events:
                    await emit(b"".join(events))

    async def collect(self) -> Json:
        """The answer in one piece."""
        exchange = Generate(self.request)
        tokens: list[TokenFrame] = []
        done: DoneFrame | None = None
        async with self.invoker.answer(
            self.call, self.revision, exchange, self.timeout_s
        ) as answer:
            async for batch in answer:
                for frame in batch:
                    if isinstance(frame, TokenFrame) and exchange.generation.append(frame):
                        tokens.append(frame)
                    elif isinstance(frame, DoneFrame):
                        done = frame
        assert done is not None, "a reply ends with its last frame or raises"
        reason = self._finished(done)
        text = exchange.generation.text + done.text
        return {
            **self._envelope(self.dialect.whole_object),
            "choices": [self.dialect.whole(text, tokens, reason)],
            "usage": _usage(done),
            **self._explained(done),
        }

    def _events(self, frame: Frame, exchange: Generate) -> list[bytes]:
        if isinstance(frame, TokenFrame):
            choice = self.dialect.token(frame) if exchange.generation.append(frame) else None
            return [] if choice is None else [self._chunk(choice)]
        if isinstance(frame, DoneFrame):
            closing = self.dialect.closing(frame.text, self._finished(frame))
            # Many clients read choices[0] of every chunk unless they asked for usage: only then
            # may the chunk that explains the answer come without a choice.
            if not self.include_usage:
                return [self._chunk(closing, **self._explained(frame)), DONE]
            last = {
                **self._envelope(self.dialect.chunk_object),
                "choices": [],
                "usage": _usage(frame),
                **self._explained(frame),
            }
            return [self._chunk(closing), event(last), DONE]
        return []

    def _chunk(self, choice: Json, **extra: Any) -> bytes:
        usage = {"usage": None} if self.include_usage else {}
        return event(
            {
                **self._envelope(self.dialect.chunk_object),
                "choices": [choice],
                **usage,
                **extra,
            }
        )

    def _envelope(self, kind: str) -> Json:
        return {
            "id": f"{self.dialect.id_prefix}{self.call.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.revision.id,
        }

    def _explained(self, frame: DoneFrame) -> Json:
        """Where the time went: up to the first token as the gateway saw it, and by the
        instance's own clock."""
        assert self.call.timeline is not None, "an answer that began has a timeline"
        generation = {name: getattr(frame, name) for name in _GENERATION_FIELDS}
        return {"stoker": {"startup": startup_of(self.call.timeline), "generation": generation}}

    def _finished(self, frame: DoneFrame) -> str:
        self.invoker.metrics.tokens(
            self.revision.function,
            prompt=frame.prompt_tokens,
            completion=frame.completion_tokens,
        )
        if frame.finish_reason is FinishReason.CANCELLED:
            raise Unavailable("the instance was stopped before the answer was complete")
        return frame.finish_reason.value


def _usage(frame: DoneFrame) -> Json:
    return {
        "prompt_tokens": frame.prompt_tokens,
        "completion_tokens": frame.completion_tokens,
        "total_tokens": frame.prompt_tokens + frame.completion_tokens,
    }


def token_text(frame: TokenFrame) -> str:
    """The token's own text where the alternatives name it, else what became certain with it."""
    return next((one.text for one in frame.top_logprobs if one.token == frame.token), frame.text)
