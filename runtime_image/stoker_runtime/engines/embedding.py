"""Engine `embedding`: texts to unit vectors behind `/embed`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

import stoker_loader
from stoker_runtime.contract import EmbedRequest, EngineName
from stoker_runtime.engines.embedding_batches import padded, plan, pool, unit
from stoker_runtime.engines.embedding_bert import BertEncoder
from stoker_runtime.engines.embedding_config import (
    EmbeddingConfig,
    read_embedding_config,
    read_encoder_shape,
)
from stoker_runtime.engines.embedding_encoder import Encoder, TransformersEncoder
from stoker_runtime.errors import CheckpointRejected, InvalidRequest, Overloaded

LEAN_ARCHITECTURES = frozenset({"BertModel", "BertForMaskedLM"})
MAX_INPUTS = 2048  # of one request, as in OpenAI's interface
MAX_REQUESTS = 256  # under way or waiting for the one thread that computes


@dataclass(frozen=True, slots=True)
class Embedded:
    """Unit vectors `[inputs, dimensions]` float32, in the inputs' order."""

    vectors: NDArray[np.float32]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class OpenedEncoder:
    """A checkpoint's parts; `stats` is None where Transformers did the reading."""

    config: EmbeddingConfig
    encoder: Encoder
    tokenizer: Tokenizer
    stats: stoker_loader.LoadStats | None


def open_encoder(checkpoint: Path) -> OpenedEncoder:
    """Reads a checkpoint; the lean encoder's weights are views of the page cache.

    Raises:
        CheckpointRejected: a file is missing, damaged, or describes what is not served.
    """
    config = read_embedding_config(checkpoint)
    tokenizer = _open_tokenizer(checkpoint / "tokenizer.json")
    if config.architecture not in LEAN_ARCHITECTURES:
        return OpenedEncoder(config, TransformersEncoder(checkpoint), tokenizer, None)
    shape = read_encoder_shape(checkpoint)
    try:
        with stoker_loader.open(checkpoint) as weights:
            tensors = weights.load()
            stats = weights.stats
    except stoker_loader.LoaderError as error:
        raise CheckpointRejected(str(error), code=error.code) from error
    return OpenedEncoder(config, BertEncoder(shape, tensors), tokenizer, stats)


class EmbeddingEngine:
    """One loaded encoder; requests are computed one after the other, batched inside."""

    name = EngineName.EMBEDDING

    def __init__(self, opened: OpenedEncoder, max_model_len: int | None) -> None:
        self._encoder = opened.encoder
        self._pooling = opened.config.pooling
        self._lower_case = opened.config.lower_case
        bounds = (opened.config.max_tokens, max_model_len, opened.encoder.max_positions)
        self.max_tokens = min(bound for bound in bounds if bound is not None)
        self._tokenizer = opened.tokenizer
        self._tokenizer.enable_truncation(self.max_tokens)
        self._tokenizer.no_padding()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")
        self._requests = 0

    @property
    def dimensions(self) -> int:
        """The vectors' length when a request does not cut it."""
        return self._encoder.hidden_size

    async def embed(self, request: EmbedRequest) -> Embedded:
        """One unit vector an input; a text beyond `max_tokens` is cut there.

        Cancelling the call stops the work before its next batch.

        Raises:
            InvalidRequest: no or too many inputs, ids out of range, or too many dimensions.
            Overloaded: too many requests wait.
        """
        self._check(request)
        if self._requests >= MAX_REQUESTS:
            raise Overloaded(f"{MAX_REQUESTS} requests wait in this instance")
        self._requests += 1
        unwanted = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._embed, request, unwanted)
        finally:
            unwanted.set()
            self._requests -= 1

    async def warm_up(self) -> None:
        """Runs one short input, so that the first request finds kernels and pages ready."""
        await self.embed(EmbedRequest(request_id="warm-up", inputs=("a", "few words")))

    async def close(self) -> None:
        """Takes no more requests."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _check(self, request: EmbedRequest) -> None:
        if not 0 < len(request.inputs) <= MAX_INPUTS:
            raise InvalidRequest(
                f"{len(request.inputs)} inputs: give 1 to {MAX_INPUTS}", param="inputs"
            )
        if request.dimensions is not None and request.dimensions > self.dimensions:
            raise InvalidRequest(
                f"dimensions {request.dimensions} exceeds the model's {self.dimensions}",
                code="invalid_dimensions",
                param="dimensions",
            )
        for index, ids in enumerate(request.inputs):
            if isinstance(ids, tuple):
                self._check_ids(index, ids)

    def _check_ids(self, index: int, ids: tuple[int, ...]) -> None:
        if not 0 < len(ids) <= self.max_tokens:
            raise InvalidRequest(
                f"input {index} has {len(ids)} tokens: give 1 to {self.max_tokens}",
                code="context_length_exceeded" if ids else "invalid_request",
                param="inputs",
            )
        if not 0 <= min(ids) <= max(ids) < self._encoder.vocab_size:
            raise InvalidRequest(
                f"input {index} holds a token id outside 0 to {self._encoder.vocab_size - 1}",
                param="inputs",
            )

    @torch.inference_mode()
    def _embed(self, request: EmbedRequest, unwanted: threading.Event) -> Embedded:
        rows = self._rows(request.inputs)
        width = request.dimensions or self.dimensions
        vectors = np.empty((len(rows), width), dtype=np.float32)
        for batch in plan([len(row) for row in rows]):
            if unwanted.is_set():
                break  # nobody will look at the result
            ids, mask = padded([rows[index] for index in batch])
            pooled = pool(self._encoder(ids, mask), mask, self._pooling)
            vectors[batch] = unit(pooled, request.dimensions).numpy()
        return Embedded(vectors, prompt_tokens=sum(len(row) for row in rows))

    def _rows(self, inputs: Sequence[str] | Sequence[tuple[int, ...]]) -> list[Sequence[int]]:
        texts = [text for text in inputs if isinstance(text, str)]
        if self._lower_case:
            texts = [text.lower() for text in texts]
        encoded = iter(self._tokenizer.encode_batch(texts))
        rows: list[Sequence[int]] = [
            next(encoded).ids if isinstance(item, str) else item for item in inputs
        ]
        for index, row in enumerate(rows):
            if not row:
                raise InvalidRequest(f"input {index} has no tokens", param="inputs")
        return rows


def _open_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise CheckpointRejected(
            "the checkpoint has no tokenizer.json; save it with a fast tokenizer",
            code="checkpoint_incomplete",
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointRejected(
            f"tokenizer.json cannot be read: {error}", code="checkpoint_corrupt"
        ) from error
