"""How a token is chosen from logits. Everything here is a function of its arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stoker_runtime.contract import Sampling
from stoker_runtime.generation.philox import uniform


@dataclass(frozen=True, slots=True)
class Choice:
    """A sampled token; log probabilities are those of the unmodified model."""

    token: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()  # most probable first


class Sampler:
    """The sampling of one generation: its parameters, and the tokens that penalties count.

    `seen` is the prompt and `generated` what came after it, so that a continued generation is
    penalised as if it had never stopped.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], generated: Sequence[int]) -> None:
        self._sampling = sampling
        self._repeats = sampling.repetition_penalty != 1.0
        self._counts: Counter[int] = Counter(generated)
        self._seen = set(prompt) | set(generated) if self._repeats else set()

    @property
    def greedy(self) -> bool:
        """Whether the choice is the plain maximum, so that a whole batch is one argmax."""
        s = self._sampling
        penalised = self._repeats or s.presence_penalty or s.frequency_penalty
        return s.temperature == 0.0 and not penalised and s.logprobs is None

    def choose(self, logits: Tensor, position: int) -> Choice:
        """Chooses the token at an absolute position from logits `[vocab_size]`."""
        logits = logits.float()
        token = self._pick(self._penalised(logits), position)
        if self._sampling.logprobs is None:
            return Choice(token)
        return _with_logprobs(token, logits, self._sampling.logprobs)

    def note(self, token: int) -> None:
        """Counts a token that was generated."""
        self._counts[token] += 1
        if self._repeats:
            self._seen.add(token)

    def _pick(self, logits: Tensor, position: int) -> int:
        s = self._sampling
        if s.temperature == 0.0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits.double() / s.temperature, -1)
        kept = keep(probabilities, s.top_k, s.top_p, s.min_p)
        return draw(kept, uniform(s.seed, position))

    def _penalised(self, logits: Tensor) -> Tensor:
        """Presence and frequency as in OpenAI's API, over what was generated; repetition as in
        CTRL (Keskar et al., arXiv:1909.05858), over the prompt too."""
        s = self._sampling
        counted = bool(self._counts and (s.presence_penalty or s.frequency_penalty))
        if not counted and not self._seen:
            return logits
        logits = logits.clone()
        if self._seen:
            ids = torch.tensor(sorted(self._seen))
            values = logits[ids]
            penalty = s.repetition_penalty
            logits[ids] = torch.where(values > 0, values / penalty, values * penalty)
        if counted:
            ids = torch.tensor(list(self._counts))
            counts = torch.tensor(list(self._counts.values()), dtype=logits.dtype)
            logits[ids] -= s.presence_penalty + s.frequency_penalty * counts
        return logits


def keep(probabilities: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The probabilities `[vocab_size]` with zeros for what the three filters leave out.

    They apply in this order, each to what the one before has left: the `top_k` most probable;
    the smallest set that holds `top_p` of the mass (Holtzman et al., arXiv:1904.09751); what is
    at least `min_p` times as probable as the most probable. At least one token always remains.
    """
    kept = probabilities
    if 0 < top_k < kept.numel():
        values, ids = kept.topk(top_k)
        kept = torch.zeros_like(kept).index_copy_(0, ids, values)
    if top_p < 1.0:
        values, ids = kept.sort(descending=True, stable=True)
        mass_before = values.cumsum(0) - values
        values = values.where(mass_before < top_p * values.sum(), 0.0)
        kept = torch.zeros_like(kept).index_copy_(0, ids, values)
    if min_p > 0.0:
        kept = kept.where(kept >= min_p * kept.max(), 0.0)
    return kept


def draw(weights: Tensor, number: float) -> int:
    """The token whose share of the total, in order of ids, holds `number` of [0, 1).

    The order is that of ids, not of probabilities: two tokens that are almost equally probable
    may change ranks from one batch to another, and must not change the draw.
    """
    cumulative = weights.cumsum(0)
    target = number * cumulative[-1]
    token = int(torch.searchsorted(cumulative, target, right=True))
    # Rounding may put the target on the total itself; the last possible token is then meant.
    return min(token, int(weights.nonzero()[-1])) if token >= weights.numel() else token


def _with_logprobs(token: int, logits: Tensor, alternatives: int) -> Choice:
    logprobs = torch.log_softmax(logits, -1)
    values, ids = logprobs.topk(min(alternatives, logprobs.numel()))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Choice(token, float(logprobs[token]), top)
