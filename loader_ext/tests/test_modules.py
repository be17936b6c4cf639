"""Modules on the meta device become real without a copy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import stoker_loader as sl
from stoker_loader.errors import ModuleMismatchError


class Tiny(nn.Module):
    """Tied embedding and head, a persistent and a non-persistent buffer, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("table", torch.ones(2), persistent=False)


def on_meta() -> Tiny:
    with torch.device("meta"):
        return Tiny()


@pytest.fixture
def tiny(disk: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    state = {name: tensor.clone() for name, tensor in Tiny().state_dict().items()}
    del state["head.weight"]  # as transformers saves tied weights
    path = disk / "tiny.safetensors"
    save_file(state, path)
    return path, state


def test_parameters_are_the_mapped_tensors(tiny: tuple[Path, dict]) -> None:
    path, state = tiny
    module = on_meta()
    with sl.open(path) as checkpoint:
        assigned = checkpoint.load_into(module)
        for name, tensor in module.state_dict().items():
            if name != "head.weight":
                assert tensor.data_ptr() == checkpoint.tensor(name).data_ptr()
                assert torch.equal(tensor, state[name])
        assert checkpoint.stats.copied_bytes == 0
    assert assigned == sl.Assigned((), ())
    assert module.head.weight is module.embed.weight
    assert isinstance(module.embed.weight, nn.Parameter)
    assert module.embed.weight.requires_grad
    assert not module.scale.requires_grad
    assert module.table.is_meta  # not persistent: the caller's to rebuild
    module.body(torch.ones(2, 8)).sum().backward()
    assert module.body[0].weight.grad is not None


def test_either_name_of_a_tied_weight_will_do(disk: Path, tiny: tuple[Path, dict]) -> None:
    state = dict(tiny[1])
    state["head.weight"] = state.pop("embed.weight")
    path = disk / "other.safetensors"
    save_file(state, path)
    module = on_meta()
    with sl.open(path) as checkpoint:
        checkpoint.load_into(module)
    assert module.head.weight is module.embed.weight
    assert torch.equal(module.embed.weight, state["head.weight"])


def test_integer_weights_get_no_gradient(disk: Path, tiny: tuple[Path, dict]) -> None:
    state = dict(tiny[1])
    state["body.0.weight"] = torch.ones(8, 8, dtype=torch.int8)
    path = disk / "int8.safetensors"
    save_file(state, path)
    module = on_meta()
    with sl.open(path) as checkpoint:
        checkpoint.load_into(module)
    assert module.body[0].weight.dtype == torch.int8
    assert not module.body[0].weight.requires_grad


def test_what_does_not_fit_is_listed_and_nothing_is_assigned(
    disk: Path, tiny: tuple[Path, dict]
) -> None:
    state = dict(tiny[1])
    state["extra"] = torch.zeros(1)
    state["body.0.bias"] = torch.zeros(9)
    del state["steps"]
    path = disk / "wrong.safetensors"
    save_file(state, path)
    module = on_meta()
    with sl.open(path) as checkpoint, pytest.raises(ModuleMismatchError) as caught:
        checkpoint.load_into(module)
    error = caught.value
    assert error.missing == ("steps",)
    assert error.unexpected == ("extra",)
    assert error.mismatched == ("body.0.bias (module [8], checkpoint [9])",)
    assert str(error) == (
        f"{path}: does not fit the module; missing in the checkpoint: steps; unknown to the "
        "module: extra; of another shape: body.0.bias (module [8], checkpoint [9])"
    )
    assert all(tensor.is_meta for tensor in module.state_dict().values())
    with sl.open(path) as checkpoint, pytest.raises(ModuleMismatchError):
        checkpoint.load_into(module, strict=False)  # a shape is wrong either way


def test_not_strict_tells_what_it_left(disk: Path, tiny: tuple[Path, dict]) -> None:
    state = dict(tiny[1])
    state["extra"] = torch.zeros(1)
    del state["embed.weight"]
    path = disk / "loose.safetensors"
    save_file(state, path)
    module = on_meta()
    with sl.open(path) as checkpoint:
        assigned = checkpoint.load_into(module, strict=False)
    assert assigned.missing == ("embed.weight", "head.weight")
    assert assigned.unexpected == ("extra",)
    assert module.embed.weight.is_meta
    assert not module.scale.is_meta
