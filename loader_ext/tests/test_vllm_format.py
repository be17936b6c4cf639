"""The load format for vLLM, stood in for by its registry and the class that its loaders are of."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

import stoker_loader as sl
from stoker_loader import errors, vllm_format

# The two names that a plug-in needs, as vLLM has them (`vllm/model_executor/model_loader`).
REGISTRY = """
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
LOADERS = {}
def register_model_loader(load_format):
    def keep(cls):
        assert issubclass(cls, BaseModelLoader)
        LOADERS[load_format] = cls
        return cls
    return keep
"""
BASE = """
from abc import ABC, abstractmethod
class BaseModelLoader(ABC):
    def __init__(self, load_config):
        self.load_config = load_config
    @abstractmethod
    def download_model(self, model_config): ...
    @abstractmethod
    def load_weights(self, model, model_config): ...
"""
SERVE = """
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace
import torch
from safetensors.torch import load_file
from vllm.model_executor.model_loader import LOADERS

for plugin in entry_points(group="vllm.general_plugins"):
    if plugin.name == "stoker":
        plugin.load()()
loader = LOADERS["stoker"](SimpleNamespace(model_loader_extra_config={"verify": True}))
config = SimpleNamespace(model=sys.argv[1], revision=None)
loader.download_model(config)

class Model:
    def load_weights(self, weights):
        self.weights = {name: tensor.clone() for name, tensor in weights}

model = Model()
loader.load_weights(model, config)
expected = load_file(sys.argv[1] + "/model.safetensors")
assert model.weights.keys() == expected.keys()
assert all(torch.equal(model.weights[name], tensor) for name, tensor in expected.items())
print(len(expected))
"""


def test_vllm_finds_the_format_and_loads_by_it(
    decoder: tuple[Path, dict[str, torch.Tensor]], disk: Path
) -> None:
    directory, tensors = decoder
    vllm = disk / "library" / "vllm" / "model_executor" / "model_loader"
    vllm.mkdir(parents=True)
    for package in (vllm.parents[1], vllm.parent):
        (package / "__init__.py").touch()
    (vllm / "__init__.py").write_text(REGISTRY)
    (vllm / "base_loader.py").write_text(BASE)
    sl.layout(directory, disk / "laid")  # with the digests that `verify` compares with
    done = subprocess.run(
        [sys.executable, "-c", SERVE, disk / "laid"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(disk / "library"), "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout == f"{len(tensors)}\n", done.stderr


def test_the_package_announces_it() -> None:
    (found,) = entry_points(group="vllm.general_plugins", name="stoker")
    assert found.value == "stoker_loader.vllm_format:register"


def test_what_is_not_here_and_options_that_are_none() -> None:
    class Config:
        model = "meta-llama/Llama-3.2-1B"
        model_weights = ""

    with pytest.raises(errors.CheckpointNotFoundError, match="download the model first"):
        vllm_format.directory_of(Config)
    with pytest.raises(ValueError, match="no option 'concurrency'; there are verify, source"):
        vllm_format.options_of({"concurrency": 16})
