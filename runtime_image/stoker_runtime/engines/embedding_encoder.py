"""What the embedding engine asks of an encoder, and the door to those of Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from stoker_runtime.errors import CheckpointRejected


class Encoder(Protocol):
    """Turns token ids into one vector a token."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_positions(self) -> int: ...

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """`ids` int64 `[rows, tokens]`, `mask` bool alike -> `[rows, tokens, hidden_size]`."""


class TransformersEncoder:
    """Any architecture that Transformers' `AutoModel` knows; never runs a checkpoint's code."""

    def __init__(self, checkpoint: Path) -> None:
        """Raises CheckpointRejected for what `AutoModel` does not take."""
        try:
            from transformers import AutoModel
        except ImportError as error:
            raise CheckpointRejected(
                "this architecture needs the extra stoker-runtime[transformers]",
                code="engine_not_installed",
            ) from error
        try:
            model = AutoModel.from_pretrained(
                checkpoint, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointRejected(
                f"Transformers does not take this checkpoint: {error}",
                code="checkpoint_unsupported",
            ) from error
        self._model = model.eval()
        self.hidden_size = int(model.config.hidden_size)
        self.vocab_size = int(model.config.vocab_size)
        self.max_positions = int(model.config.max_position_embeddings)

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        assert isinstance(hidden, Tensor)
        return hidden
