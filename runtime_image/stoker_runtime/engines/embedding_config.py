"""What a sentence-embedding checkpoint says of itself, read once and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from stoker_runtime.errors import CheckpointRejected
from stoker_runtime.weights import read_json

POOLING_FOLDER = "1_Pooling"
KNOWN_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})


class Pooling(StrEnum):
    """How token vectors become one vector (Reimers and Gurevych, Sentence-BERT, 2019)."""

    MEAN = "pooling_mode_mean_tokens"
    CLS = "pooling_mode_cls_token"
    MAX = "pooling_mode_max_tokens"
    LAST = "pooling_mode_lasttoken"


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """A BERT encoder's sizes, as `config.json` names them."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    max_positions: int
    norm_eps: float
    activation: str


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """How texts become vectors; `max_tokens` bounds one input, longer ones are cut."""

    architecture: str
    pooling: Pooling
    max_tokens: int | None  # None: the encoder's own bound
    lower_case: bool


def read_embedding_config(checkpoint: Path) -> EmbeddingConfig:
    """Reads `config.json` and the sentence-transformers files beside it, where there are any.

    Raises:
        CheckpointRejected: a file is damaged, or asks for a stage that is not served.
    """
    architectures = read_json(checkpoint / "config.json").get("architectures") or ["unknown"]
    _check_modules(checkpoint)
    sentence = _read_optional(checkpoint / "sentence_bert_config.json")
    return EmbeddingConfig(
        architecture=str(architectures[0]),
        pooling=_pooling(_read_optional(checkpoint / POOLING_FOLDER / "config.json")),
        max_tokens=sentence.get("max_seq_length"),
        lower_case=bool(sentence.get("do_lower_case", False)),
    )


def read_encoder_shape(checkpoint: Path) -> EncoderShape:
    """Reads a BERT encoder's `config.json`.

    Raises:
        CheckpointRejected: a size is missing, or positions are not absolute.
    """
    config = read_json(checkpoint / "config.json")
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise CheckpointRejected(
            f"position_embedding_type {positions!r} is not served; use a BERT with absolute ones",
            code="checkpoint_unsupported",
        )
    try:
        return EncoderShape(
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            max_positions=int(config["max_position_embeddings"]),
            norm_eps=float(config.get("layer_norm_eps", 1e-12)),
            activation=str(config.get("hidden_act", "gelu")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointRejected(
            f"config.json does not describe a BERT encoder: {error!r}",
            code="checkpoint_config_invalid",
        ) from error


def _check_modules(checkpoint: Path) -> None:
    path = checkpoint / "modules.json"
    if not path.exists():
        return
    try:
        stages = [
            str(module["type"]).rsplit(".", 1)[-1] for module in json.loads(path.read_bytes())
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointRejected(
            f"modules.json is not a list of stages: {error!r}", code="checkpoint_config_invalid"
        ) from error
    unknown = [stage for stage in stages if stage not in KNOWN_MODULES]
    if unknown:
        raise CheckpointRejected(
            f"modules.json asks for the stage {unknown[0]}, which engine embedding does not have; "
            f"it has {', '.join(sorted(KNOWN_MODULES))}; serve this model by a handler",
            code="checkpoint_unsupported",
        )


def _pooling(config: dict[str, Any]) -> Pooling:
    asked = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
    if not asked:
        return Pooling.MEAN
    try:
        [mode] = asked
        return Pooling(mode)
    except ValueError as error:
        raise CheckpointRejected(
            f"{POOLING_FOLDER}/config.json asks for {' and '.join(asked)}; "
            f"engine embedding has one of {', '.join(Pooling)}",
            code="checkpoint_unsupported",
        ) from error


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
