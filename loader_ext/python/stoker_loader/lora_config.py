"""What `adapter_config.json` says of a LoRA adapter, as peft writes it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stoker_loader.errors import (
    AdapterInvalidError,
    AdapterUnsupportedError,
    CheckpointNotFoundError,
    StorageError,
)

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 8 << 20
# What a pattern may be: to match one that repeats groups, or repeats much, may take for ever.
MAX_PATTERN_CHARACTERS = 200
MAX_REPEATS = 2
REPEATED_GROUP = re.compile(r"\)[*+?{]")
# Of these some matter in training alone, and the others are in the tensors' names already.
IRRELEVANT = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config",
    "eva_config", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
})  # fmt: skip
UNDERSTOOD = frozenset({
    "alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "peft_type",
    "r", "rank_pattern", "use_rslora",
})  # fmt: skip
# Ways to begin that leave the base weights alone; PiSSA, OLoRA, CorDA and LoftQ change them.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Ranks and scales of an adapter's modules: one for all, and patterns for exceptions."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool

    def rank_of(self, module: str) -> int:
        """The inner dimension of a module's pair."""
        return self.rank_pattern.get(_pattern_of(module, self.rank_pattern), self.rank)

    def scale_of(self, module: str) -> float:
        """What the product is multiplied by: alpha / rank (Hu et al., arXiv:2106.09685), with
        `use_rslora` alpha / sqrt(rank) (Kalajdzievski, arXiv:2312.03732)."""
        rank = self.rank_of(module)
        alpha = self.alpha_pattern.get(_pattern_of(module, self.alpha_pattern), self.alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def read_config(directory: Path) -> LoraConfig:
    """Read and check a directory's configuration.

    Raises CheckpointNotFoundError, AdapterInvalidError, AdapterUnsupportedError, StorageError.
    """
    file = directory / CONFIG_FILE
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise _invalid(file, "it is too long")
        document = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointNotFoundError(
            f"{file}: no such file; name the directory that peft's save_pretrained wrote",
            file=str(file),
        ) from error
    except OSError as error:
        raise StorageError(
            f"{file}: read: {error.strerror}; check its rights and its disk",
            file=str(file),
            errno=error.errno,
        ) from error
    except (ValueError, RecursionError) as error:
        raise _invalid(file, str(error)) from error
    if not isinstance(document, dict):
        raise _invalid(file, "it is no object")
    _refuse_unsupported(file, document)
    return LoraConfig(
        rank=_positive_integer(file, "r", document.get("r")),
        alpha=_number(file, "lora_alpha", document.get("lora_alpha")),
        rank_pattern=_pattern(file, "rank_pattern", document, _positive_integer),
        alpha_pattern=_pattern(file, "alpha_pattern", document, _number),
        use_rslora=bool(document.get("use_rslora")),
    )


def _refuse_unsupported(file: Path, document: Mapping[str, Any]) -> None:
    kind = document.get("peft_type")
    if kind != "LORA":
        raise _unsupported(file, f"peft_type {kind!r}")
    if document.get("bias", "none") != "none":
        raise _unsupported(file, f"bias {document['bias']!r}, which changes the base model's own")
    start = document.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise _unsupported(file, f"init_lora_weights {start!r}, which changes the base weights")
    # Options that this version has never heard of may mean anything, unless they are off.
    for option in sorted(document.keys() - IRRELEVANT - UNDERSTOOD):
        if document[option]:
            raise _unsupported(file, f"{option} {document[option]!r}")


def _pattern_of(module: str, patterns: Mapping[str, object]) -> str:
    """The first pattern that a module's name ends with, as peft matches them; else its name."""
    for pattern in patterns:
        if re.match(_expression(pattern), module):
            return pattern
    return module


def _expression(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _pattern(file: Path, name: str, document: Mapping[str, Any], check: Any) -> dict[str, Any]:
    patterns = document.get(name) or {}
    if not isinstance(patterns, dict):
        raise _invalid(file, f"{name} is no object")
    for pattern in patterns:
        if len(pattern) > MAX_PATTERN_CHARACTERS:
            raise _invalid(file, f"{name} has a pattern of {len(pattern)} characters")
        repeats = sum(pattern.count(sign) for sign in "*+{")
        if repeats > MAX_REPEATS or REPEATED_GROUP.search(pattern):
            raise _unsupported(file, f"in {name} the pattern {pattern!r}, which repeats too much")
        try:
            re.compile(_expression(pattern))
        except (re.error, OverflowError, RecursionError) as error:
            raise _invalid(file, f"{name} has the pattern {pattern!r}: {error}") from error
    return {key: check(file, f"{name}[{key!r}]", value) for key, value in patterns.items()}


def _positive_integer(file: Path, name: str, value: object) -> int:
    if type(value) is not int or value <= 0:
        raise _invalid(file, f"{name} must be a positive integer, not {value!r}")
    return value


def _number(file: Path, name: str, value: object) -> float:
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer beyond all floats
            number = math.inf
    if not math.isfinite(number):
        raise _invalid(file, f"{name} must be a number, not {value!r}")
    return number


def _invalid(file: Path, reason: str) -> AdapterInvalidError:
    return AdapterInvalidError(
        f"{file}: is not what peft writes: {reason}; save the adapter again", file=str(file)
    )


def _unsupported(file: Path, what: str) -> AdapterUnsupportedError:
    return AdapterUnsupportedError(
        f"{file}: needs {what}; only plain LoRA can be attached: merge this adapter into its base"
        " model with peft, and load the result",
        file=str(file),
    )
