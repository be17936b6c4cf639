"""Checkpoints of every shape that the tests need, on a real disk."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

REPOSITORY = Path(__file__).parents[2]

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory beside the repository: /tmp may be a tmpfs, which has no pages to evict."""
    cache = REPOSITORY / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="loader-test-") as directory:
        yield Path(directory)


def decoder_tensors(layers: int = 2, width: int = 64) -> Tensors:
    """The weights of a small decoder, in an order that no fusion likes."""
    generator = torch.Generator().manual_seed(7)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    tensors = {"embed.weight": weight(512, width), "norm.weight": weight(width)}
    for layer in range(layers):
        start = f"layers.{layer}."
        tensors[start + "attn.k_proj.weight"] = weight(width // 2, width)
        tensors[start + "attn.k_proj.bias"] = weight(width // 2)
        tensors[start + "attn.o_proj.weight"] = weight(width, width)
        tensors[start + "attn.q_proj.weight"] = weight(width, width)
        tensors[start + "attn.q_proj.bias"] = weight(width)
        tensors[start + "attn.v_proj.weight"] = weight(width // 2, width)
        tensors[start + "attn.v_proj.bias"] = weight(width // 2)
        tensors[start + "mlp.up_proj.weight"] = weight(3 * width, width)
        tensors[start + "mlp.down_proj.weight"] = weight(width, 3 * width)
        tensors[start + "mlp.gate_proj.weight"] = weight(3 * width, width)
    return tensors


@pytest.fixture
def decoder(disk: Path) -> tuple[Path, Tensors]:
    """A directory with one safetensors file and a config, and the tensors in it."""
    directory = disk / "decoder"
    directory.mkdir()
    tensors = decoder_tensors()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text("{}")
    return directory, tensors


@pytest.fixture
def sharded(disk: Path) -> tuple[Path, Tensors]:
    """The same tensors in three shards with an index."""
    directory = disk / "sharded"
    directory.mkdir()
    tensors = decoder_tensors()
    shards: list[Tensors] = [{}, {}, {}]
    weight_map = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        shards[number % 3][name] = tensor
        weight_map[name] = f"model-{number % 3}.safetensors"
    for number, shard in enumerate(shards):
        save_file(shard, directory / f"model-{number}.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory, tensors


@pytest.fixture
def large(disk: Path) -> Path:
    """A file of 64 MiB: eight pieces of work."""
    path = disk / "large.safetensors"
    save_file({"w": torch.arange(16 << 20, dtype=torch.int32)}, path)
    return path


@pytest.fixture
def write_file(disk: Path) -> Callable[[object, bytes], Path]:
    """Writes a safetensors file from a header (JSON value, text or bytes) and data."""

    def write(header: object, data: bytes = b"") -> Path:
        if not isinstance(header, bytes):
            header = (header if isinstance(header, str) else json.dumps(header)).encode()
        path = disk / "model.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + data)
        return path

    return write
