"""Finds the weights in what a pickle held: pure decisions about names, wrappers and ties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from stoker_loader.errors import EntryRefusedError, PickleInvalidError

if TYPE_CHECKING:
    import torch

# Where trainers keep the weights beside optimizers, epochs and schedules, in the order in which
# they are looked for: Lightning, common loops, fairseq and timm, DeepSpeed, BasicSR.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params")
MAX_DEPTH = 4  # of wrappers in wrappers; a pickle can also make a dict that holds itself
# What DistributedDataParallel and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")
# Step counters and the like: nothing that a module could need as a weight.
HARMLESS = (bool, int, float, str, bytes, type(None))
# The one tie that every reader of `tie_word_embeddings` makes again.
TIED_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by name, and the names of the entries that were left out."""

    tensors: dict[str, torch.Tensor]
    skipped: tuple[str, ...]


def select(loaded: object, file: str) -> Weights:
    """The tensors in what was loaded from `file`.

    Beside a trainer's state dict everything else is left out, and in it plain scalars and text.
    Raises PickleInvalidError if there are no tensors, EntryRefusedError for any other entry.
    """
    entries, skipped = _unwrapped(loaded)
    if not any(_is_tensor(value) for value in entries.values()):
        raise PickleInvalidError(
            f"{file}: holds no tensors by name; name the file with the model's weights", file=file
        )
    tensors: dict[str, torch.Tensor] = {}
    for name, value in entries.items():
        if _is_tensor(value) and isinstance(name, str):
            tensors[name] = value
        elif isinstance(value, HARMLESS):
            skipped.append(str(name))
        else:
            raise EntryRefusedError(
                f"{file}: entry {str(name)!r}: is a {type(value).__name__} and no tensor;"
                " save the model's state_dict alone where you trust the file",
                file=file,
                tensor=str(name),
            )
    return Weights(tensors, tuple(skipped))


def without_prefixes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop what training put before the name of every tensor of a model, of all its shards."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def drop_tied_head(
    tensors: Mapping[str, torch.Tensor], *, tie_word_embeddings: bool
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Leave out an output head that is the input embedding: the tensors, and `{dropped: kept}`.

    safetensors has no aliases. Only this tie is made again by everyone who reads the
    configuration, as Transformers' own `save_pretrained` relies on; all other names of shared
    tensors are written each with its own bytes, so that no reader misses one.
    """
    if not tie_word_embeddings:
        return dict(tensors), {}
    first: dict[tuple[object, ...], str] = {}
    dropped: dict[str, str] = {}
    for name in sorted(tensors, key=lambda name: name.endswith(TIED_HEAD)):
        kept = first.setdefault(_place(tensors[name]), name)
        if kept != name and name.endswith(TIED_HEAD):
            dropped[name] = kept
    return {name: value for name, value in tensors.items() if name not in dropped}, dropped


def _unwrapped(loaded: object) -> tuple[Mapping[object, object], list[str]]:
    skipped: list[str] = []
    for _ in range(MAX_DEPTH):
        if not isinstance(loaded, Mapping):
            break
        wrapper = next((key for key in WRAPPERS if _holds_tensors(loaded.get(key))), None)
        if wrapper is None:
            return loaded, skipped
        skipped.extend(str(name) for name in loaded if name != wrapper)
        loaded = loaded[wrapper]
    return {}, skipped


def _holds_tensors(value: object, depth: int = 1) -> bool:
    if not isinstance(value, Mapping):
        return False
    if any(_is_tensor(item) for item in value.values()):
        return True
    return depth < MAX_DEPTH and any(_holds_tensors(value.get(w), depth + 1) for w in WRAPPERS)


def _is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    import torch

    return isinstance(value, torch.Tensor)


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for two tensors that are the same elements in memory."""
    import torch

    if tensor.layout != torch.strided or not tensor.numel():
        return (id(tensor),)
    return (
        tensor.untyped_storage().data_ptr(),
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
    )
