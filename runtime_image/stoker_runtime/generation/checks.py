"""Whether a request can be served at all, before anything is computed for it."""

from __future__ import annotations

from collections.abc import Sequence

from stoker_runtime.contract import Sampling
from stoker_runtime.errors import InvalidRequest
from stoker_runtime.generation.bounds import Bounds


def check_ids(ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raises InvalidRequest for an id that the model does not have."""
    for at, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise InvalidRequest(
                f"{param}[{at}] is {token}, but this model's token ids are 0 to {vocab_size - 1}",
                code="invalid_token",
                param=param,
                details={"index": at, "token": token, "vocab_size": vocab_size},
            )


def check_stops(sampling: Sampling, bounds: Bounds) -> None:
    """Raises InvalidRequest for an empty or an overlong stop string."""
    for stop in sampling.stop:
        if not 0 < len(stop) <= bounds.max_stop_characters:
            raise InvalidRequest(
                f"a stop string of {len(stop)} characters; send 1 to {bounds.max_stop_characters}",
                code="invalid_sampling",
                param="stop",
            )


def answer_tokens(
    prompt_tokens: int, prefix_tokens: int, max_tokens: int | None, context_tokens: int
) -> int:
    """How many tokens may be generated in all, prefix included.

    Raises:
        InvalidRequest: `empty_prompt`, or `context_length_exceeded` with all lengths.
    """
    if prompt_tokens == 0:
        raise InvalidRequest(
            "the prompt is empty; send at least one token", code="empty_prompt", param="prompt"
        )
    room = context_tokens - prompt_tokens
    if room < max(max_tokens or 1, prefix_tokens):
        asked = "" if max_tokens is None else f" and asks for {max_tokens} more"
        raise InvalidRequest(
            f"the prompt has {prompt_tokens} tokens{asked}, but this model's context holds "
            f"{context_tokens}; shorten the prompt, lower max_tokens, or deploy with a larger "
            "max_model_len",
            code="context_length_exceeded",
            param="messages" if max_tokens is None else "max_tokens",
            details={
                "prompt_tokens": prompt_tokens,
                "prefix_tokens": prefix_tokens,
                "context_tokens": context_tokens,
                "max_tokens": max_tokens,
            },
        )
    return room if max_tokens is None else max_tokens
