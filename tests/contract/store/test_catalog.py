"""Functions, revisions and artifacts on top of every store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from stoker.domain import (
    Artifact,
    CachePolicy,
    Digest,
    FunctionName,
    NodeId,
    RuntimeSpec,
    ScalePolicy,
    Tier,
)
from stoker.errors import (
    CheckpointInUse,
    CheckpointNotFound,
    Conflict,
    FunctionNotFound,
    RevisionNotFound,
)
from stoker.store.base import Put, Store, StoreUnusable
from stoker.store.catalog import KEPT_REVISIONS, MAX_ATTEMPTS, Catalog
from stoker.store.draft import RevisionDraft, content_digest


def digest(digit: str) -> Digest:
    return Digest("blake3:" + digit * 64)


CHECKPOINT = Artifact(digest("a"), 10, "smol", digest("b"), created_at=1.0)
OTHER = replace(CHECKPOINT, digest=digest("c"), name="other", source_digest=digest("d"))
DRAFT = RevisionDraft(FunctionName("chat"), checkpoint=CHECKPOINT)


@pytest.fixture
def catalog(store: Store) -> Catalog:
    return Catalog(store)


@pytest.fixture
async def pushed(catalog: Catalog) -> Catalog:
    """A catalog with what the drafts need."""
    await catalog.put_artifact(CHECKPOINT)
    await catalog.put_artifact(OTHER)
    return catalog


async def test_a_deploy_makes_a_function_with_its_first_revision(pushed: Catalog) -> None:
    revision, created = await pushed.deploy(DRAFT, 100.0)
    assert created
    assert (revision.id, revision.number, revision.created_at) == ("chat-00001", 1, 100.0)
    assert revision.checkpoint == CHECKPOINT
    function = await pushed.function("chat")
    assert (function.latest, function.revisions) == (revision.id, (revision.id,))
    assert await pushed.functions() == (function,)
    assert await pushed.revision(revision.id) == revision
    assert await pushed.revisions("chat") == (revision,)


async def test_the_same_content_is_the_same_revision(pushed: Catalog) -> None:
    first, _ = await pushed.deploy(DRAFT, 100.0)
    # The name and the time of a push are no content.
    pushed_again = replace(CHECKPOINT, name="other", created_at=9.0)
    assert await pushed.deploy(replace(DRAFT, checkpoint=pushed_again), 200.0) == (first, False)


@pytest.mark.parametrize(
    "draft",
    [
        replace(DRAFT, checkpoint=OTHER),
        replace(DRAFT, source=CHECKPOINT),
        replace(DRAFT, runtime=RuntimeSpec(args={"max_batch": 4})),
        replace(DRAFT, scale=ScalePolicy(max=2)),
        replace(DRAFT, env={"A": "1"}),
    ],
)
async def test_other_content_is_the_next_revision(pushed: Catalog, draft: RevisionDraft) -> None:
    first, _ = await pushed.deploy(DRAFT, 100.0)
    second, created = await pushed.deploy(draft, 200.0)
    assert created
    assert (second.number, second.id) == (2, "chat-00002")
    function = await pushed.function("chat")
    assert function.latest == second.id
    assert function.created_at == 100.0
    assert await pushed.revisions("chat") == (first, second)
    # Going back to what ran before is a new revision: only the latest is compared.
    third, created = await pushed.deploy(DRAFT, 300.0)
    assert (third.number, created, third.content_digest) == (3, True, first.content_digest)


def test_the_content_digest_does_not_depend_on_the_order_of_keys() -> None:
    one = replace(DRAFT, env={"A": "1", "B": "2"})
    other = replace(DRAFT, env={"B": "2", "A": "1"})
    assert content_digest(one) == content_digest(other)


async def test_concurrent_deploys_get_numbers_of_their_own(pushed: Catalog) -> None:
    drafts = [replace(DRAFT, env={"N": str(n)}) for n in range(MAX_ATTEMPTS)]
    deployed = await asyncio.gather(*(pushed.deploy(draft, 1.0) for draft in drafts))
    assert sorted(revision.number for revision, _ in deployed) == list(range(1, MAX_ATTEMPTS + 1))
    assert len((await pushed.function("chat")).revisions) == MAX_ATTEMPTS


async def test_concurrent_deploys_of_the_same_content_make_one_revision(pushed: Catalog) -> None:
    deployed = await asyncio.gather(*(pushed.deploy(DRAFT, 1.0) for _ in range(6)))
    assert sum(created for _, created in deployed) == 1
    assert len(await pushed.revisions("chat")) == 1


async def test_old_revisions_are_forgotten(pushed: Catalog) -> None:
    for number in range(KEPT_REVISIONS + 2):
        await pushed.deploy(replace(DRAFT, env={"N": str(number)}), 1.0)
    kept = await pushed.revisions("chat")
    assert [revision.number for revision in kept] == list(range(3, KEPT_REVISIONS + 3))
    with pytest.raises(RevisionNotFound):
        await pushed.revision("chat-00001")


async def test_a_deleted_functions_revision_ids_are_never_given_again(pushed: Catalog) -> None:
    await pushed.deploy(DRAFT, 1.0)
    await pushed.delete("chat")
    assert await pushed.functions() == ()
    for gone in (pushed.function("chat"), pushed.revisions("chat"), pushed.delete("chat")):
        with pytest.raises(FunctionNotFound):
            await gone
    with pytest.raises(RevisionNotFound, match="chat-00001"):
        await pushed.revision("chat-00001")
    revision, created = await pushed.deploy(DRAFT, 2.0)
    assert (revision.id, created) == ("chat-00002", True)


async def test_an_unknown_function_names_the_nearest_and_the_next_step(pushed: Catalog) -> None:
    await pushed.deploy(DRAFT, 1.0)
    with pytest.raises(FunctionNotFound, match=r"did you mean 'chat'\?.*stoker deploy"):
        await pushed.function("chatt")
    with pytest.raises(FunctionNotFound, match=r"^no function 'zzz' is deployed; deploy it"):
        await pushed.function("zzz")


async def test_functions_whose_names_begin_alike_are_kept_apart(pushed: Catalog) -> None:
    for name in ("chat", "chat-2", "chatter"):
        await pushed.deploy(replace(DRAFT, function=FunctionName(name)), 1.0)
    await pushed.delete("chat")
    assert [function.name for function in await pushed.functions()] == ["chat-2", "chatter"]
    assert [revision.id for revision in await pushed.revisions("chat-2")] == ["chat-2-00001"]


# --- artifacts ------------------------------------------------------------------------------


async def test_an_artifact_is_found_by_each_of_its_references(catalog: Catalog) -> None:
    await catalog.put_artifact(CHECKPOINT)
    hex_digits = "a" * 64
    for reference in (
        "smol", f"smol@{CHECKPOINT.digest}", f"smol@{hex_digits}", CHECKPOINT.digest, hex_digits,
    ):  # fmt: skip
        assert await catalog.artifact(reference) == CHECKPOINT
    assert CHECKPOINT.source_digest is not None
    assert await catalog.artifact_of_source(CHECKPOINT.source_digest) == CHECKPOINT
    assert await catalog.artifact_of_source(digest("f")) is None


async def test_a_name_follows_the_last_push_and_pins_stay(catalog: Catalog) -> None:
    newer = replace(CHECKPOINT, digest=digest("c"), source_digest=digest("d"), created_at=2.0)
    await catalog.put_artifact(CHECKPOINT)
    await catalog.put_artifact(newer)
    assert await catalog.artifact("smol") == newer
    assert await catalog.artifact(f"smol@{CHECKPOINT.digest}") == CHECKPOINT
    assert await catalog.artifacts() == (CHECKPOINT, newer)
    with pytest.raises(CheckpointNotFound):
        await catalog.artifact(f"smol@{digest('e')}")


async def test_one_artifact_may_have_several_names(catalog: Catalog) -> None:
    await catalog.put_artifact(CHECKPOINT)
    await catalog.put_artifact(replace(CHECKPOINT, name="alias", created_at=5.0))
    assert (await catalog.artifact("smol")).name == "smol"
    alias = await catalog.artifact("alias")
    assert (alias.name, alias.created_at) == ("alias", CHECKPOINT.created_at)
    unnamed = await catalog.put_artifact(replace(CHECKPOINT, name=None))
    assert unnamed.name == "alias"  # pushing without a name takes none away


async def test_an_unknown_checkpoint_names_the_nearest_and_the_next_step(catalog: Catalog) -> None:
    await catalog.put_artifact(CHECKPOINT)
    with pytest.raises(CheckpointNotFound, match=r"did you mean 'smol'\?.*`stoker push DIR smoll`"):
        await catalog.artifact("smoll")


async def test_what_was_never_pushed_or_is_gone_is_not_deployed(catalog: Catalog) -> None:
    with pytest.raises(CheckpointNotFound, match=CHECKPOINT.digest):
        await catalog.deploy(DRAFT, 1.0)
    await catalog.put_artifact(CHECKPOINT)
    await catalog.forget_artifact(CHECKPOINT.digest)
    with pytest.raises(CheckpointNotFound):
        await catalog.deploy(DRAFT, 1.0)
    for reference in ("smol", f"smol@{CHECKPOINT.digest}", CHECKPOINT.digest):
        with pytest.raises(CheckpointNotFound):
            await catalog.artifact(reference)
    assert CHECKPOINT.source_digest is not None
    assert await catalog.artifact_of_source(CHECKPOINT.source_digest) is None
    assert await catalog.functions() == ()


async def test_what_a_revision_needs_is_not_forgotten(pushed: Catalog) -> None:
    await pushed.deploy(DRAFT, 1.0)
    await pushed.deploy(replace(DRAFT, checkpoint=None, source=OTHER), 2.0)
    assert await pushed.users() == {
        CHECKPOINT.digest: ("chat-00001",),
        OTHER.digest: ("chat-00002",),
    }
    for artifact, revision in ((CHECKPOINT, "chat-00001"), (OTHER, "chat-00002")):
        with pytest.raises(CheckpointInUse, match=revision):
            await pushed.forget_artifact(artifact.digest)
        assert await pushed.artifact(artifact.digest) == artifact
    await pushed.deploy(DRAFT, 3.0)
    await pushed.delete("chat")
    for artifact in (CHECKPOINT, OTHER):
        await pushed.forget_artifact(artifact.digest)
    assert await pushed.artifacts() == ()
    assert await pushed.names() == {}


async def test_a_deploy_and_a_delete_at_once_leave_no_revision_without_its_files(
    catalog: Catalog,
) -> None:
    """One of the two is refused, whichever came first."""
    outcomes = set()
    for number in range(40):
        await catalog.put_artifact(CHECKPOINT)
        draft = replace(DRAFT, env={"N": str(number)})
        turns = [catalog.deploy(draft, 1.0), catalog.forget_artifact(CHECKPOINT.digest)]
        deployed, forgotten = await asyncio.gather(
            *(turns if number % 2 else reversed(turns)), return_exceptions=True
        )
        if not number % 2:
            deployed, forgotten = forgotten, deployed
        there = CHECKPOINT in await catalog.artifacts()
        assert there == isinstance(forgotten, CheckpointInUse | Conflict)
        assert not isinstance(deployed, tuple) or there
        outcomes.add(there)
        if isinstance(deployed, tuple):
            await catalog.delete("chat")
    assert outcomes == {True, False}, "both ways were seen"


async def test_what_is_pushed_while_it_is_deleted_stays(catalog: Catalog, store: Store) -> None:
    await catalog.put_artifact(CHECKPOINT)
    await store.commit([], [Put(f"doomed/{'a' * 64}", b"")])
    with pytest.raises(Conflict):
        await catalog.deploy(DRAFT, 1.0)
    await catalog.put_artifact(CHECKPOINT)
    await catalog.deploy(DRAFT, 1.0)
    await store.commit([], [Put(f"doomed/{'a' * 64}", b"")])
    await catalog.undoom()
    await catalog.deploy(replace(DRAFT, env={"A": "1"}), 1.0)


async def test_a_value_of_another_format_is_refused(pushed: Catalog, store: Store) -> None:
    await pushed.deploy(DRAFT, 1.0)
    entry = await store.get("functions/chat")
    assert entry is not None
    newer = entry.value.replace(b'"version":1', b'"version":2')
    for value, message in ((newer, "format 2"), (b"{}", "expected a stored function")):
        await store.commit([], [Put("functions/chat", value)])
        with pytest.raises(StoreUnusable, match=message):
            await pushed.function("chat")


async def test_pins_are_of_a_node_and_go_with_what_they_pin(pushed: Catalog) -> None:
    here, there = NodeId("here"), NodeId("there")
    await pushed.pin(here, CHECKPOINT.digest, Tier.SSD)
    await pushed.pin(here, OTHER.digest, Tier.SSD)
    await pushed.pin(here, OTHER.digest, Tier.DRAM)
    await pushed.pin(there, OTHER.digest, Tier.SSD)
    assert await pushed.pins() == {
        here: {CHECKPOINT.digest: Tier.SSD, OTHER.digest: Tier.DRAM},
        there: {OTHER.digest: Tier.SSD},
    }
    await pushed.unpin(there, OTHER.digest)
    await pushed.unpin(there, OTHER.digest)
    await pushed.forget_artifact(OTHER.digest)
    assert await pushed.pins() == {here: {CHECKPOINT.digest: Tier.SSD}}
    with pytest.raises(CheckpointNotFound):
        await pushed.pin(here, OTHER.digest, Tier.SSD)


async def test_what_is_kept_of_a_checkpoint_is_content_and_its_default_is_none(
    pushed: Catalog,
) -> None:
    revision, _ = await pushed.deploy(DRAFT, 1.0)
    # What it was before there was a cache section.
    known = "sha256:f1a5b85faf0ee82765fb5e9c04e7a0324e7e98d2475d194455faa46c27d5cda5"
    assert revision.content_digest == content_digest(DRAFT) == known
    kept, created = await pushed.deploy(replace(DRAFT, cache=CachePolicy(pin=Tier.DRAM)), 2.0)
    assert created
    assert (await pushed.revision(kept.id)).cache == CachePolicy(pin=Tier.DRAM)
