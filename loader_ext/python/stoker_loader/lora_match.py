"""Finds the modules that an adapter is for, and lists all that do not fit before any is hooked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stoker_loader.error_base import listing
from stoker_loader.errors import AdapterMismatchError

if TYPE_CHECKING:
    import torch

# Where decoders keep several projections as one weight, by the name of the projection.
FUSIONS = {
    **dict.fromkeys(
        ("q_proj", "k_proj", "v_proj", "query", "key", "value"),
        ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "W_pack", "qkv"),
    ),
    **dict.fromkeys(("gate_proj", "up_proj"), ("gate_up_proj",)),
}


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two factors for one module: `down` [rank, inputs] and `up` [outputs, rank].

    An embedding's inputs are its rows. Both are views of the adapter's mapped file.
    """

    module: str
    down: torch.Tensor
    up: torch.Tensor
    scale: float
    of_embedding: bool


def match(
    model: torch.nn.Module,
    pairs: Sequence[LoraPair],
    copies: Mapping[str, torch.Tensor],
    *,
    file: str,
) -> list[tuple[LoraPair, torch.nn.Module]]:
    """Each pair with its module. `copies` of weights must equal the model's own, by module.

    Raises AdapterMismatchError, which lists every misfit.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    missing: list[str] = []
    fused: list[str] = []
    mismatched: list[str] = []
    matched: list[tuple[LoraPair, torch.nn.Module]] = []
    for pair in pairs:
        module = modules.get(pair.module)
        if module is None:
            whole = _fused_into(modules, pair.module)
            if whole is None:
                missing.append(pair.module)
            else:
                fused.append(f"{pair.module} (in {whole})")
            continue
        reason = _misfit(module, pair)
        if reason is not None:
            mismatched.append(f"{pair.module} ({reason})")
        matched.append((pair, module))
    for name, copy in copies.items():
        if not _equals_own(modules.get(name), copy):
            mismatched.append(f"{name} (the adapter comes with another weight for it)")
    if missing or fused or mismatched:
        raise _mismatch(file, missing, fused, mismatched)
    return matched


def _misfit(module: torch.nn.Module, pair: LoraPair) -> str | None:
    from torch import nn

    kind = type(module).__name__
    if isinstance(module, nn.Embedding):
        if type(module) is not nn.Embedding or not pair.of_embedding:
            return f"is a {kind}"
        wanted = (module.num_embeddings, module.embedding_dim)
    elif pair.of_embedding or kind == "NonDynamicallyQuantizableLinear":
        # The latter's weight is used by attention without calling the module: no hook would run.
        return f"is a {kind}"
    elif isinstance(module, nn.Linear):
        wanted = (module.in_features, module.out_features)
    elif kind == "Conv1D" and isinstance(module.weight, nn.Parameter) and module.weight.ndim == 2:
        wanted = (module.weight.shape[0], module.weight.shape[1])  # as GPT-2 keeps its weights
    else:
        return f"is a {kind}"
    if any(parameter.is_meta for parameter in module.parameters()):
        return "has no weights yet: load them first"
    found = (pair.down.shape[1], pair.up.shape[0])
    if found != wanted:
        return f"model {wanted[0]} to {wanted[1]}, adapter {found[0]} to {found[1]}"
    return None


def _equals_own(module: torch.nn.Module | None, copy: torch.Tensor) -> bool:
    import torch

    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.is_meta or weight.shape != copy.shape:
        return False
    return torch.equal(weight.detach(), copy.to(device=weight.device, dtype=weight.dtype))


def _fused_into(modules: dict[str, torch.nn.Module], name: str) -> str | None:
    """The name of the one weight that stands for this projection and its neighbours."""
    parent, _, leaf = name.rpartition(".")
    owner = modules.get(parent)
    found = (whole for whole in FUSIONS.get(leaf, ()) if getattr(owner, whole, None) is not None)
    return next(found, None) if owner is not None else None


def _mismatch(
    file: str, missing: list[str], fused: list[str], mismatched: list[str]
) -> AdapterMismatchError:
    found = listing(
        {
            "missing in the model": missing,
            "fused in the model": fused,
            "of another kind or shape": mismatched,
        }
    )
    return AdapterMismatchError(
        f"{file}: does not fit the model; {found}; attach it to the model that it was"
        " trained on, as Transformers loads it",
        file=file,
        missing=tuple(missing),
        fused=tuple(fused),
        mismatched=tuple(mismatched),
    )
