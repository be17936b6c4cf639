"""What is said on a worker's Unix socket: HTTP/1.1, JSON requests, newline-delimited JSON streams.

    POST /prepare   PrepareRequest   -> 204; a blank worker reads ahead what a load may need
    POST /load      LoadRequest      -> stream of LoadEvent; a blank worker becomes an instance
    POST /generate  GenerateRequest  -> stream of Frame (text engines)
    POST /embed     EmbedRequest     -> EmbedResponse (embedding engine)
    POST /invoke    InvokeRequest    -> stream of InvokeEvent (handler engine)
    GET  /status                     -> WorkerStatus

A request that cannot be served at all is answered with a plain HTTP error status and a
`WorkerError` body before any stream begins; what fails later is the stream's last message.
Closing the connection cancels: a generation stops at its next token, a load is never cancelled.
This module is all that the control plane imports of the runtime; it needs Pydantic alone.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

STREAM_MEDIA_TYPE = "application/x-ndjson"
MAX_STOP_STRINGS = 16
MAX_TOP_LOGPROBS = 20
MAX_PREPARED = 4  # checkpoints that a blank worker is prepared for


class Message(BaseModel):
    """Base of every wire message: unknown keys are errors, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineName(StrEnum):
    """The engines a manifest may name; `auto` picks by the checkpoint's `config.json`."""

    AUTO = "auto"
    CAUSAL_LM = "causal_lm"
    TRANSFORMERS = "transformers"
    EMBEDDING = "embedding"
    HANDLER = "handler"


class Tier(StrEnum):
    """Where the bytes of a load came from, slowest first."""

    REMOTE = "remote"
    SSD = "ssd"
    DRAM = "dram"
    DEVICE = "device"


# --- errors ---------------------------------------------------------------------------------


class WorkerError(Message):
    """What went wrong, in words a user can act on; `code` is stable and machine-readable."""

    type: str  # invalid_request_error | engine_error | handler_error | checkpoint_error
    code: str  # context_length_exceeded, invalid_sampling, checkpoint_truncated, setup_failed, ...
    message: str
    param: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)


# --- prepare --------------------------------------------------------------------------------


class PrepareRequest(Message):
    """Checkpoints that a blank worker may soon have to load: it reads what is slow to parse."""

    checkpoint_paths: tuple[str, ...] = Field(max_length=MAX_PREPARED)


# --- load -----------------------------------------------------------------------------------


class EngineArgs(Message):
    """The manifest's `runtime.args`: bounds that an engine allocates for."""

    max_model_len: int | None = Field(default=None, ge=8)  # tokens of context a slot can hold
    max_batch: int = Field(default=8, ge=1, le=256)  # slots: generations that run at once
    prefill_chunk: int = Field(default=256, ge=16, le=8192)  # tokens prefilled between two steps


class LoadRequest(Message):
    """Turns a blank worker into an instance; valid once in a worker's life."""

    instance_id: str
    function: str
    revision: str
    engine: EngineName = EngineName.AUTO
    checkpoint_path: str | None = None  # a directory on this node, whose bytes are verified
    arriving: bool = False  # its safetensors files are still on their way to it
    source_path: str | None = None  # the directory that holds the user's handler
    handler: str | None = None  # file name in source_path, e.g. "handler.py"
    args: EngineArgs = Field(default_factory=EngineArgs)
    options: dict[str, Any] = Field(default_factory=dict)  # for a handler's setup()
    env: dict[str, str] = Field(default_factory=dict)
    threads: int | None = Field(default=None, ge=1)  # compute threads; None keeps the default


class PhaseEvent(Message):
    """One startup phase has ended. Phases are contiguous: their sum is the load's duration."""

    kind: Literal["phase"] = "phase"
    name: Literal["load", "init"]
    duration_ms: float
    tier: Tier | None = None
    bytes: int = 0
    details: dict[str, float] = Field(default_factory=dict)  # parts of the phase, in ms


class ReadyEvent(Message):
    """The instance answers requests from now on."""

    kind: Literal["ready"] = "ready"
    engine: EngineName
    context_tokens: int | None = None
    slots: int | None = None
    facts: dict[str, Any] = Field(default_factory=dict)


class FailedEvent(Message):
    """The load failed; the worker exits after it has sent this."""

    kind: Literal["failed"] = "failed"
    error: WorkerError


LoadEvent = Annotated[PhaseEvent | ReadyEvent | FailedEvent, Field(discriminator="kind")]
LOAD_EVENT: TypeAdapter[LoadEvent] = TypeAdapter(LoadEvent)


# --- generate -------------------------------------------------------------------------------


class Sampling(Message):
    """How tokens are chosen. Ranges are OpenAI's where it has them; `seed` is always set, so
    that a generation can be continued elsewhere with the same randomness."""

    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)  # 0: off
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    seed: int = Field(default=0, ge=0, lt=2**64)
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    repetition_penalty: float = Field(default=1.0, gt=0.0, le=10.0)
    stop: tuple[str, ...] = Field(default=(), max_length=MAX_STOP_STRINGS)
    ignore_eos: bool = False
    max_tokens: int | None = Field(default=None, ge=1)  # None: up to the context's end
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)  # alternatives a token


class ChatMessage(Message):
    """One turn of a conversation, already flattened to text."""

    role: str
    content: str
    name: str | None = None


class GenerateRequest(Message):
    """One generation. Exactly one of `messages`, `prompt`, `prompt_ids`.

    `prefix_ids` are tokens generated before, elsewhere: generation goes on behind them at index
    `len(prefix_ids)`, as if it had never stopped. Text of prefix tokens is not sent again.
    """

    request_id: str
    epoch: int = Field(default=0, ge=0)
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    prefix_ids: tuple[int, ...] = ()
    sampling: Sampling = Field(default_factory=Sampling)

    @model_validator(mode="after")
    def _one_prompt(self) -> GenerateRequest:
        given = [p for p in (self.messages, self.prompt, self.prompt_ids) if p is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of messages, prompt and prompt_ids")
        return self


class TokenLogprob(Message):
    """A token with its log probability (natural logarithm) under the unmodified model."""

    token: int
    text: str
    logprob: float


class PromptFrame(Message):
    """The first frame: the prompt as the model sees it."""

    kind: Literal["prompt"] = "prompt"
    epoch: int
    prompt_ids: tuple[int, ...]


class TokenFrame(Message):
    """One generated token. `text` is what became certain with it: it may be empty (half a
    character, or the possible beginning of a stop string) and may complete earlier tokens."""

    kind: Literal["token"] = "token"
    epoch: int
    index: int
    token: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


class DoneFrame(Message):
    """The last frame. `text` is what was held back and turned out not to be a stop string."""

    kind: Literal["done"] = "done"
    epoch: int
    finish_reason: FinishReason
    text: str = ""
    prompt_tokens: int
    completion_tokens: int
    queue_ms: float = 0.0  # in this instance, until prefill began
    prefill_ms: float = 0.0  # until the first token
    decode_ms: float = 0.0  # from the first token to the last


class ErrorFrame(Message):
    """The last frame of a generation that broke."""

    kind: Literal["error"] = "error"
    epoch: int
    error: WorkerError


Frame = Annotated[PromptFrame | TokenFrame | DoneFrame | ErrorFrame, Field(discriminator="kind")]
FRAME: TypeAdapter[Frame] = TypeAdapter(Frame)


# --- embed ----------------------------------------------------------------------------------


class EmbedRequest(Message):
    """Texts, or token ids, to embed; `dimensions` cuts and renormalises (Matryoshka)."""

    request_id: str
    inputs: tuple[str, ...] | tuple[tuple[int, ...], ...]
    dimensions: int | None = Field(default=None, ge=1)


class EmbedResponse(Message):
    """One unit vector an input, in the inputs' order."""

    embeddings: tuple[tuple[float, ...], ...]
    prompt_tokens: int


# --- invoke ---------------------------------------------------------------------------------


class InvokeRequest(Message):
    """Any JSON value for a user's `predict()`."""

    request_id: str
    payload: Any = None


class ValueEvent(Message):
    """What `predict` returned, or one value that it yielded (`stream` is then true)."""

    kind: Literal["value"] = "value"
    index: int
    value: Any
    stream: bool = False


class InvokeDone(Message):
    kind: Literal["done"] = "done"
    duration_ms: float


class InvokeFailed(Message):
    """`predict` raised; the instance lives on."""

    kind: Literal["error"] = "error"
    error: WorkerError


InvokeEvent = Annotated[ValueEvent | InvokeDone | InvokeFailed, Field(discriminator="kind")]
INVOKE_EVENT: TypeAdapter[InvokeEvent] = TypeAdapter(InvokeEvent)


# --- status ---------------------------------------------------------------------------------


class WorkerState(StrEnum):
    BLANK = "blank"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class WorkerStatus(Message):
    state: WorkerState
    instance_id: str | None = None
    active: int = 0  # requests under way
    pid: int
