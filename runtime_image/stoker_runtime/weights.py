"""The runtime's only door to the native loader, and to a checkpoint's configuration files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

import stoker_loader
from stoker_runtime.errors import CheckpointRejected

MAX_JSON_BYTES = 64 * 1024 * 1024
NEXT_STEPS = {
    "pickle_refused": "run: python -m stoker_loader convert SOURCE DESTINATION",
    "no_safetensors": "push a folder that holds model.safetensors",
    "checkpoint_not_found": "push it first",
}


class TensorSource(Protocol):
    """Named tensors, handed out without a copy."""

    @property
    def names(self) -> Sequence[str]: ...

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""

    def fused(self, names: Sequence[str]) -> Tensor | None:
        """One view over tensors that lie side by side in this order, else None."""


def read_json(path: Path) -> dict[str, Any]:
    """Reads one of a checkpoint's JSON objects.

    Raises:
        CheckpointRejected: the file is missing, too large, or holds no JSON object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointRejected(
                f"{path.name} has {size} bytes, more than {MAX_JSON_BYTES}",
                code="checkpoint_config_invalid",
                param=path.name,
            )
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointRejected(
            f"the checkpoint {path.parent.name} has no {path.name}; fetch it again, "
            "or push a folder that save_pretrained wrote",
            code="checkpoint_incomplete",
            param=path.name,
        ) from error
    except (ValueError, OSError) as error:
        raise CheckpointRejected(
            f"{path.name} cannot be read: {error}; fetch the checkpoint again",
            code="checkpoint_config_invalid",
            param=path.name,
        ) from error
    if not isinstance(document, dict):
        raise CheckpointRejected(
            f"{path.name} holds no JSON object; fetch the checkpoint again",
            code="checkpoint_config_invalid",
            param=path.name,
        )
    return document


def open_weights(checkpoint: Path, *, arriving: bool) -> stoker_loader.Checkpoint:
    """Opens the weights; those that are arriving are waited for tensor by tensor.

    Raises LoaderErrors, see `rejecting`.
    """
    return stoker_loader.open_arriving(checkpoint) if arriving else stoker_loader.open(checkpoint)


def eos_ids(config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> frozenset[int]:
    """The tokens that end an answer; `generation_config.json` has the last word."""
    for source in (generation_config, config):
        value = source.get("eos_token_id")
        if isinstance(value, int):
            return frozenset({value})
        if isinstance(value, list) and value:
            return frozenset(int(token) for token in value)
    return frozenset()


@contextmanager
def rejecting(checkpoint: Path) -> Iterator[None]:
    """Turns what the loader raises about a checkpoint into `CheckpointRejected`."""
    try:
        yield
    except stoker_loader.LoaderError as error:
        raise CheckpointRejected(
            f"{error}; {NEXT_STEPS.get(error.code, 'fetch the checkpoint again')}",
            code=error.code,
            details={
                "checkpoint": checkpoint.name,
                **{
                    name: value
                    for name in ("file", "tensor", "offset")
                    if (value := getattr(error, name)) is not None
                },
            },
        ) from error
