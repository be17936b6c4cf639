"""OpenAI's requests as this platform takes them, and the control plane's own bodies.

Every parameter that the `openai` clients send is known here. Those that only advise are accepted
and change nothing; those that ask for what no function can do are refused by name, unless their
value asks for nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from stoker.errors import BadRequest
from stoker_runtime.contract import MAX_STOP_STRINGS, MAX_TOP_LOGPROBS

MAX_MESSAGES = 4096
MAX_EMBED_INPUTS = 2048  # OpenAI's bound
SEED_MIN, SEED_MAX = -(2**63), 2**64 - 1


class Edge(BaseModel):
    """Base of what users send: unknown keys are errors, and errors never quote the input."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


# --- sampling, shared by all text requests ------------------------------------------------------


class StreamOptions(Edge):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # advisory: padding against traffic analysis


class TextRequest(Edge):
    """What chat and plain completions have in common."""

    # Parameter -> values of it that ask for nothing; anything else is refused.
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"n": (1,), "logit_bias": ({},)}

    model: str = Field(min_length=1, max_length=256)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=SEED_MIN, le=SEED_MAX)
    presence_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    repetition_penalty: float | None = Field(default=None, gt=0.0, le=10.0)
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    n: Any = None
    logit_bias: Any = None

    @field_validator("stop")
    @classmethod
    def _stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
        strings = [stop] if isinstance(stop, str) else stop or []
        if len(strings) > MAX_STOP_STRINGS:
            raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings, got {len(strings)}")
        if any(not string for string in strings):
            raise ValueError("a stop string must not be empty")
        return stop

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def refuse_unsupported(self) -> None:
        """Raises BadRequest naming the first parameter that asks for what no function can do."""
        for name, nothing in self.neutral.items():
            value = getattr(self, name)
            if value is not None and value not in nothing:
                raise BadRequest(f"{name!r} is not supported with this value", param=name)


# --- chat ---------------------------------------------------------------------------------------


class ContentPart(BaseModel):
    """One part of a message; parts of text are joined, others are refused by name."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    type: str
    text: str | None = None


class ChatTurn(Edge):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    # An answer's message, sent back as it came, brings these along with null or nothing in them.
    refusal: str | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None
    reasoning_content: Any = None


class ChatRequest(TextRequest):
    """POST /v1/chat/completions."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **TextRequest.neutral,
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "response_format": ({"type": "text"},),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "web_search_options": (),
    }

    messages: list[ChatTurn] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    # Refused unless neutral:
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    moderation: Any = None
    response_format: Any = None
    tool_choice: Any = None
    tools: Any = None
    web_search_options: Any = None
    # Advice that changes nothing here:
    metadata: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    verbosity: Any = None

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("'top_logprobs' needs 'logprobs': true", param="top_logprobs")


# --- completions --------------------------------------------------------------------------------


class CompletionRequest(TextRequest):
    """POST /v1/completions."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **TextRequest.neutral,
        "best_of": (1,),
        "echo": (False,),
        "suffix": ("",),
    }

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: Any = None
    echo: Any = None
    suffix: Any = None


# --- embeddings ---------------------------------------------------------------------------------


class EmbeddingsRequest(Edge):
    """POST /v1/embeddings."""

    model: str = Field(min_length=1, max_length=256)
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None


# --- control plane ------------------------------------------------------------------------------


class ScaleRequest(Edge):
    """POST /v1/functions/{name}/scale."""

    replicas: int = Field(ge=0, le=1024)


class PrewarmRequest(Edge):
    """POST /v1/functions/{name}/prewarm."""

    replicas: int = Field(default=1, ge=1, le=1024)
