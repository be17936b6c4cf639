"""Functions, revisions and artifacts on top of every store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from stoker.domain import Artifact, Digest, FunctionName, RuntimeSpec, ScalePolicy
from stoker.errors import CheckpointNotFound, FunctionNotFound, RevisionNotFound
from stoker.store.base import Put, Store, StoreUnusable
from stoker.store.catalog import KEPT_REVISIONS, MAX_ATTEMPTS, Catalog
from stoker.store.draft import RevisionDraft, content_digest


def digest(digit: str) -> Digest:
    return Digest("blake3:" + digit * 64)


CHECKPOINT = Artifact(digest("a"), 10, "smol", digest("b"), created_at=1.0)
DRAFT = RevisionDraft(FunctionName("chat"), checkpoint=CHECKPOINT)


@pytest.fixture
def catalog(store: Store) -> Catalog:
    return Catalog(store)


async def test_a_deploy_makes_a_function_with_its_first_revision(catalog: Catalog) -> None:
    revision, created = await catalog.deploy(DRAFT, 100.0)
    assert created
    assert (revision.id, revision.number, revision.created_at) == ("chat-00001", 1, 100.0)
    assert revision.checkpoint == CHECKPOINT
    function = await catalog.function("chat")
    assert (function.latest, function.revisions) == (revision.id, (revision.id,))
    assert await catalog.functions() == (function,)
    assert await catalog.revision(revision.id) == revision
    assert await catalog.revisions("chat") == (revision,)


async def test_the_same_content_is_the_same_revision(catalog: Catalog) -> None:
    first, _ = await catalog.deploy(DRAFT, 100.0)
    # The name and the time of a push are no content.
    pushed_again = replace(CHECKPOINT, name="other", created_at=9.0)
    assert await catalog.deploy(replace(DRAFT, checkpoint=pushed_again), 200.0) == (first, False)


@pytest.mark.parametrize(
    "draft",
    [
        replace(DRAFT, checkpoint=replace(CHECKPOINT, digest=digest("c"))),
        replace(DRAFT, source=CHECKPOINT),
        replace(DRAFT, runtime=RuntimeSpec(args={"max_batch": 4})),
        replace(DRAFT, scale=ScalePolicy(max=2)),
        replace(DRAFT, env={"A": "1"}),
    ],
)
async def test_other_content_is_the_next_revision(catalog: Catalog, draft: RevisionDraft) -> None:
    first, _ = await catalog.deploy(DRAFT, 100.0)
    second, created = await catalog.deploy(draft, 200.0)
    assert created
    assert (second.number, second.id) == (2, "chat-00002")
    function = await catalog.function("chat")
    assert function.latest == second.id
    assert function.created_at == 100.0
    assert await catalog.revisions("chat") == (first, second)
    # Going back to what ran before is a new revision: only the latest is compared.
    third, created = await catalog.deploy(DRAFT, 300.0)
    assert (third.number, created, third.content_digest) == (3, True, first.content_digest)


def test_the_content_digest_does_not_depend_on_the_order_of_keys() -> None:
    one = replace(DRAFT, env={"A": "1", "B": "2"})
    other = replace(DRAFT, env={"B": "2", "A": "1"})
    assert content_digest(one) == content_digest(other)


async def test_concurrent_deploys_get_numbers_of_their_own(catalog: Catalog) -> None:
    drafts = [replace(DRAFT, env={"N": str(n)}) for n in range(MAX_ATTEMPTS)]
    deployed = await asyncio.gather(*(catalog.deploy(draft, 1.0) for draft in drafts))
    assert sorted(revision.number for revision, _ in deployed) == list(range(1, MAX_ATTEMPTS + 1))
    assert len((await catalog.function("chat")).revisions) == MAX_ATTEMPTS


async def test_concurrent_deploys_of_the_same_content_make_one_revision(catalog: Catalog) -> None:
    deployed = await asyncio.gather(*(catalog.deploy(DRAFT, 1.0) for _ in range(6)))
    assert sum(created for _, created in deployed) == 1
    assert len(await catalog.revisions("chat")) == 1


async def test_old_revisions_are_forgotten(catalog: Catalog) -> None:
    for number in range(KEPT_REVISIONS + 2):
        await catalog.deploy(replace(DRAFT, env={"N": str(number)}), 1.0)
    kept = await catalog.revisions("chat")
    assert [revision.number for revision in kept] == list(range(3, KEPT_REVISIONS + 3))
    with pytest.raises(RevisionNotFound):
        await catalog.revision("chat-00001")


async def test_a_deleted_functions_revision_ids_are_never_given_again(catalog: Catalog) -> None:
    await catalog.deploy(DRAFT, 1.0)
    await catalog.delete("chat")
    assert await catalog.functions() == ()
    for gone in (catalog.function("chat"), catalog.revisions("chat"), catalog.delete("chat")):
        with pytest.raises(FunctionNotFound):
            await gone
    with pytest.raises(RevisionNotFound, match="chat-00001"):
        await catalog.revision("chat-00001")
    revision, created = await catalog.deploy(DRAFT, 2.0)
    assert (revision.id, created) == ("chat-00002", True)


async def test_an_unknown_function_names_the_nearest_and_the_next_step(catalog: Catalog) -> None:
    await catalog.deploy(DRAFT, 1.0)
    with pytest.raises(FunctionNotFound, match=r"did you mean 'chat'\?.*stoker deploy"):
        await catalog.function("chatt")
    with pytest.raises(FunctionNotFound, match=r"^no function 'zzz' is deployed; deploy it"):
        await catalog.function("zzz")


async def test_functions_whose_names_begin_alike_are_kept_apart(catalog: Catalog) -> None:
    for name in ("chat", "chat-2", "chatter"):
        await catalog.deploy(replace(DRAFT, function=FunctionName(name)), 1.0)
    await catalog.delete("chat")
    assert [function.name for function in await catalog.functions()] == ["chat-2", "chatter"]
    assert [revision.id for revision in await catalog.revisions("chat-2")] == ["chat-2-00001"]


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


async def test_a_value_of_another_format_is_refused(catalog: Catalog, store: Store) -> None:
    await catalog.deploy(DRAFT, 1.0)
    entry = await store.get("functions/chat")
    assert entry is not None
    newer = entry.value.replace(b'"version":1', b'"version":2')
    for value, message in ((newer, "format 2"), (b"{}", "expected a stored function")):
        await store.commit([], [Put("functions/chat", value)])
        with pytest.raises(StoreUnusable, match=message):
            await catalog.function("chat")
