"""Any causal language model that Transformers knows, behind the same decode loop.

The only module that imports Transformers: it takes two seconds, so it happens when a checkpoint
asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, DynamicCache, PreTrainedModel

from stoker_runtime.contract import EngineName
from stoker_runtime.errors import CheckpointRejected


class TransformersLM:
    """A `TextEngine` over a Transformers model; slots are run one after the other."""

    name = EngineName.TRANSFORMERS

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        context_tokens: int,
        eos_ids: frozenset[int],
    ) -> None:
        self.slots = slots
        self.context_tokens = context_tokens
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.eos_ids = eos_ids
        self._model = model
        self._caches: list[DynamicCache | None] = [None] * slots

    @torch.inference_mode()
    def prefill(self, slot: int, ids: Sequence[int], start: int, *, last: bool) -> Tensor | None:
        """Reads `ids` at `start...` into the slot; with `last`, logits `[vocab_size]` follow."""
        if start == 0:
            self._caches[slot] = DynamicCache(config=self._model.config)
        logits = self._forward(slot, ids, start)
        return logits if last else None

    @torch.inference_mode()
    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> Tensor:
        """Reads one token into each slot; logits `[len(slots), vocab_size]` follow."""
        each = zip(slots, tokens, positions, strict=True)
        return torch.stack([self._forward(slot, [token], at) for slot, token, at in each])

    def close(self) -> None:
        """Lets go of the model and its caches."""
        del self._model, self._caches

    def _forward(self, slot: int, ids: Sequence[int], start: int) -> Tensor:
        output = self._model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.arange(start, start + len(ids)).unsqueeze(0),
            past_key_values=self._caches[slot],
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[0, -1]
        return logits


def build_model(
    checkpoint: Path, tensors: Mapping[str, Tensor], architecture: str
) -> PreTrainedModel:
    """A model around tensors that are mapped already.

    Transformers makes the module on the meta device, assigns the tensors without a copy, ties
    what is tied and computes the buffers that no checkpoint holds.

    Raises:
        CheckpointRejected: Transformers does not know the architecture, or tensors are missing.
    """
    kind = getattr(transformers, architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise _unsupported(architecture, "there is no such model class")
    try:
        # Without a path nothing is read: the tensors are all that there is.
        loaded: Any = kind.from_pretrained(
            None,
            config=AutoConfig.from_pretrained(checkpoint, local_files_only=True),
            state_dict=dict(tensors),
            dtype="auto",
            output_loading_info=True,
        )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise _unsupported(architecture, str(error)) from error
    model: PreTrainedModel = loaded[0]
    _require_all(loaded[1])
    model.train(False)
    return model


def _unsupported(architecture: str, reason: str) -> CheckpointRejected:
    return CheckpointRejected(
        f"Transformers cannot build {architecture}: {reason}; deploy a causal language model "
        "that Transformers knows, or a handler of your own",
        code="architecture_unsupported",
        param="engine",
    )


def _require_all(report: Mapping[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointRejected(
            f"the checkpoint lacks {len(missing)} tensors: {', '.join(missing[:5])}; "
            "fetch it again",
            code="checkpoint_incomplete",
            details={"missing": missing},
        )
