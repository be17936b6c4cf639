"""One generation: its tokens, its text, and when it ends. Knows neither engine nor thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stoker_runtime.contract import (
    DoneFrame,
    ErrorFrame,
    FinishReason,
    Frame,
    GenerateRequest,
    TokenFrame,
    TokenLogprob,
    WorkerError,
)
from stoker_runtime.detokenizer import Detokenizer
from stoker_runtime.errors import InvalidRequest
from stoker_runtime.generation.lifecycle import Event, State, advance
from stoker_runtime.generation.sampler import Choice, Sampler
from stoker_runtime.generation.stops import StopMatcher

Clock = Callable[[], float]
"""Seconds that only grow."""

Spell = Callable[[int], str]
"""One token as text, for lists of log probabilities."""


@dataclass(slots=True)
class Times:
    """When what happened, in the loop's seconds."""

    submitted_s: float
    seated_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a generation, apart from its stop strings."""

    eos_ids: frozenset[int]
    max_tokens: int  # generated in all, prefix included


class Generation:
    """Built from a request; a prefix is replayed, so that it goes on as if it had never stopped.

    Raises InvalidRequest for a prefix that goes on behind its own end.
    """

    def __init__(
        self,
        request: GenerateRequest,
        prompt_ids: Sequence[int],
        limits: Limits,
        detokenizer: Detokenizer,
        spell: Spell,
        now_s: float,
    ) -> None:
        self.request_id = request.request_id
        self.epoch = request.epoch
        self.prompt_tokens = len(prompt_ids)
        self.tokens = [*prompt_ids, *request.prefix_ids]  # all that the model has to read
        self.filled = 0  # of them, how many the slot holds
        self.slot: int | None = None
        self.state = State.WAITING
        self.cancelled = False  # set by the event loop, seen by the decode loop at its next step
        self.sampler = Sampler(request.sampling, prompt_ids, request.prefix_ids)
        self._limits = limits
        self._detokenizer = detokenizer
        self._stops = StopMatcher(request.sampling.stop)
        self._spell = spell
        self._times = Times(now_s)
        self._finish: FinishReason | None = None
        for number, token in enumerate(request.prefix_ids, start=1):
            if self.finished:
                raise InvalidRequest(
                    f"prefix_ids[{number - 2}] ended this generation, but more tokens follow it",
                    code="prefix_after_end",
                    param="prefix_ids",
                )
            self._read(token, number)

    @property
    def generated(self) -> int:
        """Tokens behind the prompt, prefix included."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def finished(self) -> bool:
        """Whether the tokens so far end it; true from the start for a complete prefix."""
        return self._finish is not None

    def seat(self, slot: int, now_s: float) -> None:
        """Takes a slot."""
        self.state = advance(self.state, Event.SEATED)
        self.slot = slot
        self._times.seated_s = now_s

    def fill(self, count: int) -> None:
        """Notes that the slot holds `count` more tokens."""
        self.filled += count
        if self.state is State.PREFILLING and self.filled == len(self.tokens):
            self.state = advance(self.state, Event.FILLED)

    def accept(self, choice: Choice, now_s: float) -> list[Frame]:
        """Adds a sampled token; the frames that it causes, the last one included if it ends."""
        assert self.state is State.DECODING, f"a token for a generation that is {self.state}"
        index = self.generated
        self.tokens.append(choice.token)
        self.sampler.note(choice.token)
        self._times.first_token_s = self._times.first_token_s or now_s
        self._times.last_token_s = now_s
        text = self._read(choice.token, index + 1)
        frames: list[Frame] = [self._token_frame(index, choice, text)]
        if self.finished:
            frames.append(self.finish())
        return frames

    def finish(self) -> DoneFrame:
        """The last frame, by its own tokens."""
        assert self._finish is not None
        return self._done(self._finish, self._flushed())

    def cancel(self) -> DoneFrame:
        """The last frame of a generation that its client left."""
        return self._done(FinishReason.CANCELLED, "")

    def fail(self, error: WorkerError) -> ErrorFrame:
        """The last frame of a generation that broke."""
        self.state = advance(self.state, Event.ENDS)
        return ErrorFrame(epoch=self.epoch, error=error)

    def _read(self, token: int, generated: int) -> str:
        """Takes in one generated token: its certain text, and whether it ends everything."""
        assert self._finish is None, "no token follows the last"
        if token in self._limits.eos_ids:
            self._finish = FinishReason.STOP
            return ""
        text = self._stops.push(self._detokenizer.push(token))
        if self._stops.matched:
            self._finish = FinishReason.STOP
        elif generated >= self._limits.max_tokens:
            self._finish = FinishReason.LENGTH
        return text

    def _flushed(self) -> str:
        """Held text that turned out to be text: the end of the answer."""
        if self._stops.matched:
            return ""
        return self._stops.push(self._detokenizer.flush()) + self._stops.flush()

    def _token_frame(self, index: int, choice: Choice, text: str) -> TokenFrame:
        return TokenFrame(
            epoch=self.epoch,
            index=index,
            token=choice.token,
            text=text,
            logprob=choice.logprob,
            top_logprobs=tuple(
                TokenLogprob(token=token, text=self._spell(token), logprob=logprob)
                for token, logprob in choice.alternatives
            ),
        )

    def _done(self, reason: FinishReason, text: str) -> DoneFrame:
        self.state = advance(self.state, Event.ENDS)
        t = self._times
        return DoneFrame(
            epoch=self.epoch,
            finish_reason=reason,
            text=text,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.generated,
            queue_ms=_span_ms(t.submitted_s, t.seated_s),
            prefill_ms=_span_ms(t.seated_s, t.first_token_s),
            decode_ms=_span_ms(t.first_token_s, t.last_token_s),
        )


def _span_ms(start_s: float | None, end_s: float | None) -> float:
    return 0.0 if start_s is None or end_s is None else (end_s - start_s) * 1000
