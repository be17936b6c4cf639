"""Gives a module on the meta device its parameters: planned first, then assigned, no copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stoker_loader.error_base import listing
from stoker_loader.errors import ModuleMismatchError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Assigned:
    """What `load_into` left alone: names the module wants, and names that it does not know."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Slot:
    """One attribute of one submodule that a state dict would name."""

    name: str
    owner: torch.nn.Module
    attribute: str
    tensor: torch.Tensor


def assign(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, strict: bool, file: str
) -> Assigned:
    """Assign tensors to a module's parameters and persistent buffers, all or none.

    Slots that share one parameter keep sharing one; any of their names will do. The tensor's
    dtype wins over the module's. Raises ModuleMismatchError for a shape that differs, and if
    `strict` for a missing or unexpected name.
    """
    import torch

    tied: dict[int, list[_Slot]] = {}
    for slot in _slots(module):
        tied.setdefault(id(slot.tensor), []).append(slot)

    missing: list[str] = []
    mismatched: list[str] = []
    planned: list[tuple[list[_Slot], torch.Tensor]] = []
    for slots in tied.values():
        name = next((slot.name for slot in slots if slot.name in tensors), None)
        if name is None:
            missing.extend(slot.name for slot in slots)
            continue
        wanted, found = slots[0].tensor, tensors[name]
        if wanted.shape != found.shape:
            mismatched.append(f"{name} (module {_shape(wanted)}, checkpoint {_shape(found)})")
        planned.append((slots, found))
    known = {slot.name for slots in tied.values() for slot in slots}
    unexpected = [name for name in tensors if name not in known]

    if mismatched or (strict and (missing or unexpected)):
        raise _mismatch(file, missing, unexpected, mismatched)
    for slots, tensor in planned:
        value = tensor
        if isinstance(slots[0].tensor, torch.nn.Parameter):
            # Integers cannot have gradients, whatever the module's own dtype allowed.
            differentiable = tensor.is_floating_point() or tensor.is_complex()
            value = torch.nn.Parameter(tensor, slots[0].tensor.requires_grad and differentiable)
        for slot in slots:
            setattr(slot.owner, slot.attribute, value)
    return Assigned(tuple(missing), tuple(unexpected))


def _slots(module: torch.nn.Module) -> Iterator[_Slot]:
    """Parameters and persistent buffers, each place by its own name even where they are tied."""
    persistent = module.state_dict(keep_vars=True).keys()
    for prefix, owner in module.named_modules(remove_duplicate=False):
        start = f"{prefix}." if prefix else ""
        own = (
            *owner.named_parameters(recurse=False, remove_duplicate=False),
            *owner.named_buffers(recurse=False, remove_duplicate=False),
        )
        for attribute, tensor in own:
            if start + attribute in persistent:
                yield _Slot(start + attribute, owner, attribute, tensor)


def _shape(tensor: torch.Tensor) -> list[int]:
    return list(tensor.shape)


def _mismatch(
    file: str, missing: list[str], unexpected: list[str], mismatched: list[str]
) -> ModuleMismatchError:
    found = listing(
        {
            "missing in the checkpoint": missing,
            "unknown to the module": unexpected,
            "of another shape": mismatched,
        }
    )
    return ModuleMismatchError(
        f"{file}: does not fit the module; {found}",
        file=file,
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(mismatched),
    )
