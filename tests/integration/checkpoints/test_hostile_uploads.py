"""What people and their tools do to a bucket's folders, against a real MinIO: whatever is mixed,
cut off, endless or oddly named, a checkpoint is exactly what lies there."""

from __future__ import annotations

import asyncio
import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from integration.checkpoints.conftest import make_checkpoint
from integration.checkpoints.test_imports import contents, put, settled
from stoker.checkpoints import imports as imports_module
from stoker.checkpoints.bucket import Bucket, StoredObject
from stoker.checkpoints.bucket_store import BucketStore
from stoker.checkpoints.files import MAX_FILES
from stoker.checkpoints.import_state import ImportState, NotImported
from stoker.checkpoints.imports import Imports
from stoker.checkpoints.registry import Registry
from stoker.domain import Digest
from stoker.store.catalog import Catalog

HEADER_BYTES = 50 << 20
PUTS_AT_ONCE = 32
ODD_NAMES = ("two words.json", "Ümläut 模型.json", "a+b&c=d?e#f%41.json", "deep/er/still.json")


@pytest.fixture
def registry(bucket: Bucket, catalog: Catalog, home: Path) -> Registry:
    return Registry(home, catalog, BucketStore(bucket))


@pytest.fixture
def imports(bucket: Bucket, registry: Registry, home: Path) -> Imports:
    return Imports(bucket, registry, home / "imports")


async def put_all(bucket: Bucket, objects: dict[str, bytes]) -> None:
    turns = asyncio.Semaphore(PUTS_AT_ONCE)

    async def one(key: str, data: bytes) -> None:
        async with turns:
            await bucket.put(key, data)

    await asyncio.gather(*(one(key, data) for key, data in objects.items()))


async def stored(registry: Registry, digest: Digest | None, name: str) -> bytes:
    """A file of a checkpoint, as it is in the store."""
    assert digest is not None
    store = registry.store
    assert isinstance(store, BucketStore)
    return await store.bucket.get(f"checkpoints/{digest.removeprefix('blake3:')}/{name}", 1 << 20)


async def test_names_with_spaces_and_other_scripts_come_along(
    bucket: Bucket, imports: Imports, registry: Registry, checkpoint: Path
) -> None:
    await put(bucket, checkpoint)
    await put_all(bucket, {f"models/smol/{name}": name.encode() for name in ODD_NAMES})
    found = await settled(imports)
    assert found.state is ImportState.IMPORTED
    for name in ODD_NAMES:
        assert await stored(registry, found.digest, name) == name.encode()


async def test_a_header_of_fifty_megabytes_is_read_or_refused_and_costs_no_other(
    bucket: Bucket, imports: Imports, checkpoint: Path
) -> None:
    """One that is JSON and one that only begins as if it were."""
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    text = json.dumps({"__metadata__": {"x": "y" * (HEADER_BYTES - 200)}, "t": entry})
    headers = {"long": text.encode(), "endless": b'{"t": ' + b"[" * HEADER_BYTES}
    for name, header in headers.items():
        body = struct.pack("<Q", len(header)) + header + b"\0"
        await put(bucket, checkpoint, "config.json", into=name)
        await bucket.put(f"models/{name}/model.safetensors", body)
    assert (await settled(imports, "long")).state is ImportState.IMPORTED
    refused = await settled(imports, "endless")
    assert refused.state is ImportState.REFUSED
    assert "model.safetensors" in str(refused.reason)
    await put(bucket, checkpoint)
    assert (await settled(imports)).state is ImportState.IMPORTED


@pytest.mark.timeout(900)
async def test_ten_thousand_small_files_are_a_checkpoint_and_one_more_is_too_many(
    bucket: Bucket, imports: Imports, registry: Registry, checkpoint: Path
) -> None:
    await put(bucket, checkpoint)
    there = len(contents(checkpoint, ()))
    names = [f"parts/{number:05d}.json" for number in range(MAX_FILES - there)]
    await put_all(bucket, {f"models/smol/{name}": name.encode() for name in names})
    found = await settled(imports)
    assert found.state is ImportState.IMPORTED
    assert found.digest is not None
    content = await registry.store.content(found.digest)
    assert {file.name for file in content.digest.files} > set(names)
    await bucket.put("models/smol/parts/one-more.json", b"{}")
    assert f"more than {MAX_FILES} files" in str((await settled(imports)).reason)
    assert imports.require("smol") == found.digest, "what was imported before stays"


@pytest.mark.parametrize("small_bytes", [0, 1 << 20])
async def test_an_object_that_is_replaced_while_it_is_brought_is_never_mixed_in(
    bucket: Bucket,
    registry: Registry,
    checkpoint: Path,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_bytes: int,
) -> None:
    """After the listing and before the fetch, which asks for what was listed alone."""
    monkeypatch.setattr(imports_module, "SMALL_BYTES", small_bytes)
    other = make_checkpoint(tmp_path / "other", seed=1)

    class Raced(Imports):
        replaced = False

        async def _fetch(self, found: StoredObject, target: Path, report: Any) -> None:
            if found.key.endswith("model.safetensors") and not self.replaced:
                self.replaced = True
                await put(bucket, other, "model.safetensors")
            await super()._fetch(found, target, report)

    imports = Raced(bucket, registry, home / "imports")
    await put(bucket, checkpoint)
    first = await settled(imports)
    assert first.state is ImportState.FAILED
    assert "was changed while it was imported" in str(first.reason)
    with pytest.raises(NotImported):
        imports.require("smol")
    second = await settled(imports)
    assert second.state is ImportState.IMPORTED
    await put(bucket, other, into="other")
    assert (await settled(imports, "other")).digest == second.digest


@pytest.mark.parametrize("seed", range(3))
async def test_two_uploads_of_one_name_at_once_end_as_what_lies_there(
    bucket: Bucket, imports: Imports, registry: Registry, tmp_path: Path, seed: int
) -> None:
    """Each file is one of the two, and nobody is told which: so is the checkpoint's."""
    folders = [make_checkpoint(tmp_path / str(n), seed=n) for n in range(2)]
    puts = []
    for number, folder in enumerate(folders):
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "by": number}))
        puts += [(folder, path.name) for path in folder.iterdir()]
    random.Random(seed).shuffle(puts)

    async def upload(folder: Path, name: str) -> None:
        await put(bucket, folder, name)
        imports.changed(f"models/smol/{name}")

    running = asyncio.create_task(imports.run())
    try:
        await asyncio.gather(*(upload(folder, name) for folder, name in puts))
        lies_there = await bucket.get("models/smol/config.json", 1 << 20)

        def is_what_lies_there() -> bool:
            (found,) = imports.imports() or (None,)
            return found is not None and found.state is ImportState.IMPORTED

        await asyncio.wait_for(imports.until(is_what_lies_there), 60)
    finally:
        running.cancel()
        await asyncio.wait([running])
    found = await settled(imports)
    assert found.state is ImportState.IMPORTED
    assert await stored(registry, found.digest, "config.json") == lies_there
    alone = Imports(bucket, registry, tmp_path / "alone")
    await bucket.delete(["imports/smol.json"])
    assert (await settled(alone)).digest == found.digest, "as whoever looks afterwards finds it"


async def test_two_pushes_of_one_name_at_once_are_both_there_and_one_has_the_name(
    pusher: Any, tmp_path: Path, catalog: Catalog
) -> None:
    folders = [make_checkpoint(tmp_path / str(n), seed=n) for n in range(4)]
    pushed = await asyncio.gather(*(pusher.push(folder, "smol") for folder in folders))
    digests = {artifact.digest for artifact in pushed}
    assert len(digests) == 4
    assert (await catalog.artifact("smol")).digest in digests
    for digest in digests:
        assert (await catalog.artifact(f"smol@{digest}")).digest == digest
