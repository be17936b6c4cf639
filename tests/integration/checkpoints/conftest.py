"""A registry over a real folder and real files, and the inputs that people push."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import save_file

from stoker.checkpoints.directory import DirectoryStore
from stoker.checkpoints.files import FileSpec, Kind
from stoker.checkpoints.registry import Registry
from stoker.checkpoints.staging import Upload
from stoker.checkpoints.store import InPlace
from stoker.domain import Artifact, Digest
from stoker.store.catalog import Catalog
from stoker.store.memory import MemoryStore


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """A decoder's layer in small, with projections that the layout puts side by side."""
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    names = ("v_proj", "q_proj", "k_proj")
    layer = "model.layers.0.self_attn."
    weights = {f"{layer}{name}.weight": weight(128, 128) for name in names}
    return {**weights, "model.norm.weight": weight(128)}


def make_checkpoint(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(seed), folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def make_shards(folder: Path, seed: int = 0) -> Path:
    """The same tensors in two files with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    items = sorted(tensors(seed).items())
    for number, part in enumerate((items[:2], items[2:]), 1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file(dict(part), folder / name)
        weight_map.update({tensor: name for tensor, _ in part})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def specs_of(folder: Path) -> list[FileSpec]:
    """What a client offers for the files of a folder."""
    return [
        FileSpec(
            path.relative_to(folder).as_posix(),
            path.stat().st_size,
            blake3(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


async def stream(data: bytes, piece_bytes: int = 10_000) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), piece_bytes):
        yield data[begin : begin + piece_bytes]


def registry_in(home: Path, catalog: Catalog) -> Registry:
    """As the embedded platform has it."""
    return Registry(home, catalog, DirectoryStore(home / "checkpoints"))


@dataclass
class Pusher:
    """A client of a registry in the same process."""

    registry: Registry
    reports: list[tuple[str, int, int]]

    async def begin(
        self, folder: Path, kind: Kind = Kind.CHECKPOINT, name: str | None = None
    ) -> Artifact | Upload:
        return await self.registry.begin(specs_of(folder), kind, name)

    async def send(self, folder: Path, upload: Upload) -> None:
        for path in upload.missing:
            await self.registry.write(upload.id, path, stream((folder / path).read_bytes()))

    async def uploaded(self, folder: Path, kind: Kind = Kind.CHECKPOINT) -> Upload:
        """An upload that lacks nothing but its commit."""
        upload = await self.begin(folder, kind)
        assert isinstance(upload, Upload)
        await self.send(folder, upload)
        return upload

    def path(self, artifact: Artifact) -> Path:
        """Where the artifact's files are, whatever they are."""
        assert isinstance(self.registry.store, DirectoryStore)
        return self.registry.store.path(artifact.digest)

    async def folder(self, digest: Digest) -> Path:
        """Where whoever loads the artifact finds its verified files."""
        location = await self.registry.store.locate(digest)
        assert isinstance(location, InPlace)
        return location.path

    async def commit(self, upload: Upload, name: str | None = None) -> Artifact:
        return await self.registry.commit(
            upload.id, name, lambda *report: self.reports.append(report)
        )

    async def push(
        self, folder: Path, name: str | None = None, kind: Kind = Kind.CHECKPOINT
    ) -> Artifact:
        return await self.commit(await self.uploaded(folder, kind), name)


@pytest.fixture
async def catalog() -> AsyncIterator[Catalog]:
    store = MemoryStore()
    yield Catalog(store)
    await store.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
async def pusher(home: Path, catalog: Catalog) -> Pusher:
    registry = registry_in(home, catalog)
    await registry.recover()
    return Pusher(registry, [])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "handler"
    (folder / "lib").mkdir(parents=True)
    (folder / "handler.py").write_text("def predict(x):\n    return x\n")
    (folder / "lib" / "helper.py").write_text("ANSWER = 42\n")
    return folder


@pytest.fixture
async def small_pusher(small_disk: Path, catalog: Catalog) -> Pusher:
    return Pusher(registry_in(small_disk, catalog), [])


@pytest.fixture
def write_checkpoint() -> Callable[..., Path]:
    return make_checkpoint


@pytest.fixture
def write_shards() -> Callable[..., Path]:
    return make_shards


@pytest.fixture
def push() -> Callable[[Registry], Pusher]:
    """Makes a client of a registry."""
    return lambda registry: Pusher(registry, [])


@pytest.fixture
def specs() -> Callable[[Path], list[FileSpec]]:
    return specs_of
