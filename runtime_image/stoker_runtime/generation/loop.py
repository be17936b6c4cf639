"""The decode loop: one thread, one batch, requests join and leave at token boundaries."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator

from stoker_runtime.contract import (
    EngineName,
    Frame,
    GenerateRequest,
    PromptFrame,
    WorkerError,
)
from stoker_runtime.engines.base import TextEngine
from stoker_runtime.errors import EngineFailed, Overloaded
from stoker_runtime.generation.batch import Batch
from stoker_runtime.generation.bounds import Bounds
from stoker_runtime.generation.checks import answer_tokens, check_ids, check_stops
from stoker_runtime.generation.generation import Clock, Generation, Limits
from stoker_runtime.generation.mailbox import Mailbox, Post, is_last
from stoker_runtime.generation.waiting import WaitingRoom
from stoker_runtime.tokenizer import TextTokenizer

LOG = logging.getLogger(__name__)


class GenerationLoop:
    """Generates text for many streams with one engine, which it owns.

    `stream` and `close` belong to the event loop that called `start`; the engine is only ever
    called from the loop's own thread.
    """

    def __init__(
        self,
        engine: TextEngine,
        tokenizer: TextTokenizer,
        bounds: Bounds,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._bounds = bounds
        self._clock = clock
        self._waiting = WaitingRoom(bounds.max_waiting)
        self._mailboxes: dict[Generation, Mailbox] = {}
        self._fault: WorkerError | None = None
        self._abandon = False  # set by close() when the deadline has passed
        self._stopped = asyncio.Event()
        self._post: Post | None = None
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> EngineName:
        return self._engine.name

    @property
    def context_tokens(self) -> int:
        """Tokens, prompt and answer together, that one generation can have."""
        return self._engine.context_tokens

    @property
    def slots(self) -> int:
        """Generations that run at once; more wait."""
        return self._engine.slots

    @property
    def fault(self) -> WorkerError | None:
        """Why this loop is broken for good, or None while it works."""
        return self._fault

    def start(self) -> None:
        """Starts the thread; called once, from the event loop that will stream."""
        assert self._thread is None, "a loop starts once"
        self._post = Post(asyncio.get_running_loop())
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Frame, None]:
        """One generation's frames. Closing the iterator cancels it at its next token.

        Raises, before the first frame:
            InvalidRequest: the request can never be served by this model.
            Overloaded: too many wait already, or the worker is shutting down.
            EngineFailed: the engine broke before.
        """
        submitted_s = self._clock()
        prompt_ids = await self._prompt_ids(request)
        generation = self._generation(request, prompt_ids, submitted_s)
        prompt = PromptFrame(epoch=request.epoch, prompt_ids=tuple(prompt_ids))
        if generation.finished:
            yield prompt
            yield generation.finish()
            return
        mailbox = self._submit(generation)
        try:
            yield prompt
            while True:
                frame = await mailbox.get()
                yield frame
                if is_last(frame):
                    return
        finally:
            self._cancel(generation)

    async def close(self, deadline_s: float = 0.0) -> None:
        """Refuses newcomers, lets the others finish until the deadline, then ends them.

        The engine is closed when this returns.
        """
        self._waiting.close()
        if self._thread is None:
            self._engine.close()
            return
        try:
            await asyncio.wait_for(self._stopped.wait(), deadline_s)
        except TimeoutError:
            self._abandon = True
            await self._stopped.wait()
        self._thread.join()

    async def _prompt_ids(self, request: GenerateRequest) -> list[int]:
        """Tokens of the prompt; text is encoded beside the event loop, as it may be long."""
        if request.prompt_ids is not None:
            check_ids(request.prompt_ids, self._engine.vocab_size, "prompt_ids")
            return list(request.prompt_ids)
        if request.messages is not None:
            return await asyncio.to_thread(self._tokenizer.encode_chat, request.messages)
        assert request.prompt is not None, "the contract asks for exactly one prompt"
        return await asyncio.to_thread(self._tokenizer.encode, request.prompt)

    def _generation(
        self, request: GenerateRequest, prompt_ids: list[int], submitted_s: float
    ) -> Generation:
        sampling, engine = request.sampling, self._engine
        check_stops(sampling, self._bounds)
        check_ids(request.prefix_ids, engine.vocab_size, "prefix_ids")
        max_tokens = answer_tokens(
            len(prompt_ids), len(request.prefix_ids), sampling.max_tokens, engine.context_tokens
        )
        limits = Limits(frozenset() if sampling.ignore_eos else engine.eos_ids, max_tokens)
        tokenizer = self._tokenizer
        return Generation(
            request,
            prompt_ids,
            limits,
            tokenizer.detokenizer(),
            tokenizer.spell,
            submitted_s,
        )

    def _submit(self, generation: Generation) -> Mailbox:
        mailbox: Mailbox = asyncio.Queue(2 * self._engine.context_tokens)
        self._mailboxes[generation] = mailbox
        try:
            self._waiting.submit(generation)
        except Overloaded as error:
            del self._mailboxes[generation]
            if self._fault is not None:
                raise EngineFailed(self._fault.message) from error
            raise
        return mailbox

    def _cancel(self, generation: Generation) -> None:
        generation.cancelled = True
        self._waiting.leave(generation)
        del self._mailboxes[generation]

    # --- on the loop's own thread ---------------------------------------------------------

    def _run(self) -> None:
        assert self._post is not None
        batch = Batch(self._engine, self._bounds.prefill_chunk_tokens, self._emit, self._clock)
        try:
            self._work(batch, self._post)
        except Exception:
            LOG.exception("the engine broke")
            self._fault = EngineFailed("the engine broke; the worker's log has the traceback").error
        self._end(batch, self._post)

    def _work(self, batch: Batch, post: Post) -> None:
        while not self._abandon and (len(batch) or self._waiting.wait()):
            batch.drop_cancelled()
            batch.seat(self._waiting.take(batch.free_slots))
            batch.prefill()
            post.send()
            batch.decode()
            post.send()

    def _end(self, batch: Batch, post: Post) -> None:
        """Whoever is still here gets a last frame; then the engine is let go."""
        self._waiting.close()
        leaving = Overloaded("this instance is shutting down", code="shutting_down").error
        error = self._fault or leaving
        batch.fail(error)
        for generation in self._waiting.take(self._bounds.max_waiting):
            self._emit(generation, generation.fail(error))
        post.send()
        self._engine.close()
        post.finish(self._stopped)

    def _emit(self, generation: Generation, frame: Frame) -> None:
        mailbox = self._mailboxes.get(generation)
        if mailbox is not None and self._post is not None:
            self._post.put(mailbox, frame)
