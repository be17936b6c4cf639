"""The part of a checkpoint's `config.json` that the lean decoder needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stoker_runtime.engines.causal_lm_rotary import RopeKind, RopeScaling
from stoker_runtime.errors import CheckpointRejected


@dataclass(frozen=True, slots=True)
class Family:
    """How an architecture departs from Llama's."""

    qkv_bias: bool = False
    head_norm: bool = False  # queries and keys are normalised per head (Qwen3)


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(),
    "MistralForCausalLM": Family(),
    "Qwen2ForCausalLM": Family(qkv_bias=True),
    "Qwen3ForCausalLM": Family(head_norm=True),
}


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Shapes and constants of a decoder of the Llama family."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    query_heads: int
    key_heads: int
    head_size: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    context_tokens: int
    windows: tuple[int | None, ...]  # tokens each layer looks back on; None: all
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_norm: bool

    @property
    def query_width(self) -> int:
        return self.query_heads * self.head_size

    @property
    def key_width(self) -> int:
        return self.key_heads * self.head_size


def supports(config: Mapping[str, Any]) -> bool:
    """Whether the lean decoder computes exactly what this configuration describes."""
    return unsupported_reason(config) is None


def unsupported_reason(config: Mapping[str, Any]) -> str | None:
    """Why the lean decoder cannot run this configuration, or None when it can."""
    architecture = architecture_of(config)
    if architecture not in FAMILIES:
        return f"the architecture {architecture} is not of the Llama family"
    if config.get("hidden_act", "silu") != "silu":
        return f"hidden_act is {config['hidden_act']!r}, not 'silu'"
    if config.get("quantization_config"):
        return "the weights are quantised"
    kind = _rope(config).get("rope_type", "default")
    if kind not in tuple(RopeKind):
        return f"the rotary embedding is scaled by {kind!r}"
    if _rope(config).get("partial_rotary_factor", 1.0) != 1.0:
        return "only a part of each head is rotated"
    return None


def architecture_of(config: Mapping[str, Any]) -> str:
    """The checkpoint's first architecture. Raises CheckpointRejected if it names none."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointRejected(
            "config.json names no architecture; save the model with save_pretrained, "
            'which writes "architectures"',
            code="checkpoint_config_invalid",
            param="architectures",
        )
    return names[0]


def parse_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Reads a `config.json`.

    Raises:
        CheckpointRejected: a key is missing or makes no sense, or the decoder cannot run this.
    """
    if (reason := unsupported_reason(config)) is not None:
        raise CheckpointRejected(
            f"{reason}; deploy it with `engine: transformers`",
            code="architecture_unsupported",
            param="engine",
        )
    family = FAMILIES[architecture_of(config)]
    hidden_size = _count(config, "hidden_size")
    query_heads = _count(config, "num_attention_heads")
    key_heads = _count(config, "num_key_value_heads", query_heads)
    layers = _count(config, "num_hidden_layers")
    if query_heads % key_heads:
        raise _invalid("num_key_value_heads", f"{key_heads} does not divide {query_heads} heads")
    attention_bias = bool(config.get("attention_bias", False))
    rope = _rope(config)
    return DecoderConfig(
        vocab_size=_count(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_count(config, "intermediate_size"),
        layers=layers,
        query_heads=query_heads,
        key_heads=key_heads,
        head_size=_count(config, "head_dim", hidden_size // query_heads),
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.get("rope_theta", 10_000.0)),
        rope_scaling=RopeScaling.parse(rope),
        context_tokens=_count(config, "max_position_embeddings"),
        windows=_windows(config, layers),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias or attention_bias,
        output_bias=attention_bias and not family.qkv_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        head_norm=family.head_norm,
    )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers 5 writes `rope_parameters`, its elders `rope_theta` and `rope_scaling`."""
    merged: dict[str, Any] = {}
    if "rope_theta" in config:
        merged["rope_theta"] = config["rope_theta"]
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(key), dict):
            merged.update(config[key])
    if "rope_type" not in merged and "type" in merged:
        merged["rope_type"] = merged["type"]
    return merged


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    if window is None:
        return (None,) * layers
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
    if architecture_of(config) in ("Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        if not config.get("use_sliding_window", False):
            return (None,) * layers
        first = int(config.get("max_window_layers", 28))
        return tuple(int(window) if layer >= first else None for layer in range(layers))
    if architecture_of(config) == "MistralForCausalLM":
        return (int(window),) * layers
    return (None,) * layers


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise _invalid(key, "it is missing")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _invalid(key, f"{value!r} is not a positive whole number")
    return value


def _invalid(key: str, reason: str) -> CheckpointRejected:
    return CheckpointRejected(
        f"config.json: {key}: {reason}; fetch the checkpoint again",
        code="checkpoint_config_invalid",
        param=key,
    )
