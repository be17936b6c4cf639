"""A function.yaml in an uploaded folder deploys the function, where the platform was told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.checkpoints.test_imports import put, settled
from integration.gateway.peer import MemoryLeasing
from stoker.checkpoints.bucket import Bucket
from stoker.checkpoints.bucket_store import BucketStore
from stoker.checkpoints.imports import Imports
from stoker.checkpoints.registry import Registry
from stoker.domain import Digest, FunctionName, Revision, ScalePolicy
from stoker.errors import Conflict, FunctionNotFound
from stoker.gateway.deploys import Deploys
from stoker.gateway.upload_deploys import MAX_UPLOADED_BYTES, UploadDeploys
from stoker.store.catalog import Catalog
from stoker.store.draft import RevisionDraft, Upload, UploadDeploy


@pytest.fixture
def registry(bucket: Bucket, catalog: Catalog, home: Path) -> Registry:
    return Registry(home, catalog, BucketStore(bucket))


@dataclass
class Uploader:
    """Somebody who may put files into the bucket, and the platform behind it."""

    bucket: Bucket
    catalog: Catalog
    imports: Imports
    deploys: UploadDeploys
    leasing: MemoryLeasing
    folder: Path

    async def upload(self, manifest: str, *names: str, into: str = "smol") -> UploadDeploy:
        """Puts the model with this manifest, or only files of these names with it, and lets the
        platform look."""
        (self.folder / "function.yaml").write_text(manifest)
        await put(self.bucket, self.folder, *names, into=into)
        self.digest = (await settled(self.imports, into)).digest
        assert await self.deploys.deploy_all()
        found = await self.catalog.uploaded(into)
        assert found is not None
        return found

    async def revisions(self, name: str = "talk") -> tuple[Revision, ...]:
        return await self.catalog.revisions(name)


Start = Callable[[], Uploader]


@pytest.fixture
def start(
    bucket: Bucket, registry: Registry, catalog: Catalog, home: Path, checkpoint: Path
) -> Start:
    """Starts a platform over the same bucket and catalog."""

    def start() -> Uploader:
        leasing = MemoryLeasing()
        imports = Imports(bucket, registry, home / "imports")
        deploys = UploadDeploys(
            imports, Deploys(catalog, registry, leasing, lambda: 1.0, imports), catalog
        )
        return Uploader(bucket, catalog, imports, deploys, leasing, checkpoint)

    return start


@pytest.fixture
def uploader(start: Start) -> Uploader:
    return start()


async def test_an_uploaded_manifest_deploys_what_the_folder_became(
    uploader: Uploader, registry: Registry
) -> None:
    done = await uploader.upload("name: talk\nscale: {max: 3}\n")
    (revision,) = await uploader.revisions()
    assert (done.function, done.revision, done.reason) == ("talk", revision.id, None)
    assert revision.checkpoint is not None
    assert (revision.checkpoint.digest, revision.scale.max) == (uploader.digest, 3)
    assert uploader.leasing.deployed_revisions == [revision]
    content = await registry.store.content(revision.checkpoint.digest)
    assert "function.yaml" not in {file.name for file in content.digest.files}

    (uploader.folder / "config.json").write_text('{"model_type": "llama", "changed": true}')
    await uploader.upload("name: talk\nscale: {max: 3}\n", "config.json")
    *_, latest = await uploader.revisions()
    assert latest.checkpoint is not None
    assert latest.number == 2
    assert latest.checkpoint.digest == uploader.digest != revision.checkpoint.digest


async def test_another_manifest_is_another_revision_of_the_same_checkpoint(
    uploader: Uploader,
) -> None:
    await uploader.upload("name: talk\n")
    digest = uploader.digest
    asked: list[str] = []
    uploader.bucket.client.meta.events.register(
        "before-parameter-build.s3.GetObject", lambda params, **_: asked.append(params["Key"])
    )
    await uploader.upload("name: talk\nscale: {max: 4}\n", "function.yaml")
    assert uploader.digest == digest
    assert asked == ["models/smol/function.yaml"], "nothing else is brought again"
    *_, latest = await uploader.revisions()
    assert (latest.number, latest.scale.max) == (2, 4)


async def test_what_was_deleted_is_not_deployed_again_by_a_restart(
    uploader: Uploader, start: Start
) -> None:
    await uploader.upload("name: talk\n")
    await uploader.catalog.delete("talk")
    again = start()
    await again.imports.look_at_all()
    await settled(again.imports)
    assert await again.deploys.deploy_all()
    with pytest.raises(FunctionNotFound):
        await again.catalog.function("talk")


async def test_what_was_imported_before_it_was_told_to_deploy_is_deployed_then(
    bucket: Bucket, registry: Registry, home: Path, checkpoint: Path, start: Start
) -> None:
    (checkpoint / "function.yaml").write_text("name: talk\n")
    await put(bucket, checkpoint)
    await settled(Imports(bucket, registry, home / "imports"))
    told = start()
    await settled(told.imports)
    await told.deploys.deploy_all()
    assert len(await told.revisions()) == 1


async def test_a_function_of_others_is_not_taken(uploader: Uploader) -> None:
    await uploader.upload("name: other\n")
    (other,) = await uploader.revisions("other")
    assert other.checkpoint is not None
    by_hand = RevisionDraft(FunctionName("talk"), checkpoint=other.checkpoint)
    mine, _ = await uploader.catalog.deploy(by_hand, 1.0)
    done = await uploader.upload("name: talk\nscale: {max: 9}\n", into="second")
    assert "'talk' was deployed by others" in str(done.reason)
    assert (await uploader.catalog.function("talk")).latest == mine.id
    # Nor is what somebody deployed over one of the folder's own.
    replaced = RevisionDraft(
        FunctionName("other"), checkpoint=other.checkpoint, scale=ScalePolicy(max=2)
    )
    await uploader.catalog.deploy(replaced, 2.0)
    done = await uploader.upload("name: other\nscale: {max: 5}\n", "function.yaml")
    assert "'other' was deployed by others" in str(done.reason)


async def test_a_function_that_others_deployed_in_just_the_same_way_is_theirs(
    uploader: Uploader, start: Start
) -> None:
    await put(uploader.bucket, uploader.folder)
    digest = (await settled(uploader.imports)).digest
    assert digest is not None
    checkpoint = await uploader.catalog.artifact(digest)
    await uploader.catalog.deploy(
        RevisionDraft(FunctionName("talk"), checkpoint=checkpoint), now=1.0
    )
    done = await uploader.upload("name: talk\n", "function.yaml")
    assert "'talk' was deployed by others" in str(done.reason)
    # As the reason says: when they give it up, the same manifest once more is enough.
    await uploader.catalog.delete("talk")
    done = await uploader.upload("name: talk\n", "function.yaml")
    assert (done.reason, done.revision) == (None, "talk-00002")


ALIASES = "name: talk\na: &a [1, 2]\nb: *a\n"
MERGES = "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nname: talk\n"


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("name: talk\nmodle: {}\n", "unknown key 'modle'"),
        ("name: talk\nruntime: {handler: handler.py}\n", "code is not run from a bucket"),
        ("name: talk\nruntime: {options: {a: 1}}\n", "code is not run from a bucket"),
        ("name: talk\nsource: {digest: x}\n", "code is not run from a bucket"),
        ("name: talk\nenv: {LD_PRELOAD: x}\n", "an environment is not taken from a bucket"),
        ("name: talk\nmodel: {uri: s3://models/other}\n", "leave model out"),
        ("name: talk\nmodel: {uri: [1]}\n", "leave model out"),
        ("name: talk\nmodel: {digest: 'blake3:00'}\n", "leave model out"),
        ("name: talk\nmodel: [1]\n", "leave model out"),
        ("name: talk\nscale: {max: 0x" + "f" * 3000 + "}\n", "so large a number"),
        ('name: talk\nenv: {A: "\\ud800"}\n', "not YAML that can be used"),
        (ALIASES, "aliases (*name) are not supported"),
        (MERGES, "aliases (*name) are not supported"),
        ("name: [\n", "function.yaml: line 2"),
        ("just words\n", "no mapping"),
        ("name: talk\nenv: {A: '" + "x" * MAX_UPLOADED_BYTES + "'}\n", "more than"),
    ],
)
async def test_a_manifest_that_is_wrong_costs_the_deploy_and_not_the_checkpoint(
    uploader: Uploader, start: Start, manifest: str, reason: str
) -> None:
    done = await uploader.upload(manifest)
    digest = uploader.digest
    assert digest is not None
    assert reason in str(done.reason)
    assert await uploader.catalog.functions() == ()
    again = start()
    await settled(again.imports)
    await again.deploys.deploy_all()
    assert await again.catalog.uploaded("smol") == done, "it is known after a restart"
    healed = await again.upload("name: talk\nmodel: {uri: .}\n", "function.yaml")
    assert (healed.reason, again.digest) == (None, digest)
    assert (await again.catalog.function("talk")).latest == "talk-00001"


async def test_trouble_that_may_pass_is_tried_again(
    uploader: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(*_: object) -> None:
        raise Conflict("deployed by others at the same time")

    with monkeypatch.context() as patched:
        patched.setattr(uploader.catalog, "deploy", busy)
        (uploader.folder / "function.yaml").write_text("name: talk\n")
        await put(uploader.bucket, uploader.folder)
        await settled(uploader.imports)
        assert not await uploader.deploys.deploy_all()
        assert await uploader.catalog.uploaded("smol") is None
    assert await uploader.deploys.deploy_all()
    assert len(await uploader.revisions()) == 1


async def test_it_follows_what_is_imported(uploader: Uploader) -> None:
    running = asyncio.create_task(uploader.deploys.run())
    try:
        (uploader.folder / "function.yaml").write_text("name: talk\n")
        await put(uploader.bucket, uploader.folder)
        deployed = asyncio.Event()
        before = uploader.leasing.deployed

        async def heard(revision: Revision) -> None:
            await before(revision)
            deployed.set()

        uploader.leasing.deployed = heard  # type: ignore[method-assign]
        await settled(uploader.imports)
        await asyncio.wait_for(deployed.wait(), 30)
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_notes_of_uploads_are_kept(catalog: Catalog) -> None:
    upload = Upload("smol", "etag", 1.0, Digest("blake3:" + "0" * 64))
    assert await catalog.uploaded("smol") is None
    await catalog.note_upload(upload, reason="because")
    assert await catalog.uploaded("smol") == UploadDeploy(upload, reason="because")
