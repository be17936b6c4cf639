"""What the decode loop asks of an engine that generates text.

An engine owns its weights and a cache with a fixed number of *slots*; a slot holds the keys and
values of one generation. The loop owns everything else: which generation has which slot, what
is sampled, and when it ends. All methods are called from one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from stoker_runtime.contract import EngineName


class TextEngine(Protocol):
    """Turns token ids into the logits of the next token, for several generations at once."""

    @property
    def name(self) -> EngineName: ...

    @property
    def slots(self) -> int:
        """Generations that fit at once."""

    @property
    def context_tokens(self) -> int:
        """Tokens, prompt and answer together, that one slot can hold."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this; the width of the logits."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""

    def prefill(self, slot: int, ids: Sequence[int], start: int, *, last: bool) -> Tensor | None:
        """Reads `ids` at positions `start...` into the slot; `start == 0` forgets what was there.

        With `last`, returns the logits `[vocab_size]` that follow the last id, else None.
        """

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> Tensor:
        """Reads one token into each of the slots, which are distinct and ascending.

        Returns the logits `[len(slots), vocab_size]` that follow.
        """

    def close(self) -> None:
        """Lets go of weights and cache; nothing may be called afterwards."""
