"""The running batch: who sits in which slot, and the steps of the decode loop."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterable

from torch import Tensor

from stoker_runtime.contract import Frame, WorkerError
from stoker_runtime.engines.base import TextEngine
from stoker_runtime.errors import EngineFailed
from stoker_runtime.generation.generation import Clock, Generation
from stoker_runtime.generation.lifecycle import State
from stoker_runtime.generation.sampler import Choice

LOG = logging.getLogger(__name__)

Emit = Callable[[Generation, Frame], None]


class Batch:
    """Generations in slots; one engine call at a time, all on the decode loop's thread."""

    def __init__(self, engine: TextEngine, prefill_tokens: int, emit: Emit, clock: Clock) -> None:
        self._engine = engine
        self._prefill_tokens = prefill_tokens
        self._emit = emit
        self._clock = clock
        self._seated: list[Generation] = []  # in the order of their coming
        self._free = list(range(engine.slots))  # a heap: low slots first keeps spans short

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def __len__(self) -> int:
        return len(self._seated)

    def seat(self, newcomers: Iterable[Generation]) -> None:
        """Gives each newcomer a slot."""
        for generation in newcomers:
            generation.seat(heapq.heappop(self._free), self._clock())
            self._seated.append(generation)

    def drop_cancelled(self) -> None:
        """Ends what clients have left."""
        for generation in [g for g in self._seated if g.cancelled]:
            self._leave(generation, generation.cancel())

    def prefill(self) -> None:
        """Reads prompts, oldest first, up to the bound; samples where one is complete."""
        budget = self._prefill_tokens
        for generation in [g for g in self._seated if g.state is State.PREFILLING]:
            if budget == 0:
                return
            assert generation.slot is not None
            start = generation.filled
            ids = generation.tokens[start : start + budget]
            last = start + len(ids) == len(generation.tokens)
            logits = self._engine.prefill(generation.slot, ids, start, last=last)
            generation.fill(len(ids))
            budget -= len(ids)
            if logits is not None:
                self._sample([generation], logits.unsqueeze(0))

    def decode(self) -> None:
        """One token for everyone whose prompt is read."""
        running = sorted(
            (g for g in self._seated if g.state is State.DECODING), key=lambda g: g.slot or 0
        )
        if not running:
            return
        logits = self._engine.decode(
            [g.slot for g in running if g.slot is not None],
            [g.tokens[-1] for g in running],
            [g.filled for g in running],
        )
        for generation in running:
            generation.fill(1)
        self._sample(running, logits)

    def fail(self, error: WorkerError) -> None:
        """Ends everyone with an error."""
        for generation in list(self._seated):
            self._leave(generation, generation.fail(error))

    def _sample(self, generations: list[Generation], logits: Tensor) -> None:
        """Chooses a token from each row; what breaks for one generation ends that one alone."""
        greedy = logits.argmax(-1).tolist() if any(g.sampler.greedy for g in generations) else []
        for row, generation in enumerate(generations):
            try:
                if generation.sampler.greedy:
                    choice = Choice(greedy[row])
                else:
                    choice = generation.sampler.choose(logits[row], len(generation.tokens))
                frames = generation.accept(choice, self._clock())
            except Exception:
                LOG.exception("generation %s broke", generation.request_id)
                broken = EngineFailed(
                    "this generation broke; the worker's log has the traceback",
                    code="generation_failed",
                )
                self._leave(generation, generation.fail(broken.error))
                continue
            for frame in frames[:-1] if generation.state is State.ENDED else frames:
                self._emit(generation, frame)
            if generation.state is State.ENDED:
                self._leave(generation, frames[-1])

    def _leave(self, generation: Generation, last: Frame) -> None:
        assert generation.slot is not None
        heapq.heappush(self._free, generation.slot)
        self._seated.remove(generation)
        self._emit(generation, last)
