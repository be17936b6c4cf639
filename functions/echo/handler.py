"""Gives back what it is given; `{"stream": n}` streams n values instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MAX_STREAMED_VALUES = 10_000


def predict(payload: Any) -> Any:
    """The payload itself, or `n` values one by one when it is `{"stream": n}`."""
    count = payload.get("stream") if isinstance(payload, dict) else None
    if count is None:
        return payload
    if not isinstance(count, int) or not 0 <= count <= MAX_STREAMED_VALUES:
        raise ValueError(f"stream must be a whole number from 0 to {MAX_STREAMED_VALUES}")
    return _values(count)


def _values(count: int) -> Iterator[dict[str, int]]:
    for number in range(count):
        yield {"number": number}
