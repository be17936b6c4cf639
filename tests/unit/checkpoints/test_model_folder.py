"""What a folder that somebody uploads is found to be, file by file."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.checkpoints.bucket import StoredObject
from stoker.checkpoints.model_folder import (
    INDEX,
    ModelFolder,
    Verdict,
    folders_of,
    judge,
    place_of,
    to_read,
)

TEXT = {"architectures": ["LlamaForCausalLM"], "vocab_size": 49152}
SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]


def stored(key: str, etag: str = "e", size_bytes: int = 1) -> StoredObject:
    return StoredObject(key, size_bytes, etag, modified_at=0.0)


def folder(*paths: str) -> ModelFolder:
    return ModelFolder("smol", {path: stored(f"models/smol/{path}") for path in paths})


def verdict(paths: Iterable[str], config: object = TEXT, index: object = None) -> Verdict:
    made = folder(*paths)
    contents = {"config.json": config, INDEX: index}
    return judge(made, {path: contents[path] for path in to_read(made)})


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("models/smol/config.json", ("smol", "config.json")),
        ("models/smol/tokenizer/ä b.json", ("smol", "tokenizer/ä b.json")),
        ("models/smol/", None),
        ("models/smol/tokenizer/", None),
        ("models/config.json", None),
        ("models/smol/.DS_Store", None),
        ("models/smol/.git/config", None),
        ("models/a b/config.json", None),
        ("checkpoints/smol/config.json", None),
        ("models/smol/../etc/passwd", ("smol", "../etc/passwd")),
    ],
)
def test_where_an_object_belongs(key: str, place: tuple[str, str] | None) -> None:
    assert place_of(key) == place


@pytest.mark.parametrize(
    ("paths", "index"),
    [
        (["config.json", "tokenizer.json", "model.safetensors"], None),
        (["config.json", "tokenizer.json", *SHARDS], None),
        (
            ["config.json", "tokenizer.json", INDEX, "a.safetensors", "b.safetensors"],
            {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}},
        ),
    ],
)
def test_it_is_complete_with_the_last_of_its_files_in_whatever_order_they_come(
    paths: list[str], index: object
) -> None:
    for order in permutations(paths):
        for count in range(1, len(order)):
            partly = verdict(order[:count], index=index)
            assert partly.wanted == ()
            assert partly.refused is None
            assert set(partly.lacking) <= {*order[count:], "model.safetensors"}
            assert partly.lacking
        assert verdict(order, index=index) == Verdict(wanted=tuple(sorted(paths)))


def test_a_model_that_reads_no_text_needs_no_tokenizer() -> None:
    paths = ["config.json", "model.safetensors"]
    assert verdict(paths, config={"num_labels": 3}).lacking == ()
    assert verdict(paths, config=TEXT).lacking == ("tokenizer.json",)
    assert verdict([*paths, "vocab.txt"], config=TEXT).lacking == ()


def test_what_is_not_needed_is_not_brought() -> None:
    found = verdict(
        [
            *("config.json", "tokenizer.json", "model.safetensors", "README.md"),
            *("pytorch_model.bin", "original/consolidated.00.pth", "onnx/model.safetensors"),
            *("README.md.part", "README.md.part.map"),
        ]
    )
    assert found.wanted == ("README.md", "config.json", "model.safetensors", "tokenizer.json")


@pytest.mark.parametrize(
    ("paths", "config", "index", "reason"),
    [
        (["config.json", "pytorch_model.bin"], TEXT, None, "python -m stoker_loader convert"),
        (["config.json", "../passwd"], TEXT, None, "'../passwd' is not a file's name"),
        (["config.json", "a//b"], TEXT, None, "not a file's name"),
        (["config.json"], [1], None, "config.json holds no JSON object"),
        ([INDEX], TEXT, {"weight_map": {}}, "no weight_map"),
        ([INDEX], TEXT, {"weight_map": {"x": "../a.safetensors"}}, "no weight_map"),
        ([INDEX], TEXT, {"weight_map": {"x": 7}}, "no weight_map"),
        ([INDEX], TEXT, {}, "no weight_map"),
        ([INDEX], TEXT, {"weight_map": {"x": []}}, "no weight_map"),
        ([INDEX], TEXT, {"weight_map": {"x": "pytorch_model.bin"}}, "no weight_map"),
        (
            [INDEX],
            TEXT,
            {"weight_map": {str(n): f"{n}.safetensors" for n in range(10_001)}},
            "no weight_map",
        ),
        ([f"f{n}" for n in range(10_001)], TEXT, None, "more than 10000 files"),
        ([f"{n}-00001-of-99999.safetensors" for n in range(9_000)], TEXT, None, "more than 10000"),
        (["config.json", "config.json/x"], TEXT, None, "lies below 'config.json'"),
    ],
)
def test_what_can_never_become_a_checkpoint_is_refused_with_the_reason(
    paths: list[str], config: object, index: object, reason: str
) -> None:
    found = verdict(paths, config, index)
    assert (found.wanted, found.lacking) == ((), ())
    assert found.refused is not None
    assert reason in found.refused


def test_folders_are_told_apart_and_known_by_their_objects() -> None:
    keys = ["models/a/config.json", "models/a/x/y", "models/b/config.json", "other"]
    found = folders_of(map(stored, keys))
    assert {name: sorted(one.objects) for name, one in found.items()} == {
        "a": ["config.json", "x/y"],
        "b": ["config.json"],
    }
    prints = {
        folders_of([stored("models/a/f", etag, size)])["a"].fingerprint
        for etag, size in (("e", 1), ("f", 1), ("e", 2))
    }
    assert len(prints) == 3
    assert folder("x", "y").fingerprint == folder("y", "x").fingerprint


NAMES = ["config.json", "tokenizer.json", "model.safetensors", INDEX, *SHARDS, "x.bin", "a/b"]
ANYTHING = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.sets(st.sampled_from(NAMES)), ANYTHING | st.fixed_dictionaries({"weight_map": ANYTHING}))
def test_whatever_is_there_it_is_one_of_three(paths: set[str], anything: object) -> None:
    found = verdict(paths, anything, anything)
    assert sum(map(bool, (found.wanted, found.lacking, found.refused))) == 1
    assert set(found.wanted) <= paths
    assert not set(found.lacking) & paths
