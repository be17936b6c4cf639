"""Plain completions: a prompt as text or token ids, tokens to text."""

from __future__ import annotations

from typing import ClassVar

from stoker.domain import RequestId
from stoker.errors import BadRequest
from stoker.gateway.openai.text import DrawSeed, Json, sampling_of, token_text
from stoker.gateway.schema import CompletionRequest
from stoker_runtime.contract import GenerateRequest, TokenFrame

DEFAULT_MAX_TOKENS = 16  # OpenAI's own for this API


def to_generate(
    request: CompletionRequest, request_id: RequestId, draw_seed: DrawSeed
) -> GenerateRequest:
    """Raises BadRequest naming what no function can do: several prompts, echo, a suffix."""
    request.refuse_unsupported()
    max_tokens = request.max_tokens
    if "max_tokens" not in request.model_fields_set:
        max_tokens = DEFAULT_MAX_TOKENS
    text, token_ids = _prompt(request.prompt)
    return GenerateRequest(
        request_id=request_id,
        prompt=text,
        prompt_ids=token_ids,
        sampling=sampling_of(
            request, max_tokens=max_tokens, logprobs=request.logprobs, draw_seed=draw_seed
        ),
    )


def _prompt(
    prompt: str | list[int] | list[str] | list[list[int]],
) -> tuple[str | None, tuple[int, ...] | None]:
    if isinstance(prompt, str):
        return prompt, None
    if not prompt:
        raise BadRequest("prompt: must not be empty", param="prompt")
    first = prompt[0]
    if isinstance(first, int):
        return None, _token_ids([token for token in prompt if isinstance(token, int)])
    if len(prompt) > 1:
        raise BadRequest("prompt: one prompt a request is supported", param="prompt")
    return (first, None) if isinstance(first, str) else (None, _token_ids(first))


def _token_ids(tokens: list[int]) -> tuple[int, ...]:
    if not tokens or min(tokens) < 0:
        raise BadRequest("prompt: token ids must be 0 or more, at least one", param="prompt")
    return tuple(tokens)


class CompletionDialect:
    """Answers as plain completions."""

    id_prefix: ClassVar[str] = "cmpl-"
    chunk_object: ClassVar[str] = "text_completion"
    whole_object: ClassVar[str] = "text_completion"

    def __init__(self, *, logprobs: bool) -> None:
        self._logprobs = logprobs
        self._shown_chars = 0  # where the next token's text begins in the whole

    def opening(self) -> Json | None:
        return None

    def token(self, frame: TokenFrame) -> Json | None:
        if not frame.text and not self._logprobs:
            return None
        return _choice(frame.text, self._logs([frame]))

    def closing(self, text: str, finish_reason: str) -> Json:
        return _choice(text, finish_reason=finish_reason)

    def whole(self, text: str, tokens: list[TokenFrame], finish_reason: str) -> Json:
        return _choice(text, self._logs(tokens), finish_reason=finish_reason)

    def _logs(self, tokens: list[TokenFrame]) -> Json | None:
        if not self._logprobs:
            return None
        offsets = []
        for frame in tokens:
            offsets.append(self._shown_chars)
            self._shown_chars += len(frame.text)
        return {
            "tokens": [token_text(frame) for frame in tokens],
            "token_logprobs": [frame.logprob for frame in tokens],
            "top_logprobs": [
                {one.text: one.logprob for one in frame.top_logprobs} for frame in tokens
            ],
            "text_offset": offsets,
        }


def _choice(text: str, logprobs: Json | None = None, *, finish_reason: str | None = None) -> Json:
    return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
