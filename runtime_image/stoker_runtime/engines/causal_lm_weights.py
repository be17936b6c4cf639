"""A checkpoint's tensors, given their places in the decoder without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stoker_runtime.engines.causal_lm_config import DecoderConfig
from stoker_runtime.engines.linear import Linear
from stoker_runtime.errors import CheckpointRejected
from stoker_runtime.weights import TensorSource

MAX_NAMES_IN_MESSAGE = 5


@dataclass(frozen=True, slots=True)
class Projection:
    """One product with a fused weight, or several with its parts, with the same outcome."""

    weights: tuple[Tensor, ...]  # one when fused; each [outputs, inputs]
    biases: tuple[Tensor | None, ...]
    linear: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """x `[tokens, inputs]` -> `[tokens, outputs of all parts]`."""
        if len(self.weights) == 1:
            return self.linear(x, self.weights[0], self.biases[0])
        parts = zip(self.weights, self.biases, strict=True)
        return torch.cat([self.linear(x, weight, bias) for weight, bias in parts], -1)


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer, in the order of their use."""

    input_norm: Tensor
    qkv: Projection
    head_norm: Tensor | None  # [query_heads + key_heads, head_size]
    output: Projection
    mlp_norm: Tensor
    gate_up: Projection
    down: Projection


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights; `head` is `embedding` itself where the two are tied."""

    embedding: Tensor
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Projection

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype


def bind(
    config: DecoderConfig, source: TensorSource, linear: Linear, *, fuse: bool = True
) -> DecoderWeights:
    """Takes what the configuration calls for out of `source`.

    Neighbouring parts become one view where `source` can give it and `fuse` allows it.

    Raises:
        CheckpointRejected: tensors are missing, or have other shapes or types than they should.
    """
    return _Binder(config, source, linear, fuse).bind()


class _Binder:
    def __init__(
        self, config: DecoderConfig, source: TensorSource, linear: Linear, fuse: bool
    ) -> None:
        self._config = config
        self._source = source
        self._names = frozenset(source.names)
        self._linear = linear
        self._fuse = fuse

    def bind(self) -> DecoderWeights:
        config = self._config
        hidden, vocab = config.hidden_size, config.vocab_size
        self._require_all()
        embedding = self._tensor("model.embed_tokens.weight", (vocab, hidden))
        if config.tied_embeddings:
            head = Projection((embedding,), (None,), self._linear)
        else:
            head = self._projection("", ("lm_head",), (vocab,), hidden, bias=False)
        layers = tuple(self._layer(number) for number in range(config.layers))
        norm = self._tensor("model.norm.weight", (hidden,))
        weights = DecoderWeights(embedding, layers, norm, head)
        _require_one_dtype(weights)
        return weights

    def _layer(self, number: int) -> Layer:
        c, prefix = self._config, f"model.layers.{number}."
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        qkv_rows = (c.query_width, c.key_width, c.key_width)
        hidden, inner = c.hidden_size, c.intermediate_size
        return Layer(
            input_norm=self._tensor(prefix + "input_layernorm.weight", (hidden,)),
            qkv=self._projection(
                attention, ("q_proj", "k_proj", "v_proj"), qkv_rows, hidden, bias=c.qkv_bias
            ),
            head_norm=self._head_norm(attention) if c.head_norm else None,
            output=self._projection(
                attention, ("o_proj",), (hidden,), c.query_width, bias=c.output_bias
            ),
            mlp_norm=self._tensor(prefix + "post_attention_layernorm.weight", (hidden,)),
            gate_up=self._projection(
                mlp, ("gate_proj", "up_proj"), (inner, inner), hidden, bias=c.mlp_bias
            ),
            down=self._projection(mlp, ("down_proj",), (hidden,), inner, bias=c.mlp_bias),
        )

    def _projection(
        self, prefix: str, parts: Sequence[str], rows: Sequence[int], inputs: int, *, bias: bool
    ) -> Projection:
        names = [f"{prefix}{part}.weight" for part in parts]
        fused = self._source.fused(names) if self._fuse and len(names) > 1 else None
        weights: tuple[Tensor, ...]
        if fused is not None:
            _require_shape(" + ".join(names), fused, (sum(rows), inputs))
            weights = (fused,)
        else:
            weights = tuple(
                self._tensor(name, (count, inputs)) for name, count in zip(names, rows, strict=True)
            )
        biases: tuple[Tensor | None, ...] = (None,) * len(weights)
        if bias:
            vectors = [
                self._tensor(f"{prefix}{part}.bias", (count,))
                for part, count in zip(parts, rows, strict=True)
            ]
            # Biases are vectors of a few kilobytes: joining them costs nothing.
            biases = tuple(vectors) if len(weights) > 1 else (torch.cat(vectors),)
        return Projection(weights, biases, self._linear)

    def _head_norm(self, attention: str) -> Tensor:
        c = self._config
        q = self._tensor(attention + "q_norm.weight", (c.head_size,))
        k = self._tensor(attention + "k_norm.weight", (c.head_size,))
        return torch.cat((q.expand(c.query_heads, -1), k.expand(c.key_heads, -1)))

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._source.tensor(name)
        _require_shape(name, tensor, shape)
        return tensor

    def _require_all(self) -> None:
        missing = [name for name in expected_names(self._config) if name not in self._names]
        if missing:
            shown = ", ".join(missing[:MAX_NAMES_IN_MESSAGE])
            more = len(missing) - MAX_NAMES_IN_MESSAGE
            raise CheckpointRejected(
                f"the checkpoint lacks {len(missing)} tensors: {shown}"
                + (f" and {more} more" if more > 0 else "")
                + "; fetch it again, or deploy it with `engine: transformers`",
                code="checkpoint_incomplete",
                details={"missing": missing},
            )


def expected_names(config: DecoderConfig) -> list[str]:
    """The names of all tensors that the decoder needs."""
    attention = ["q_proj", "k_proj", "v_proj"]
    parts = [f"self_attn.{part}.weight" for part in (*attention, "o_proj")]
    parts += [f"mlp.{part}.weight" for part in ("gate_proj", "up_proj", "down_proj")]
    parts += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    if config.qkv_bias:
        parts += [f"self_attn.{part}.bias" for part in attention]
    if config.output_bias:
        parts.append("self_attn.o_proj.bias")
    if config.mlp_bias:
        parts += [f"mlp.{part}.bias" for part in ("gate_proj", "up_proj", "down_proj")]
    if config.head_norm:
        parts += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
    names = [f"model.layers.{n}.{part}" for n in range(config.layers) for part in parts]
    names += ["model.embed_tokens.weight", "model.norm.weight"]
    if not config.tied_embeddings:
        names.append("lm_head.weight")
    return names


def _require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise CheckpointRejected(
            f"{name} has the shape {list(tensor.shape)} where config.json says {list(shape)}; "
            "weights and config.json are not of one model",
            code="checkpoint_mismatch",
            details={"tensor": name, "found": list(tensor.shape), "expected": list(shape)},
        )


def _require_one_dtype(weights: DecoderWeights) -> None:
    found = {weights.dtype, weights.norm.dtype}
    for layer in weights.layers:
        found |= {layer.input_norm.dtype, layer.mlp_norm.dtype}
        for projection in (layer.qkv, layer.output, layer.gate_up, layer.down):
            found |= {weight.dtype for weight in projection.weights}
    supported = {torch.float32, torch.float16, torch.bfloat16}
    if len(found) != 1 or not found <= supported:
        raise CheckpointRejected(
            f"weights of the types {', '.join(sorted(map(str, found)))} in one checkpoint; the "
            "lean decoder runs one of float32, float16 and bfloat16: deploy this one with "
            "`engine: transformers`",
            code="architecture_unsupported",
            param="engine",
        )
