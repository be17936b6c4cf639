"""Chat completions: turns to a prompt, tokens to deltas."""

from __future__ import annotations

from typing import ClassVar

from stoker.domain import RequestId
from stoker.errors import BadRequest
from stoker.gateway.openai.text import DrawSeed, Json, sampling_of, token_text
from stoker.gateway.schema import ChatRequest, ChatTurn
from stoker_runtime.contract import ChatMessage, GenerateRequest, TokenFrame

_ROLES = {"developer": "system"}  # open models' templates know the older name alone
_UNSUPPORTED_ROLES = frozenset({"tool", "function"})
_TEXT_PARTS = frozenset({"text", "refusal"})


def to_generate(
    request: ChatRequest, request_id: RequestId, draw_seed: DrawSeed
) -> GenerateRequest:
    """Raises BadRequest naming what no function can do: tools, images, several choices."""
    request.refuse_unsupported()
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return GenerateRequest(
        request_id=request_id,
        messages=tuple(
            _message(turn, f"messages[{position}]")
            for position, turn in enumerate(request.messages)
        ),
        sampling=sampling_of(
            request,
            max_tokens=request.max_completion_tokens or request.max_tokens,
            logprobs=logprobs,
            draw_seed=draw_seed,
        ),
    )


def _message(turn: ChatTurn, param: str) -> ChatMessage:
    if turn.role in _UNSUPPORTED_ROLES or turn.tool_calls or turn.function_call:
        raise BadRequest(f"{param}: tool calls are not supported", param=param)
    if turn.content is None:
        raise BadRequest(f"{param}.content: a text is needed", param=f"{param}.content")
    return ChatMessage(
        role=_ROLES.get(turn.role, turn.role),
        content=_text(turn, f"{param}.content"),
        name=turn.name,
    )


def _text(turn: ChatTurn, param: str) -> str:
    if isinstance(turn.content, str):
        return turn.content
    texts = []
    for position, part in enumerate(turn.content or ()):
        place = f"{param}[{position}]"
        if part.type not in _TEXT_PARTS:
            raise BadRequest(
                f"{place}: parts of type {part.type!r} are not supported, only text", param=place
            )
        text = part.text if part.type == "text" else (part.model_extra or {}).get("refusal")
        if not isinstance(text, str):
            raise BadRequest(f"{place}.{part.type}: a text is needed", param=place)
        texts.append(text)
    return "".join(texts)


class ChatDialect:
    """Answers as chat completions."""

    id_prefix: ClassVar[str] = "chatcmpl-"
    chunk_object: ClassVar[str] = "chat.completion.chunk"
    whole_object: ClassVar[str] = "chat.completion"

    def __init__(self, *, logprobs: bool) -> None:
        self._logprobs = logprobs

    def opening(self) -> Json | None:
        return _delta({"role": "assistant", "content": ""})

    def token(self, frame: TokenFrame) -> Json | None:
        logprobs = _logprobs([frame]) if self._logprobs else None
        return _delta({"content": frame.text}, logprobs) if frame.text or logprobs else None

    def closing(self, text: str, finish_reason: str) -> Json:
        return _delta({"content": text} if text else {}, finish_reason=finish_reason)

    def whole(self, text: str, tokens: list[TokenFrame], finish_reason: str) -> Json:
        return {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": _logprobs(tokens) if self._logprobs else None,
            "finish_reason": finish_reason,
        }


def _delta(delta: Json, logprobs: Json | None = None, *, finish_reason: str | None = None) -> Json:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(tokens: list[TokenFrame]) -> Json:
    content = [
        {
            **_logprob(token_text(frame), frame.logprob or 0.0),
            "top_logprobs": [_logprob(one.text, one.logprob) for one in frame.top_logprobs],
        }
        for frame in tokens
    ]
    return {"content": content, "refusal": None}


def _logprob(text: str, logprob: float) -> Json:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
