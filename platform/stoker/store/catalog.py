"""Functions, revisions and artifacts as typed values on top of any store.

functions/<name>             Function
revisions/<revision id>      Revision
numbers/<name>               the last revision number given; outlives the function, so that
                             a revision id never means two things
artifacts/<hex>              Artifact
names/<name>                 digest of what was last pushed under the name
names/<name>@<digest>        the same digest, for each that was ever pushed under it
sources/<hex>                digest of the artifact made from these uploaded files
doomed/<hex>                 the artifact is about to be deleted: nothing is deployed with it
pins/<node>/<hex>            tier in which somebody wants the artifact kept on that node
uploads/<folder>             what became of the function.yaml of a folder of the bucket
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

from stoker.domain import (
    Artifact,
    Digest,
    Function,
    FunctionName,
    NodeId,
    Revision,
    RevisionId,
    Tier,
)
from stoker.errors import (
    CheckpointInUse,
    CheckpointNotFound,
    Conflict,
    FunctionNotFound,
    FunctionTaken,
    RevisionNotFound,
)
from stoker.store.absent import (
    DIGEST_PREFIX,
    checkpoint_not_found,
    function_not_found,
    is_digest,
)
from stoker.store.base import Compare, Delete, Entry, Op, Put, Store
from stoker.store.codec import ARTIFACT, FUNCTION, REVISION, UPLOAD
from stoker.store.draft import RevisionDraft, Upload, UploadDeploy, content_digest

MAX_ATTEMPTS = 8  # of a compare-and-swap that others keep winning
KEPT_REVISIONS = 100  # of a function; an older one is forgotten when a new one is deployed
NAMES, SOURCES, DOOMED, PINS = "names/", "sources/", "doomed/", "pins/"
UPLOADS = "uploads/"


class Catalog:
    """What is deployed and what was pushed. Every method may raise the store's errors."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- functions and revisions ------------------------------------------------------------

    async def deploy(
        self, draft: RevisionDraft, now: float, upload: Upload | None = None
    ) -> tuple[Revision, bool]:
        """Makes `draft` the function's latest revision; False if it is that already. An `upload` is
        noted with it, and replaces only what the same folder has deployed.

        `now` is in Unix seconds. Raises Conflict when other deploys won MAX_ATTEMPTS times,
        FunctionTaken.
        """
        digest = content_digest(draft)
        for _ in range(MAX_ATTEMPTS):
            found = await self._store.get(_function_key(draft.function))
            function = FUNCTION.decode(found.value) if found else None
            if function is not None:
                latest = await self._store.get(_revision_key(function.latest))
                if latest is None:  # deleted since; look again
                    continue
                revision = REVISION.decode(latest.value)
                if upload is not None:
                    await self._check_owner(upload, revision)
                if revision.content_digest == digest:
                    if upload is not None:
                        await self.note_upload(upload, revision)
                    return revision, False
            try:
                return await self._add_revision(draft, digest, found, function, now, upload), True
            except Conflict:
                continue
        raise Conflict(
            f"function {draft.function!r} is being deployed by others at the same time; try again",
            retry_after_s=1,
        )

    async def function(self, name: str) -> Function:
        """Raises FunctionNotFound, with the nearest name there is."""
        entry = await self._store.get(_function_key(name))
        if entry is None:
            raise await self._function_not_found(name)
        return FUNCTION.decode(entry.value)

    async def functions(self) -> tuple[Function, ...]:
        """All functions, by name."""
        listing = await self._store.range("functions/")
        return tuple(FUNCTION.decode(entry.value) for entry in listing.entries)

    async def revision(self, id: str) -> Revision:  # noqa: A002
        """Raises RevisionNotFound."""
        entry = await self._store.get(_revision_key(id))
        if entry is None:
            raise RevisionNotFound(
                f"no revision {id!r}; `stoker describe NAME` lists a function's revisions",
                param=id,
            )
        return REVISION.decode(entry.value)

    async def revisions(self, name: str) -> tuple[Revision, ...]:
        """A function's revisions, oldest first. Raises FunctionNotFound."""
        function = await self.function(name)
        entries = [await self._store.get(_revision_key(id)) for id in function.revisions]  # noqa: A001
        return tuple(REVISION.decode(entry.value) for entry in entries if entry is not None)

    async def delete(self, name: str) -> None:
        """Forgets a function and its revisions. Raises FunctionNotFound, Conflict."""
        for _ in range(MAX_ATTEMPTS):
            entry = await self._store.get(_function_key(name))
            if entry is None:
                raise await self._function_not_found(name)
            function = FUNCTION.decode(entry.value)
            ops: list[Op] = [Delete(_revision_key(revision)) for revision in function.revisions]
            ops.append(Delete(entry.key))
            try:
                await self._store.commit([Compare(entry.key, entry.mod_revision)], ops)
            except Conflict:
                continue
            return
        raise Conflict(f"function {name!r} is being deployed at the same time; try again")

    async def _add_revision(
        self,
        draft: RevisionDraft,
        digest: str,
        found: Entry | None,
        function: Function | None,
        now: float,
        upload: Upload | None,
    ) -> Revision:
        number_key = f"numbers/{draft.function}"
        last = await self._store.get(number_key)
        used = [await self._usable(one) for one in (draft.checkpoint, draft.source) if one]
        number = int(last.value) + 1 if last else 1
        revision = Revision(
            id=RevisionId(f"{draft.function}-{number:05d}"),
            function=draft.function,
            number=number,
            created_at=now,
            content_digest=digest,
            checkpoint=draft.checkpoint,
            source=draft.source,
            runtime=draft.runtime,
            resources=draft.resources,
            scale=draft.scale,
            startup=draft.startup,
            env=draft.env,
            cache=draft.cache,
        )
        ids = (*(function.revisions if function else ()), revision.id)
        dropped, kept = ids[:-KEPT_REVISIONS], ids[-KEPT_REVISIONS:]
        created_at = function.created_at if function else now
        function = Function(FunctionName(draft.function), created_at, revision.id, kept)
        function_key = _function_key(draft.function)
        noted = [_upload_op(UploadDeploy(upload, revision.function, revision.id))] if upload else []
        await self._store.commit(
            [
                Compare(function_key, found.mod_revision if found else 0),
                Compare(number_key, last.mod_revision if last else 0),
                *chain.from_iterable(used),
            ],
            [
                Put(function_key, FUNCTION.encode(function)),
                Put(number_key, str(number).encode()),
                Put(_revision_key(revision.id), REVISION.encode(revision)),
                *(Delete(_revision_key(old)) for old in dropped),
                *noted,
            ],
        )
        return revision

    async def _check_owner(self, upload: Upload, latest: Revision) -> None:
        before = await self.uploaded(upload.folder)
        if before is None or before.revision != latest.id:
            raise FunctionTaken(
                f"function {latest.function!r} was deployed by others: choose another name, or"
                f" `stoker delete {latest.function}` and upload function.yaml again"
            )

    async def _function_not_found(self, name: str) -> FunctionNotFound:
        return function_not_found(name, [function.name for function in await self.functions()])

    # --- artifacts --------------------------------------------------------------------------

    async def put_artifact(self, artifact: Artifact) -> Artifact:
        """Records a complete directory; gives what the catalog then knows of it.

        What is known already keeps its name and time unless it is pushed under a new name.
        """
        for _ in range(MAX_ATTEMPTS):
            key = f"artifacts/{_hex(artifact.digest)}"
            old = await self._store.get(key)
            if old is not None:
                known = ARTIFACT.decode(old.value)
                artifact = replace(
                    artifact, name=artifact.name or known.name, created_at=known.created_at
                )
            digest = artifact.digest.encode()
            # What somebody is about to delete is not to go when it has just been pushed again.
            doomed = f"{DOOMED}{_hex(artifact.digest)}"
            ops: list[Op] = [Put(key, ARTIFACT.encode(artifact)), Delete(doomed)]
            if artifact.name is not None:
                ops.append(Put(f"{NAMES}{artifact.name}", digest))
                ops.append(Put(f"{NAMES}{artifact.name}@{artifact.digest}", digest))
            if artifact.source_digest is not None:
                ops.append(Put(f"{SOURCES}{_hex(artifact.source_digest)}", digest))
            try:
                await self._store.commit([Compare(key, old.mod_revision if old else 0)], ops)
            except Conflict:
                continue
            return artifact
        raise Conflict(f"{artifact.digest} is being pushed by others at the same time; try again")

    async def artifact(self, reference: str) -> Artifact:
        """By name, by `name@digest`, or by digest. Raises CheckpointNotFound."""
        digest = reference if is_digest(reference) else await self._named(reference)
        entry = await self._store.get(f"artifacts/{_hex(digest)}")
        if entry is None:
            raise await self._checkpoint_not_found(reference)
        artifact = ARTIFACT.decode(entry.value)
        if digest is reference:
            return artifact
        return replace(artifact, name=reference.partition("@")[0])

    async def users(self) -> dict[Digest, tuple[RevisionId, ...]]:
        """The revisions that need each artifact, of all functions."""
        users: dict[Digest, tuple[RevisionId, ...]] = {}
        for entry in (await self._store.range("revisions/")).entries:
            revision = REVISION.decode(entry.value)
            for artifact in (revision.checkpoint, revision.source):
                if artifact is not None:
                    users[artifact.digest] = (*users.get(artifact.digest, ()), revision.id)
        return users

    async def names(self) -> dict[Digest, tuple[str, ...]]:
        """The names that stand for each artifact now, without those that it had before."""
        names: dict[Digest, tuple[str, ...]] = {}
        for entry in (await self._store.range(NAMES)).entries:
            name, digest = entry.key.removeprefix(NAMES), Digest(entry.value.decode())
            if "@" not in name:
                names[digest] = (*names.get(digest, ()), name)
        return names

    async def forget_artifact(self, digest: Digest) -> None:
        """Removes an artifact that no revision needs, and all that leads to it. Raises
        CheckpointNotFound, CheckpointInUse, Conflict."""
        doomed = f"{DOOMED}{_hex(digest)}"
        for _ in range(MAX_ATTEMPTS):
            entry = await self._store.get(f"artifacts/{_hex(digest)}")
            if entry is None:
                raise await self._checkpoint_not_found(digest)
            # From here on nothing is deployed with it: who needs it has said so before.
            await self._store.commit([], [Put(doomed, b"")])
            if users := (await self.users()).get(digest):
                await self._store.commit([], [Delete(doomed)])
                raise CheckpointInUse(
                    f"{digest} is what {', '.join(users)} runs; delete the function first",
                    param=digest,
                    details={"revisions": list(users)},
                )
            mark = await self._store.get(doomed)
            if mark is None:  # pushed again meanwhile
                continue
            gone = [entry, mark, *await self._leads(digest)]
            try:
                await self._store.commit(
                    [Compare(one.key, one.mod_revision) for one in gone],
                    [Delete(one.key) for one in gone],
                )
            except Conflict:
                continue
            return
        raise Conflict(f"{digest} is being pushed at the same time; try again")

    async def pin(self, node: NodeId, digest: Digest, tier: Tier) -> None:
        """Wants an artifact kept on a node, in a tier, whatever functions ask for. Raises
        CheckpointNotFound, Conflict when it is being pushed or deleted."""
        usable = await self._usable(await self.artifact(digest))
        await self._store.commit(usable, [Put(_pin_key(node, digest), tier.encode())])

    async def unpin(self, node: NodeId, digest: Digest) -> None:
        """Wants that no more; it need not have."""
        await self._store.commit([], [Delete(_pin_key(node, digest))])

    async def pins(self) -> dict[NodeId, dict[Digest, Tier]]:
        """What is wanted so on each node."""
        pins: dict[NodeId, dict[Digest, Tier]] = {}
        for entry in (await self._store.range(PINS)).entries:
            node, _, hex_digits = entry.key.removeprefix(PINS).rpartition("/")
            digest = Digest(f"{DIGEST_PREFIX}{hex_digits}")
            pins.setdefault(NodeId(node), {})[digest] = Tier(entry.value.decode())
        return pins

    async def uploaded(self, folder: str) -> UploadDeploy | None:
        """What became of an uploaded folder's function.yaml."""
        entry = await self._store.get(f"{UPLOADS}{folder}")
        return UPLOAD.decode(entry.value) if entry else None

    async def note_upload(
        self, upload: Upload, revision: Revision | None = None, reason: str | None = None
    ) -> None:
        """Keeps what came of it: what it is, or why it is not deployed; then what the folder
        deployed before is still its."""
        before = await self.uploaded(upload.folder)
        done = UploadDeploy(upload, reason=reason)
        if revision is not None:
            done = replace(done, function=revision.function, revision=revision.id)
        elif before is not None:
            done = replace(done, function=before.function, revision=before.revision)
        await self._store.commit([], [_upload_op(done)])

    async def undoom(self) -> None:
        """After a start: what was about to be deleted when all ended is as it was before."""
        marks = (await self._store.range(DOOMED)).entries
        for mark in marks:
            await self._store.commit([], [Delete(mark.key)])

    async def artifact_of_source(self, source: Digest) -> Artifact | None:
        """What was made from exactly these uploaded files, if that is known."""
        entry = await self._store.get(f"{SOURCES}{_hex(source)}")
        return await self.artifact(entry.value.decode()) if entry else None

    async def artifacts(self) -> tuple[Artifact, ...]:
        """All artifacts, oldest first: checkpoints with and without a name, and sources."""
        listing = await self._store.range("artifacts/")
        found = (ARTIFACT.decode(entry.value) for entry in listing.entries)
        return tuple(sorted(found, key=lambda artifact: (artifact.created_at, artifact.digest)))

    async def _usable(self, artifact: Artifact) -> tuple[Compare, Compare]:
        """That an artifact is there, and that nobody is about to delete it."""
        entry = await self._store.get(f"artifacts/{_hex(artifact.digest)}")
        if entry is None:
            raise await self._checkpoint_not_found(artifact.digest)
        doomed = f"{DOOMED}{_hex(artifact.digest)}"
        return Compare(entry.key, entry.mod_revision), Compare(doomed, 0)

    async def _leads(self, digest: Digest) -> list[Entry]:
        """The names and sources that stand for an artifact, and its pins."""
        leads = [
            entry
            for prefix in (NAMES, SOURCES)
            for entry in (await self._store.range(prefix)).entries
            if entry.value.decode() == digest
        ]
        pins = (await self._store.range(PINS)).entries
        return [*leads, *(pin for pin in pins if pin.key.endswith(f"/{_hex(digest)}"))]

    async def _named(self, reference: str) -> str:
        name, separator, digest = reference.partition("@")
        if separator and not digest.startswith(DIGEST_PREFIX):
            reference = f"{name}@{DIGEST_PREFIX}{digest}"
        entry = await self._store.get(f"{NAMES}{reference}")
        if entry is None:
            raise await self._checkpoint_not_found(reference)
        return entry.value.decode()

    async def _checkpoint_not_found(self, reference: str) -> CheckpointNotFound:
        listing = await self._store.range(NAMES)
        return checkpoint_not_found(
            reference, [entry.key.removeprefix(NAMES) for entry in listing.entries]
        )


def _function_key(name: str) -> str:
    return f"functions/{name}"


def _revision_key(id: str) -> str:  # noqa: A002
    return f"revisions/{id}"


def _upload_op(done: UploadDeploy) -> Put:
    return Put(f"{UPLOADS}{done.upload.folder}", UPLOAD.encode(done))


def _pin_key(node: str, digest: str) -> str:
    return f"{PINS}{node}/{_hex(digest)}"


def _hex(digest: str) -> str:
    return digest.removeprefix(DIGEST_PREFIX)
