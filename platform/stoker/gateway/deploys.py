"""A manifest becomes the latest revision of its function, whoever brings it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stoker.checkpoints.registry import Registry
from stoker.domain import Artifact, Revision
from stoker.errors import BadRequest
from stoker.manifest import (
    Manifest,
    ModelSection,
    to_draft,
)
from stoker.scheduler.lease import Leasing
from stoker.store.catalog import Catalog
from stoker.store.draft import RevisionDraft, Upload

if TYPE_CHECKING:
    # It brings boto3, which takes a third of a second.
    from stoker.checkpoints.imports import Imports


@dataclass(frozen=True, slots=True)
class Deploys:
    """`now` gives Unix seconds; `imports` where there is a bucket."""

    catalog: Catalog
    registry: Registry
    leasing: Leasing
    now: Callable[[], float]
    imports: Imports | None = None

    async def draft_of(self, manifest: Manifest) -> RevisionDraft:
        """What a manifest asks for. Raises InvalidManifest, BadRequest, CheckpointNotFound."""
        return to_draft(manifest, *await self._artifacts_of(manifest))

    async def deploy(
        self, draft: RevisionDraft, upload: Upload | None = None
    ) -> tuple[Revision, bool]:
        """The function's latest revision, and whether it is new. Raises CheckpointNotFound,
        Conflict, FunctionTaken."""
        revision, created = await self.catalog.deploy(draft, self.now(), upload)
        if created:
            await self.leasing.deployed(revision)
        return revision, created

    async def _artifacts_of(self, manifest: Manifest) -> tuple[Artifact | None, Artifact | None]:
        checkpoint = source = None
        if manifest.model is not None:
            checkpoint = await self._checkpoint_of(manifest.model)
        if manifest.source is not None:
            source = await self.registry.resolve(manifest.source.digest)
        return checkpoint, source

    async def _checkpoint_of(self, model: ModelSection) -> Artifact | None:
        """Raises CheckpointNotFound, BadRequest."""
        if model.digest is not None:
            return await self.registry.resolve(model.digest)
        if model.folder is not None:
            if self.imports is None:
                raise BadRequest(
                    f"{model.uri} names a folder of a bucket, and this platform has none: start it"
                    " with --store s3://BUCKET",
                    param="model.uri",
                )
            return await self.registry.resolve(self.imports.require(model.folder))
        return await self.registry.resolve(model.uri) if model.uri and not model.directory else None
