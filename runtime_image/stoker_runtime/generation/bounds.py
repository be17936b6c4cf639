"""The limits of one decode loop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the loop may hold; the engine bounds slots and context."""

    prefill_chunk_tokens: int = 256  # prompt tokens read between two decode steps
    max_waiting: int = 256  # generations admitted but without a slot
    max_stop_characters: int = 1024  # one stop string
