"""A random model that speaks bytes, both engines on it, and a record of what the loop asks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from stoker_runtime.contract import (
    DoneFrame,
    EngineArgs,
    EngineName,
    ErrorFrame,
    Frame,
    GenerateRequest,
    PromptFrame,
    Sampling,
    TokenFrame,
)
from stoker_runtime.detokenizer import byte_level_spelling
from stoker_runtime.engines.base import TextEngine
from stoker_runtime.generation import Bounds, GenerationLoop
from stoker_runtime.models import load_text_model
from stoker_runtime.tokenizer import TextTokenizer

CONTEXT_TOKENS = 96
SLOTS = 4
PREFILL_CHUNK = 16
EOS = 256
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products on several threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def byte_tokenizer() -> Tokenizer:
    """256 bytes and two special tokens, and no merges: random answers are broken UTF-8."""
    spell = byte_level_spelling()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {character: spell(character)[0] for character in alphabet}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken("</s>", special=True), AddedToken("<s>", special=True)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bytes")
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,
        eos_token_id=EOS,
        bos_token_id=257,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    byte_tokenizer().save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real checkpoint; a missing one fails with what to do about it."""
    root = Path(__file__).resolve().parents[3]
    models_path = Path(os.environ.get("STOKER_MODELS", root / ".cache" / "models"))
    path = models_path / "smollm2-135m-instruct"
    if not (path / "config.json").exists():
        pytest.fail(f"{path} is missing: run `make models`", pytrace=False)
    return path


@dataclass(slots=True)
class TracedEngine:
    """A real engine whose calls are written down; it may be told to hold or to break."""

    engine: TextEngine
    calls: list[tuple[str, tuple[int, ...], int]] = field(default_factory=list)
    before_decode: Callable[[int], None] = lambda _count: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def prefill(self, slot: int, ids: Sequence[int], start: int, *, last: bool) -> Tensor | None:
        self.calls.append(("prefill", (slot,), len(ids)))
        return self.engine.prefill(slot, ids, start, last=last)

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> Tensor:
        self.before_decode(sum(kind == "decode" for kind, _, _ in self.calls))
        self.calls.append(("decode", tuple(slots), 1))
        return self.engine.decode(slots, tokens, positions)


@dataclass(frozen=True, slots=True)
class Answer:
    """All frames of one stream, in the ways that tests look at them."""

    frames: list[Frame]

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        assert isinstance(self.frames[0], PromptFrame)
        return self.frames[0].prompt_ids

    @property
    def token_frames(self) -> list[TokenFrame]:
        return [frame for frame in self.frames if isinstance(frame, TokenFrame)]

    @property
    def tokens(self) -> list[int]:
        return [frame.token for frame in self.token_frames]

    @property
    def text(self) -> str:
        tail = self.done.text if isinstance(self.frames[-1], DoneFrame) else ""
        return "".join(frame.text for frame in self.token_frames) + tail

    @property
    def done(self) -> DoneFrame:
        assert isinstance(self.frames[-1], DoneFrame), self.frames[-1]
        return self.frames[-1]

    @property
    def error(self) -> ErrorFrame:
        assert isinstance(self.frames[-1], ErrorFrame), self.frames[-1]
        return self.frames[-1]


def request(prompt: str | Sequence[int] = "Hello", **fields: Any) -> GenerateRequest:
    """A greedy request of 20 tokens; keywords of `Sampling` or of the request change it."""
    outer = {k: fields.pop(k) for k in ("prefix_ids", "epoch", "messages") if k in fields}
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 20, **fields})
    if "messages" not in outer:
        outer |= {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": tuple(prompt)}
    return GenerateRequest(request_id="r-1", sampling=sampling, **outer)


async def answer(loop: GenerationLoop, asked: GenerateRequest) -> Answer:
    return Answer([frame async for frame in loop.stream(asked)])


@dataclass(frozen=True, slots=True)
class Running:
    """A started loop and the engine below it."""

    loop: GenerationLoop
    engine: TracedEngine

    async def answer(self, prompt: str | Sequence[int] = "Hello", **fields: Any) -> Answer:
        return await answer(self.loop, request(prompt, **fields))


Parts = tuple[TextEngine, TextTokenizer]
StartLoop = Callable[..., Awaitable[Running]]


def engine_and_tokenizer(checkpoint: Path, name: EngineName) -> tuple[TextEngine, TextTokenizer]:
    args = EngineArgs(max_model_len=CONTEXT_TOKENS, max_batch=SLOTS, prefill_chunk=PREFILL_CHUNK)
    loop = load_text_model(checkpoint, name, args, lambda *_: None).loop
    return loop._engine, loop._tokenizer


@pytest.fixture(scope="session", params=[EngineName.CAUSAL_LM, EngineName.TRANSFORMERS])
def both(request: pytest.FixtureRequest, checkpoint: Path) -> tuple[TextEngine, TextTokenizer]:
    """Each engine in turn; loops come and go on it."""
    return engine_and_tokenizer(checkpoint, request.param)


@pytest.fixture(scope="session")
def lean(checkpoint: Path) -> tuple[TextEngine, TextTokenizer]:
    return engine_and_tokenizer(checkpoint, EngineName.CAUSAL_LM)


@dataclass(slots=True)
class KeptOpen:
    """An engine that outlives the loops of single tests."""

    engine: TextEngine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def close(self) -> None:
        """The session owns the engine."""


@pytest.fixture
async def start() -> AsyncIterator[StartLoop]:
    """Starts loops over an engine and a tokenizer; they are closed when the test ends."""
    async with AsyncExitStack() as stack:

        async def begin(
            parts: tuple[TextEngine, TextTokenizer],
            bounds: Bounds = Bounds(prefill_chunk_tokens=PREFILL_CHUNK),  # noqa: B008  frozen
            **options: Any,
        ) -> Running:
            engine = TracedEngine(KeptOpen(parts[0]))
            loop = GenerationLoop(engine, parts[1], bounds, **options)
            loop.start()
            stack.push_async_callback(loop.close)
            return Running(loop, engine)

        yield begin
