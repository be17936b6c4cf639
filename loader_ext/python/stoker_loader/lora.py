"""LoRA adapters over a loaded model: mapped like a checkpoint, attached without touching weights.

adapter = open_adapter("adapter-directory")       # as peft's save_pretrained wrote it
attached = adapter.attach(model, name="polite")   # y + scale * B(A(x)) from here on
switch(model, "other")                            # only that one; none without a name
attached.detach()                                 # the model is as it was
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stoker_loader.errors import (
    AdapterInvalidError,
    AdapterNameError,
    AdapterUnsupportedError,
    CheckpointNotFoundError,
    PickleRefusedError,
)
from stoker_loader.lora_config import read_config
from stoker_loader.lora_hooks import Attached as Attached
from stoker_loader.lora_hooks import LoraHook, attached_to
from stoker_loader.lora_match import LoraPair, match
from stoker_loader.opening import open_checkpoint
from stoker_loader.records import LoadStats

if TYPE_CHECKING:
    import torch

# What peft writes, and what converting its directory gives.
WEIGHTS_FILES = ("adapter_model.safetensors", "model.safetensors")
PICKLE_FILE = "adapter_model.bin"
TENSOR_NAME = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])"
    r"(?(embedding)|\.weight)"
)
# peft saves the weight of an embedding or head beside its adapter, changed or not.
COPY_NAME = re.compile(r"base_model\.model\.(?P<module>.+?)(\.base_layer)?\.weight")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in memory; its pairs live as long as anything that it is attached to.

    `copies` are weights of the base model by module, that peft saved along: they must be its.
    """

    path: Path
    pairs: tuple[LoraPair, ...]
    copies: Mapping[str, torch.Tensor]
    stats: LoadStats

    def attach(self, model: torch.nn.Module, name: str = "default") -> Attached:
        """Add the adapter to a model's outputs, enabled, by forward hooks; weights stay theirs.

        Several adapters that are enabled add up, as peft's do. Factors are copied to the device of
        the weight beside them only if that is not the CPU. Nothing may run the model meanwhile.
        Raises AdapterMismatchError with every module that does not fit, AdapterNameError.
        """
        if name in attached_to(model):
            raise AdapterNameError(
                f"{self.path}: an adapter {name!r} is attached already; detach it, or name another"
            )
        matched = match(model, self.pairs, self.copies, file=str(self.path))
        attached = Attached(name, self.path)
        # All copies before the first hook: a device may be too small for one of them.
        hooks = [(module, _hook(attached, pair, module)) for pair, module in matched]
        for module, hook in hooks:
            attached.hold(module.register_forward_hook(hook, with_kwargs=True))
        return attached


def open_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read an adapter that peft saved: its tensors as views of the mapped file.

    Raises CheckpointNotFoundError, PickleRefusedError, AdapterInvalidError,
    AdapterUnsupportedError (whatever is not plain LoRA), and what opening a checkpoint raises.
    """
    directory = Path(path)
    config = read_config(directory)
    file = _weights_file(directory)
    with open_checkpoint(file) as checkpoint:
        tensors = checkpoint.load()
        stats = checkpoint.stats
    sides: dict[tuple[str, bool], dict[str, torch.Tensor]] = {}
    copies: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        found = TENSOR_NAME.fullmatch(name)
        copied = COPY_NAME.fullmatch(name) if found is None and ".lora_" not in name else None
        if copied is not None:
            copies[copied["module"]] = tensor
            continue
        if found is None:
            raise AdapterUnsupportedError(
                f"{file}: tensor {name!r}: is no factor of plain LoRA; merge this adapter into its"
                " base model with peft, and load the result",
                file=str(file),
                tensor=name,
            )
        key = (found["module"], found["embedding"] is not None)
        sides.setdefault(key, {})[found["side"]] = tensor
    pairs = []
    for (module, of_embedding), pair in sides.items():
        rank = config.rank_of(module)
        _check_pair(file, module, pair, rank)
        scale = config.scale_of(module)
        pairs.append(LoraPair(module, pair["A"], pair["B"], scale, of_embedding))
    if not pairs:
        raise _invalid(file, "it holds no tensors")
    return Adapter(directory, tuple(pairs), copies, stats)


def switch(model: torch.nn.Module, *names: str) -> None:
    """Enable exactly these of the adapters that are attached; none of them without a name.

    Nothing may run the model meanwhile. Raises AdapterNameError, and then nothing has changed.
    """
    attached = attached_to(model)
    unknown = [name for name in names if name not in attached]
    if unknown:
        raise AdapterNameError(
            f"no adapter {unknown[0]!r} is attached; there are: {', '.join(attached) or 'none'}"
        )
    for name, adapter in attached.items():
        adapter.enabled = name in names


def _hook(attached: Attached, pair: LoraPair, module: torch.nn.Module) -> LoraHook:
    device = next(module.parameters()).device
    down, up = pair.down.to(device), pair.up.to(device)
    return LoraHook(attached, down, up, pair.scale, pair.of_embedding)


def _weights_file(directory: Path) -> Path:
    for name in WEIGHTS_FILES:
        if (directory / name).is_file():
            return directory / name
    if (directory / PICKLE_FILE).is_file():
        raise PickleRefusedError(
            f"{directory / PICKLE_FILE}: is a pickle, which can run code when it is read; convert"
            f" it first: python -m stoker_loader convert {directory} DESTINATION",
            file=str(directory / PICKLE_FILE),
        )
    raise CheckpointNotFoundError(
        f"{directory}: holds no {WEIGHTS_FILES[0]}; name the directory that peft's"
        " save_pretrained wrote",
        file=str(directory),
    )


def _check_pair(file: Path, module: str, pair: dict[str, torch.Tensor], rank: int) -> None:
    if pair.keys() != {"A", "B"}:
        raise _invalid(file, f"{module} has one factor of two")
    down, up = pair["A"], pair["B"]
    if down.ndim != 2 or up.ndim != 2 or (down.shape[0], up.shape[1]) != (rank, rank):
        shapes = f"{list(down.shape)} and {list(up.shape)}"
        raise _invalid(file, f"{module} has factors {shapes}, whose inner dimension is not {rank}")
    if not (down.is_floating_point() and up.is_floating_point()):
        raise _invalid(file, f"{module} has factors of {down.dtype} and {up.dtype}")


def _invalid(file: Path, reason: str) -> AdapterInvalidError:
    return AdapterInvalidError(
        f"{file}: is not what peft writes: {reason}; save the adapter again", file=str(file)
    )
