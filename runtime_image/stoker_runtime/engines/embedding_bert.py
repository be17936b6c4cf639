"""A BERT encoder in plain torch operations, over weights that are never copied.

Devlin et al., BERT, 2018: post-norm layers, learned absolute positions, one segment here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor
from torch.nn import functional

from stoker_runtime.engines.embedding_config import EncoderShape
from stoker_runtime.errors import CheckpointRejected

PREFIXES = ("", "bert.")  # a bare BertModel, or one inside a model with a head

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gelu": functional.gelu,
        "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
        "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "relu": functional.relu,
        "silu": functional.silu,
    }
)


@dataclass(frozen=True, slots=True)
class _Affine:
    """The weight and bias of a projection or of a norm."""

    weight: Tensor
    bias: Tensor

    def project(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def norm(self, x: Tensor, eps: float) -> Tensor:
        return functional.layer_norm(x, self.bias.shape, self.weight, self.bias, eps)


@dataclass(frozen=True, slots=True)
class _Layer:
    query: _Affine
    key: _Affine
    value: _Affine
    attended: _Affine
    attended_norm: _Affine
    wide: _Affine
    narrow: _Affine
    out_norm: _Affine


class BertEncoder:
    """`BertModel` without its pooler; `[rows, tokens]` ids to `[rows, tokens, hidden]`."""

    def __init__(self, shape: EncoderShape, tensors: Mapping[str, Tensor]) -> None:
        """Binds the tensors by name.

        Raises:
            CheckpointRejected: a tensor is missing or has another shape, or the activation is
                unknown.
        """
        if shape.activation not in ACTIVATIONS:
            raise CheckpointRejected(
                f"hidden_act {shape.activation!r} is not served, only {', '.join(ACTIVATIONS)}",
                code="checkpoint_unsupported",
            )
        self.hidden_size = shape.hidden_size
        self.vocab_size = shape.vocab_size
        self.max_positions = shape.max_positions
        self._shape = shape
        self._activation = ACTIVATIONS[shape.activation]
        names = _Names(tensors)
        hidden = shape.hidden_size
        self._words = names.tensor("embeddings.word_embeddings.weight", (shape.vocab_size, hidden))
        self._positions = names.tensor(
            "embeddings.position_embeddings.weight", (shape.max_positions, hidden)
        )
        self._segment = names.tensor("embeddings.token_type_embeddings.weight", (None, hidden))[0]
        self._norm = names.norm("embeddings.LayerNorm", hidden)
        self._layers = [_layer(names, index, hidden) for index in range(shape.layers)]

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = functional.embedding(ids, self._words) + self._positions[: ids.shape[1]] + self._segment
        x = self._norm.norm(x, self._shape.norm_eps)
        attends = None if bool(mask.all()) else mask[:, None, None, :]
        for layer in self._layers:
            x = self._run(layer, x, attends)
        return x

    def _run(self, layer: _Layer, x: Tensor, attends: Tensor | None) -> Tensor:
        eps = self._shape.norm_eps
        q, k, v = (self._heads(p.project(x)) for p in (layer.query, layer.key, layer.value))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=attends)
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        x = layer.attended_norm.norm(layer.attended.project(mixed) + x, eps)
        wide = self._activation(layer.wide.project(x))
        return layer.out_norm.norm(layer.narrow.project(wide) + x, eps)

    def _heads(self, x: Tensor) -> Tensor:
        rows, tokens, _ = x.shape
        return x.view(rows, tokens, self._shape.heads, -1).transpose(1, 2)


class _Names:
    """Looks tensors up by the names of a bare BertModel and checks their shapes."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        probe = "embeddings.word_embeddings.weight"
        self._prefix = next((p for p in PREFIXES if p + probe in tensors), "")

    def tensor(self, name: str, shape: Sequence[int | None]) -> Tensor:
        found = self._tensors.get(self._prefix + name)
        if found is None:
            raise CheckpointRejected(
                f"the checkpoint has no tensor {self._prefix + name}; push a BertModel",
                code="checkpoint_incomplete",
            )
        fits = len(found.shape) == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, found.shape, strict=True)
        )
        if not fits:
            raise CheckpointRejected(
                f"tensor {self._prefix + name} has shape {list(found.shape)}, "
                f"but config.json wants {list(shape)}",
                code="checkpoint_config_invalid",
            )
        return found

    def norm(self, name: str, size: int) -> _Affine:
        return _Affine(self.tensor(f"{name}.weight", (size,)), self.tensor(f"{name}.bias", (size,)))

    def linear(self, name: str, rows: int | None, columns: int | None) -> _Affine:
        return _Affine(
            self.tensor(f"{name}.weight", (rows, columns)), self.tensor(f"{name}.bias", (rows,))
        )


def _layer(names: _Names, index: int, hidden: int) -> _Layer:
    at = f"encoder.layer.{index}"
    return _Layer(
        query=names.linear(f"{at}.attention.self.query", hidden, hidden),
        key=names.linear(f"{at}.attention.self.key", hidden, hidden),
        value=names.linear(f"{at}.attention.self.value", hidden, hidden),
        attended=names.linear(f"{at}.attention.output.dense", hidden, hidden),
        attended_norm=names.norm(f"{at}.attention.output.LayerNorm", hidden),
        wide=names.linear(f"{at}.intermediate.dense", None, hidden),
        narrow=names.linear(f"{at}.output.dense", hidden, None),
        out_norm=names.norm(f"{at}.output.LayerNorm", hidden),
    )
