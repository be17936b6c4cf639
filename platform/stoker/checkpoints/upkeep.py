"""What becomes of artifacts after they were pushed: looked at, read again, deleted, collected."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from stoker.checkpoints.store import CheckpointStore, Report
from stoker.checkpoints.waiting import Turns
from stoker.domain import Artifact, Digest, RevisionId
from stoker.errors import CheckpointInUse, CheckpointNotFound
from stoker.store.catalog import Catalog
from stoker_loader import FileDigest

YOUNG_S = 3600.0  # nobody collects what was pushed since: its deploy may be about to come


@dataclass(frozen=True, slots=True)
class Described:
    """All that is known of an artifact."""

    artifact: Artifact
    names: tuple[str, ...]  # that stand for it now
    revisions: tuple[RevisionId, ...]  # that need it
    files: tuple[FileDigest, ...]


class Upkeep:
    """The catalog and the store, of which the catalog says what may go."""

    def __init__(
        self,
        catalog: Catalog,
        store: CheckpointStore,
        turns: Turns,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`turns` are those of whoever puts artifacts."""
        self._catalog = catalog
        self._store = store
        self._turns = turns
        self._now = now

    async def describe(self, reference: str) -> Described:
        """Raises CheckpointNotFound."""
        artifact = await self._catalog.artifact(reference)
        content = await self._store.content(artifact.digest)
        return Described(
            artifact,
            (await self._catalog.names()).get(artifact.digest, ()),
            (await self._catalog.users()).get(artifact.digest, ()),
            content.digest.files,
        )

    async def verify(self, reference: str, report: Report) -> Artifact:
        """Reads all of it again. Raises CheckpointNotFound, CheckpointInvalid."""
        artifact = await self._catalog.artifact(reference)
        await self._store.verify(artifact.digest, report)
        return artifact

    async def delete(self, reference: str) -> Artifact:
        """Removes it from the catalog and the store. Raises CheckpointNotFound, CheckpointInUse,
        Conflict."""
        artifact = await self._catalog.artifact(reference)
        await self._remove(artifact)
        return artifact

    async def collect(self, *, keep: bool = False) -> tuple[Artifact, ...]:
        """Removes (or with `keep` only names) what no revision needs, no name stands for, is pinned
        nowhere, and was not pushed within `YOUNG_S`."""
        used: set[Digest] = {*await self._catalog.users(), *await self._catalog.names()}
        used.update(*(await self._catalog.pins()).values())
        oldest = self._now() - YOUNG_S
        found = [
            artifact
            for artifact in await self._catalog.artifacts()
            if artifact.digest not in used and artifact.created_at < oldest
        ]
        removed = []
        for artifact in found:
            try:
                if not keep:
                    await self._remove(artifact)
            except CheckpointInUse:
                continue  # deployed meanwhile
            removed.append(artifact)
        return tuple(removed)

    async def _remove(self, artifact: Artifact) -> None:
        # First from the catalog, which knows who needs it. What a crash leaves in the store is
        # found there at the next start, and can be deleted again.
        async with self._turns.of(artifact.digest):
            await self._catalog.forget_artifact(artifact.digest)
            try:
                await self._store.delete(artifact.digest)
            except CheckpointNotFound:
                return  # its files were gone before
