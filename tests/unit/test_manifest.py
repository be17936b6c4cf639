"""What function.yaml accepts, what it refuses, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stoker.domain import (
    Artifact,
    CachePolicy,
    Digest,
    EngineName,
    Resources,
    ScalePolicy,
    StartupPolicy,
    Tier,
)
from stoker.errors import InvalidManifest
from stoker.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest, read_manifest, to_draft
from stoker.manifest_problems import UNSUPPORTED, known_keys

MINIMAL: dict[str, Any] = {"name": "chat", "model": {"uri": "store://smol"}}
DIGEST = "blake3:" + "a" * 64
FULL = """
name: smollm-chat
model: {uri: ./smollm2, digest: null, quantization: none, adapters: []}
runtime: {engine: causal_lm, handler: null, image: null, args: {max_model_len: 2048}}
resources: {cpu: 2, memory: 2Gi, gpu: 0, gpu_memory: null}
scale: {min: 0, max: 4, target: 8, hard_limit: 16, buffer: 0, keep_alive: 5m, schedule: []}
startup: {timeout: 10m, on_cold: hold, max_held: 200, fallback: null}
cache: {pin: null, min_copies: 1, prefetch: []}
migration: {enabled: true, max_per_request: 3}
traffic: [{revision: latest, percent: 100}]
env: {}
secrets: []
tenant: default
"""


def changed(**sections: Any) -> dict[str, Any]:
    return {**MINIMAL, **sections}


def problems(data: Any) -> list[str]:
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(data)
    found = [problem["message"] for problem in caught.value.details["problems"]]
    assert caught.value.message.startswith(found[0])
    return found


def test_the_full_manifest_at_its_defaults_is_accepted() -> None:
    manifest = parse_manifest(yaml.safe_load(FULL))
    assert manifest.model is not None
    assert manifest.model.directory == "./smollm2"
    assert manifest.runtime.args.max_model_len == 2048
    assert manifest.scale.keep_alive == 300.0


@pytest.mark.parametrize(
    ("section", "policy", "pinned_in"),
    [
        ({}, CachePolicy(), None),
        ({"pin": "ssd"}, CachePolicy(pin=Tier.SSD), Tier.SSD),
        ({"pin": "dram", "min_copies": 2}, CachePolicy(Tier.DRAM, 2), Tier.DRAM),
        ({"min_copies": 3}, CachePolicy(min_copies=3), Tier.SSD),
        (
            {"prefetch": ["dram", "ssd", "dram"]},
            CachePolicy(prefetch=(Tier.DRAM, Tier.SSD)),
            None,
        ),
    ],
)
def test_what_is_kept_is_a_policy(
    section: dict[str, Any], policy: CachePolicy, pinned_in: Tier | None
) -> None:
    draft = to_draft(parse_manifest(changed(cache=section)), Artifact(Digest(DIGEST), 1), None)
    assert draft.cache == policy
    assert draft.cache.pinned_in == pinned_in


def test_what_is_left_out_has_the_defaults_of_the_domain() -> None:
    draft = to_draft(parse_manifest(MINIMAL), Artifact(Digest(DIGEST), 1), None)
    assert draft.resources == Resources()
    assert draft.scale == ScalePolicy()
    assert draft.startup == StartupPolicy()
    assert draft.env == {}


@pytest.mark.parametrize("path", sorted(UNSUPPORTED))
def test_what_is_not_supported_yet_says_so_unless_it_asks_for_nothing(path: str) -> None:
    section, _, key = path.rpartition(".")

    def with_value(value: Any) -> dict[str, Any]:
        if not section:
            return changed(**{key: value})
        return changed(**{section: {**MINIMAL.get(section, {}), key: value}})

    parse_manifest(with_value(UNSUPPORTED[path]))
    parse_manifest(with_value(None))
    assert problems(with_value("something")) == [
        f"{path}: not supported yet; leave it out (its default is {UNSUPPORTED[path]!r})"
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(runtime={"engin": "auto"}), "'runtime.engin'; did you mean 'runtime.engine'?"),
        (changed(scael={}), "'scael'; did you mean 'scale'?"),
        (changed(memory="2Gi"), "'memory'; did you mean 'resources.memory'?"),
        (changed(keepalive="5m"), "'keepalive'; did you mean 'scale.keep_alive'?"),
        (changed(scale={"hardlimit": 3}), "'scale.hardlimit'; did you mean 'scale.hard_limit'?"),
        (
            changed(runtime={"args": {"max_len": 3}}),
            "'runtime.args.max_len'; did you mean 'runtime.args.max_model_len'?",
        ),
        (changed(cache={"pinn": 1}), "'cache.pinn'; did you mean 'cache.pin'?"),
        (changed(resources={"zzz": 1}), "'resources.zzz'; the keys here are cpu, memory"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(data: dict[str, Any], message: str) -> None:
    assert problems(data) == [f"unknown key {message}"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"model": {"uri": "x"}}, "key 'name' is missing"),
        ({"name": "chat"}, "give a model (`model: {uri: ...}`) or a runtime.handler"),
        (changed(name="Chat Bot"), "name: 'Chat Bot' is not a name"),
        (changed(name="-a"), "name: '-a' is not a name"),
        (changed(name="a" * 64), "is not a name"),
        (changed(name=7), "name: must be a valid string, not 7"),
        (changed(model={}), "model: give a uri"),
        (changed(model={"uri": "s3://bucket/x"}), "model.uri: expected s3://models/NAME"),
        (changed(model={"uri": "gs://bucket/x"}), "model.uri: gs:// is not supported yet"),
        (changed(model={"uri": "store://a/b"}), "model.uri: expected store://NAME"),
        (changed(model={"uri": "blake3:abc"}), "model.uri: expected store://NAME"),
        (changed(model={"uri": "x", "digest": "abc"}), "model.digest: "),
        (changed(runtime={"engine": "vllm"}), "runtime.engine: must be 'auto', 'causal_lm',"),
        (changed(runtime={"engine": "handler"}), "runtime: engine handler needs a handler"),
        (
            changed(runtime={"engine": "causal_lm", "handler": "handler.py"}),
            "runtime: a handler runs in engine handler, not in causal_lm",
        ),
        (changed(runtime={"handler": "../x.py"}), "runtime.handler: expected a Python file"),
        (changed(runtime={"handler": "handler.sh"}), "runtime.handler: expected a Python file"),
        (changed(runtime={"args": {"max_batch": 0}}), "runtime.args.max_batch: must be greater"),
        (changed(runtime={"args": {"max_model_len": "2k"}}), "runtime.args.max_model_len: "),
        (changed(resources={"cpu": 0}), "resources.cpu: must be greater than 0, not 0"),
        (changed(resources={"memory": "lots"}), "resources.memory: expected a size like"),
        (changed(resources={"memory": "1Mi"}), "resources.memory: must be greater"),
        (changed(scale={"min": 2}), "scale: min (2) is above max (1)"),
        (changed(scale={"target": 9, "hard_limit": 8}), "scale: target (9) is above hard_limit"),
        (changed(scale={"keep_alive": "5 minutes"}), "scale.keep_alive: expected a duration"),
        (changed(scale={"keep_alive": -1}), "scale.keep_alive: expected a duration"),
        (changed(cache={"pin": "device"}), "cache.pin: must be 'ssd' or 'dram', not 'device'"),
        (changed(cache={"min_copies": 0}), "cache.min_copies: must be greater"),
        (changed(cache={"prefetch": ["gpu"]}), "cache.prefetch.0: must be 'ssd' or 'dram'"),
        (
            {"name": "x", "runtime": {"handler": "h.py"}, "cache": {"pin": "ssd"}},
            "cache says what is kept of a model, and there is none",
        ),
        (changed(startup={"timeout": 0}), "startup.timeout: must be greater than 0"),
        (changed(env={"A": 1}), "env.A: must be a valid string, not 1"),
        (changed(env={"A B": "1"}), "env: 'A B' cannot be an environment variable"),
        (changed(scale=[1]), "scale: must be a valid dictionary"),
        ([MINIMAL], "a manifest is a mapping of keys, not list"),
        (None, "a manifest is a mapping of keys, not NoneType"),
    ],
)
def test_a_broken_rule_is_named_with_its_key(data: Any, message: str) -> None:
    found = problems(data)
    assert len(found) == 1
    assert message in found[0]


def test_all_problems_are_reported_together() -> None:
    data = changed(name="No", runtime={"engin": 1}, scale={"min": 3}, tenant="me", typo=1)
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(data)
    paths = {problem["path"] for problem in caught.value.details["problems"]}
    assert paths == {"name", "runtime.engin", "scale", "tenant", "typo"}
    assert caught.value.message.endswith("(and 4 more, see details)")
    assert (caught.value.status, caught.value.code) == (400, "invalid_manifest")


@pytest.mark.parametrize(
    ("scale", "target", "hard_limit"),
    [
        ({}, 8, 16),
        ({"target": 4}, 4, 16),
        ({"target": 100}, 100, 100),
        ({"hard_limit": 4}, 4, 4),
        ({"hard_limit": 40}, 8, 40),
        ({"target": 2, "hard_limit": 3}, 2, 3),
    ],
)
def test_target_and_hard_limit_follow_each_other(
    scale: dict[str, int], target: int, hard_limit: int
) -> None:
    found = parse_manifest(changed(scale=scale)).scale
    assert (found.target, found.hard_limit) == (target, hard_limit)


@pytest.mark.parametrize(
    ("uri", "directory"),
    [
        ("store://smol", None),
        (f"store://smol@{DIGEST}", None),
        (DIGEST, None),
        ("./model", "./model"),
        ("/srv/models/smol", "/srv/models/smol"),
        ("..", ".."),
    ],
)
def test_only_a_directory_has_to_be_uploaded(uri: str, directory: str | None) -> None:
    model = parse_manifest(changed(model={"uri": uri})).model
    assert model is not None
    assert model.directory == directory


def test_every_supported_key_is_known_by_its_path() -> None:
    keys = set(known_keys(Manifest))
    assert {"name", "model.uri", "source.digest", "runtime.args.max_batch", "env"} <= keys
    assert keys.isdisjoint(UNSUPPORTED)


# --- drafts ---------------------------------------------------------------------------------


def test_a_handler_runs_in_engine_handler() -> None:
    manifest = parse_manifest({"name": "echo", "runtime": {"handler": "handler.py"}})
    source = Artifact(Digest(DIGEST), 1)
    draft = to_draft(manifest, None, source)
    assert (draft.runtime.engine, draft.runtime.handler) == (EngineName.HANDLER, "handler.py")
    assert (draft.source, draft.checkpoint) == (source, None)
    with pytest.raises(InvalidManifest, match=r"handler 'handler\.py' are not in the store"):
        to_draft(manifest, None, None)


def test_a_model_that_was_not_uploaded_is_named() -> None:
    with pytest.raises(InvalidManifest, match="'store://smol' are not in the store") as caught:
        to_draft(parse_manifest(MINIMAL), None, None)
    assert caught.value.param == "model.digest"


def test_a_draft_carries_everything() -> None:
    data = changed(
        runtime={"args": {"max_batch": 2}, "options": {"labels": ["a"]}},
        resources={"cpu": 0.5, "memory": "512Mi"},
        scale={"min": 1, "max": 3, "target": 2, "hard_limit": 4, "keep_alive": "30s"},
        startup={"timeout": "1h30m", "max_held": 5},
        env={"KEY": "value"},
    )
    draft = to_draft(parse_manifest(data), Artifact(Digest(DIGEST), 1), None)
    assert draft.runtime.args == {"max_model_len": None, "max_batch": 2, "prefill_chunk": 256}
    assert draft.runtime.options == {"labels": ["a"]}
    assert draft.resources == Resources(0.5, 512 << 20)
    assert draft.scale == ScalePolicy(1, 3, 2, 4, 30.0)
    assert draft.startup == StartupPolicy(5400.0, 5)
    assert draft.env == {"KEY": "value"}


# --- files ----------------------------------------------------------------------------------


def test_a_manifest_is_read_from_its_file_or_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "function.yaml"
    path.write_text(FULL)
    assert read_manifest(tmp_path) == read_manifest(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: chat\nmodel: {uri: x\n", "line 3, column 1"),
        ("name: chat\n\tmodel: x\n", "line 2, column 1"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1, column 4"),
        ("\x00", "is not YAML"),
        ("- 1\n", "a manifest is a mapping"),
        ("", "a manifest is a mapping"),
        ("#" * (MAX_MANIFEST_BYTES + 1), "is over"),
    ],
)
def test_broken_yaml_names_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "function.yaml"
    path.write_text(text)
    with pytest.raises(InvalidManifest, match=message):
        read_manifest(path)


def test_a_missing_manifest_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match=r"function\.yaml.*stoker init"):
        read_manifest(tmp_path)
