"""Keys and values of all slots, and attention over them."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from stoker_runtime.engines.causal_lm_config import DecoderConfig


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros whose pages cost nothing until they are written.

    `torch.zeros` writes every page, and `torch.empty` may hold NaN, which a mask of minus
    infinity does not silence: rows of the cache behind a sequence's end must be finite.
    """
    pages = mmap.mmap(-1, prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


class SlotCache:
    """One tensor a layer: `[slots, 2, key_heads, slot_tokens, head_size]`, keys then values."""

    def __init__(
        self, config: DecoderConfig, slots: int, slot_tokens: int, dtype: torch.dtype
    ) -> None:
        shape = (slots, 2, config.key_heads, slot_tokens, config.head_size)
        self._layers = [untouched_zeros(shape, dtype) for _ in range(config.layers)]
        self._flat = [layer.view(-1, config.head_size) for layer in self._layers]
        self._windows = config.windows
        self._group = config.query_heads // config.key_heads
        self._slot_tokens = slot_tokens
        self._key_heads = config.key_heads
        # The flat row of position 0, by slot, then of keys and values by head.
        self._origins = torch.arange(slots * 2 * config.key_heads).view(slots, -1) * slot_tokens

    def prefill(self, slot: int, start: int, tokens: int) -> PrefillStep:
        """Attention of `tokens` new positions of one slot over all up to themselves."""
        rows = self._origins[slot] + torch.arange(start, start + tokens).unsqueeze_(1)
        masks = {
            window: _prefill_mask(start, tokens, window, self._layers[0].dtype)
            for window in set(self._windows)
        }
        return PrefillStep(self, rows.view(-1), slot, start + tokens, masks)

    def decode(self, slots: Sequence[int], positions: Sequence[int]) -> DecodeStep | LoneStep:
        """Attention of one new position in each of the slots."""
        at = torch.tensor(positions)
        rows = (self._origins[list(slots)] + at.unsqueeze(1)).view(-1)
        if len(slots) == 1:
            return LoneStep(self, rows, slots[0], positions[0] + 1)
        first, behind = slots[0], slots[-1] + 1
        span_positions = at
        if behind - first != len(slots):  # idle slots lie between: their rows attend to position 0
            span_positions = torch.zeros(behind - first, dtype=at.dtype)
            span_positions[torch.tensor(slots) - first] = at
        length = max(positions) + 1
        masks = {
            window: _decode_mask(span_positions, length, window, self._layers[0].dtype)
            for window in set(self._windows)
        }
        members = None if span_positions is at else torch.tensor(slots) - first
        return DecodeStep(self, rows, slice(first, behind), length, members, masks)

    def store(self, layer: int, rows: Tensor, new: Tensor) -> None:
        """Writes keys and values `[tokens, 2 * key_heads * head_size]` to their flat rows."""
        flat = self._flat[layer]
        flat.index_copy_(0, rows, new.reshape(-1, flat.shape[1]).to(flat.dtype))

    def window(self, layer: int) -> int | None:
        return self._windows[layer]

    def layer(self, layer: int) -> Tensor:
        return self._layers[layer]

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self._group


@dataclass(frozen=True, slots=True)
class PrefillStep:
    """Many positions of one slot."""

    cache: SlotCache
    rows: Tensor
    slot: int
    length: int
    masks: dict[int | None, Tensor | None]

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """q `[tokens, query_heads, head_size]` -> `[tokens, query_heads * head_size]`."""
        self.cache.store(layer, self.rows, kv)
        tokens, heads, head_size = q.shape
        group = self.cache.group
        past = self.cache.layer(layer)[self.slot, :, :, : self.length]
        # Key heads stand in the batch dimension; the group shares them without a copy.
        shape = (heads // group, group, self.length, head_size)
        k, v = past[0].unsqueeze(1).expand(shape), past[1].unsqueeze(1).expand(shape)
        q = q.to(past.dtype).view(tokens, heads // group, group, head_size).permute(1, 2, 0, 3)
        mask = self.masks[self.cache.window(layer)]
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None
        )
        return out.permute(2, 0, 1, 3).reshape(tokens, heads * head_size)


@dataclass(frozen=True, slots=True)
class LoneStep:
    """One position of one slot: exactly the keys that it sees, and no mask."""

    cache: SlotCache
    rows: Tensor
    slot: int
    length: int

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """q `[1, query_heads, head_size]` -> `[1, query_heads * head_size]`."""
        self.cache.store(layer, self.rows, kv)
        _, heads, head_size = q.shape
        window = self.cache.window(layer)
        start = 0 if window is None else max(0, self.length - window)
        past = self.cache.layer(layer)[self.slot, :, :, start : self.length]
        group = self.cache.group
        q = q.to(past.dtype).view(1, heads // group, group, head_size)
        out = functional.scaled_dot_product_attention(q, past[:1], past[1:])
        return out.view(1, heads * head_size)


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """One position of each of several slots, which lie in one span of the cache."""

    cache: SlotCache
    rows: Tensor
    span: slice
    length: int
    members: Tensor | None  # rows of the span that are not idle; None: all
    masks: dict[int | None, Tensor]

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """q `[slots, query_heads, head_size]` -> `[slots, query_heads * head_size]`."""
        self.cache.store(layer, self.rows, kv)
        _, heads, head_size = q.shape
        group = self.cache.group
        past = self.cache.layer(layer)[self.span, :, :, : self.length]
        if self.members is not None:
            q = q.new_zeros((past.shape[0], heads, head_size)).index_copy_(0, self.members, q)
        q = q.to(past.dtype).view(-1, heads // group, group, head_size)
        mask = self.masks[self.cache.window(layer)].expand(-1, -1, group, -1)
        out = functional.scaled_dot_product_attention(q, past[:, 0], past[:, 1], attn_mask=mask)
        out = out.reshape(-1, heads * head_size)
        return out if self.members is None else out[self.members]


def _prefill_mask(start: int, tokens: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """None where plain causality says it all, else `[tokens, start + tokens]`, added to scores."""
    length = start + tokens
    if start == 0 and (window is None or window >= tokens):
        return None
    query = torch.arange(start, length).unsqueeze_(1)
    return _added(query, torch.arange(length), window, dtype)


def _decode_mask(positions: Tensor, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """`[slots, 1, 1, length]`, added to scores."""
    query = positions.view(-1, 1, 1, 1)
    return _added(query, torch.arange(length), window, dtype)


def _added(query: Tensor, key: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
