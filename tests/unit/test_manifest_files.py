"""Which files of a user's disk belong to a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stoker.errors import InvalidManifest, PayloadTooLarge
from stoker.local_files import MAX_SOURCE_BYTES, LocalFile, LocalFiles, local_files
from stoker.manifest import parse_manifest

HANDLER = {"name": "echo", "runtime": {"handler": "handler.py"}}


def write(base: Path, *paths: str) -> None:
    for path in paths:
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_text(path)


def files_of(data: dict[str, Any], base: Path) -> LocalFiles:
    return local_files(parse_manifest(data), base)


def paths_of(files: tuple[LocalFile, ...] | None) -> list[str]:
    assert files is not None
    return [file.path for file in files]


def test_a_handlers_folder_without_what_is_not_source(tmp_path: Path) -> None:
    write(
        tmp_path, "handler.py", "lib/helper.py", "data.json", "function.yaml", "README.md",
        "readme.txt", ".env", ".git/config", "__pycache__/handler.pyc", "lib/__pycache__/h.pyc",
    )  # fmt: skip
    found = files_of(HANDLER, tmp_path)
    assert paths_of(found.source) == ["data.json", "handler.py", "lib/helper.py"]
    assert found.model is None
    assert found.source is not None
    assert found.source[1] == LocalFile("handler.py", tmp_path / "handler.py", 10)


def test_a_models_directory_is_whole_and_apart_from_the_sources(tmp_path: Path) -> None:
    write(tmp_path, "handler.py", "weights/model.safetensors", "weights/README.md", "weights/.x")
    found = files_of({**HANDLER, "model": {"uri": "weights"}}, tmp_path)
    assert paths_of(found.model) == ["README.md", "model.safetensors"]
    assert paths_of(found.source) == ["handler.py"]


def test_pickles_are_left_out_only_beside_safetensors(tmp_path: Path) -> None:
    write(tmp_path, "model/pytorch_model.bin", "model/config.json", "model/function.yaml")
    data = {"name": "a", "model": {"uri": "model"}}
    # Uploaded, so that the platform refuses it by name.
    assert paths_of(files_of(data, tmp_path).model) == ["config.json", "pytorch_model.bin"]
    write(tmp_path, "model/model.safetensors")
    assert paths_of(files_of(data, tmp_path).model) == ["config.json", "model.safetensors"]


def test_a_file_of_weights_has_its_companions_and_is_apart_from_the_sources(
    tmp_path: Path,
) -> None:
    write(tmp_path, "handler.py", "model.safetensors", "notes.txt", "config.json", "labels.json")
    found = files_of({**HANDLER, "model": {"uri": "model.safetensors"}}, tmp_path)
    assert paths_of(found.model) == ["config.json", "model.safetensors"]
    assert paths_of(found.source) == ["config.json", "handler.py", "labels.json", "notes.txt"]


def test_a_file_may_be_a_link_into_a_hubs_cache(tmp_path: Path) -> None:
    write(tmp_path, "blobs/abc", "snapshot/config.json")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    found = files_of({"name": "a", "model": {"uri": "snapshot/model.safetensors"}}, tmp_path)
    assert paths_of(found.model) == ["config.json", "model.safetensors"]


def test_other_formats_are_refused_with_the_next_step(tmp_path: Path) -> None:
    write(tmp_path, "gguf/tiny.gguf", "pickle/model.pt")
    for uri, step in (
        ("gguf/tiny.gguf", r"model\.uri: .*`stoker push .*tiny\.gguf NAME`.*store://NAME"),
        ("gguf", r"model\.uri: .*push the file.*`stoker push .*tiny\.gguf NAME`"),
        ("pickle/model.pt", r"model\.uri: .*`python -m stoker_loader convert .*model\.pt "),
    ):
        with pytest.raises(InvalidManifest, match=step):
            files_of({"name": "a", "model": {"uri": uri}}, tmp_path)


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "blobs/abc")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    found = files_of({"name": "a", "model": {"uri": "model"}}, tmp_path)
    assert found.model is not None
    assert (found.model[0].path, found.model[0].size_bytes) == ("model.safetensors", 9)


@pytest.mark.parametrize(
    "data",
    [
        {"name": "a", "model": {"uri": "store://smol"}},
        {"name": "a", "model": {"uri": "not-here", "digest": "blake3:" + "a" * 64}},
        {**HANDLER, "source": {"digest": "blake3:" + "a" * 64}},
    ],
)
def test_what_is_in_the_store_needs_no_files(tmp_path: Path, data: dict[str, Any]) -> None:
    assert files_of(data, tmp_path) == LocalFiles(None, None)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match=r"runtime\.handler: there is no file .*handler\.py"):
        files_of(HANDLER, tmp_path)
    with pytest.raises(InvalidManifest, match=r"model\.uri: there is no directory .*stoker push"):
        files_of({"name": "a", "model": {"uri": "nowhere"}}, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidManifest, match="empty holds no files"):
        files_of({"name": "a", "model": {"uri": "empty"}}, tmp_path)


def test_sources_are_bounded(tmp_path: Path) -> None:
    write(tmp_path, "handler.py")
    with (tmp_path / "weights.npy").open("wb") as file:
        file.truncate(MAX_SOURCE_BYTES + 1)
    with pytest.raises(PayloadTooLarge, match="keep weights in a directory of their own"):
        files_of(HANDLER, tmp_path)
