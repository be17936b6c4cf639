"""Embeddings: texts or token ids to vectors, as floats or packed in base64."""

from __future__ import annotations

import base64
import sys
from array import array
from typing import Any

from stoker.domain import RequestId
from stoker.errors import BadRequest
from stoker.gateway.openai.text import Json
from stoker.gateway.schema import MAX_EMBED_INPUTS, EmbeddingsRequest
from stoker_runtime.contract import EmbedRequest, EmbedResponse


def to_embed(request: EmbeddingsRequest, request_id: RequestId) -> EmbedRequest:
    """Raises BadRequest for inputs that are empty or too many."""
    return EmbedRequest(
        request_id=request_id, inputs=_inputs(request.input), dimensions=request.dimensions
    )


def _inputs(
    given: str | list[str] | list[int] | list[list[int]],
) -> tuple[str, ...] | tuple[tuple[int, ...], ...]:
    if isinstance(given, str):
        given = [given]
    too_many = len(given) > MAX_EMBED_INPUTS and not isinstance(given[0], int)
    if not given or too_many:
        raise BadRequest(f"input: between 1 and {MAX_EMBED_INPUTS} inputs", param="input")
    texts = [one for one in given if isinstance(one, str)]
    if texts:
        if not all(texts):
            raise BadRequest("input: a text must not be empty", param="input")
        return tuple(texts)
    flat = [one for one in given if isinstance(one, int)]
    rows = [flat] if flat else [one for one in given if isinstance(one, list)]
    if not all(row and min(row) >= 0 for row in rows):
        raise BadRequest("input: token ids must be 0 or more, at least one", param="input")
    return tuple(tuple(row) for row in rows)


def to_answer(response: EmbedResponse, *, model: str, encoding: str) -> Json:
    """OpenAI's list of embeddings, in the inputs' order."""
    encode = _packed if encoding == "base64" else list
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(response.embeddings)
        ],
        "model": model,
        "usage": {
            "prompt_tokens": response.prompt_tokens,
            "total_tokens": response.prompt_tokens,
        },
    }


def _packed(vector: tuple[float, ...]) -> Any:
    """Little-endian float32, as the `openai` clients unpack it."""
    floats = array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()
