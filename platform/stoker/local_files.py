"""The files on a user's disk that a manifest or `stoker push` names, and that the CLI uploads."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stoker.checkpoints.model_folder import (
    COMPANIONS,
    CONFIG,
    INDEX,
    MAX_READ_BYTES,
    lacking_companions,
    shards_of,
)
from stoker.errors import BadRequest, InvalidManifest, PayloadTooLarge
from stoker.manifest import MANIFEST_NAME, Manifest

MAX_SOURCE_BYTES = 64 << 20
MAX_SOURCE_FILES = 1000
MAX_MODEL_FILES = 10_000
MAX_NAMED = 5  # files in one message
LEFT_OUT = frozenset({"__pycache__", "node_modules", MANIFEST_NAME})
SAFETENSORS, GGUF, INDEX_END = ".safetensors", ".gguf", ".safetensors.index.json"
# What the layout leaves out when there is a better copy: uploading it would be in vain.
PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")  # a split file's stem


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to upload: `path` is what it is called in the artifact, with "/" on every system."""

    path: str
    location: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """What to upload: None where the manifest names nothing on this disk."""

    model: tuple[LocalFile, ...] | None
    source: tuple[LocalFile, ...] | None


def local_files(manifest: Manifest, base: Path) -> LocalFiles:
    """The files that `manifest`, found in the folder `base`, needs uploaded.

    Raises InvalidManifest (not there, empty, or no checkpoint), PayloadTooLarge.
    """
    model: tuple[LocalFile, ...] | None = None
    without: frozenset[Path] = frozenset()
    if manifest.model is not None and manifest.model.directory and manifest.model.digest is None:
        place = base / Path(manifest.model.directory).expanduser()
        # A file stays where it was named: what belongs to it lies beside the link, not its target.
        place = place if place.is_file() else place.resolve()
        try:
            model = model_files(place)
        except BadRequest as error:
            raise InvalidManifest(f"model.uri: {error.message}", param="model.uri") from error
        # Of the handler's folder: what the checkpoint has, all of a directory or a file's weights.
        weights = {file.location.resolve() for file in model if _is_weights(file)}
        without = frozenset(weights if place.is_file() else {place})
    source: tuple[LocalFile, ...] | None = None
    if manifest.runtime.handler is not None and manifest.source is None:
        source = source_files(base, manifest.runtime.handler, without=without)
    return LocalFiles(model, source)


def model_files(path: Path) -> tuple[LocalFile, ...]:
    """The files of a checkpoint: a directory's, or a safetensors file (or the shards of an index)
    with what a model needs beside it.

    Hidden files stay out, and pickles beside safetensors; links to files are followed, because
    model hubs' local caches are made of them. Raises BadRequest, PayloadTooLarge.
    """
    if path.is_file():
        return _collect(path.parent, "model", MAX_MODEL_FILES, None, _with_companions(path))
    if not path.is_dir():
        raise BadRequest(
            f"there is no directory or file {path}; name a directory with .safetensors files, one"
            " such file, or store://NAME for a checkpoint that `stoker push` stored",
            param="path",
        )
    found = _walk(path, "model", frozenset())
    files = _collect(path, "model", MAX_MODEL_FILES, None, found)
    if any(map(_is_weights, files)):
        return tuple(file for file in files if file.location.suffix.lower() not in PICKLES)
    if any(file.location.suffix.lower() == GGUF for file in files):
        raise _holds_gguf(path, files)
    return files


def source_files(
    base: Path, handler: str, *, without: frozenset[Path] = frozenset()
) -> tuple[LocalFile, ...]:
    """A function's folder without hidden files, caches, README, the manifest, and `without`."""
    if not (base / handler).is_file():
        raise InvalidManifest(
            f"runtime.handler: there is no file {base / handler}", param="runtime.handler"
        )
    found = _walk(base, "source", without)
    return _collect(base, "source", MAX_SOURCE_FILES, MAX_SOURCE_BYTES, found)


def conversion(path: Path) -> tuple[str, str]:
    """The command that makes safetensors of a file in another format, and the folder it makes."""
    from stoker_loader.conversion.sources import find_source
    from stoker_loader.errors import LoaderError

    folder = shlex.quote(f"{path.stem}-safetensors")
    try:
        whole = path in find_source(path.parent).weights and (path.parent / CONFIG).is_file()
    except (LoaderError, OSError):
        whole = False
    # Only with its folder does a file's configuration come along.
    source = path.parent if whole else path
    return f"python -m stoker_loader convert {shlex.quote(str(source))} {folder}", folder


# --- one file of a checkpoint -----------------------------------------------------------------


def _with_companions(path: Path) -> Iterator[Path]:
    """A file's weights and what a model needs beside them. Raises BadRequest."""
    weights: tuple[Path, ...]
    if path.name.endswith(INDEX_END):
        weights = (path, *_shards(path))
    elif path.suffix.lower() == SAFETENSORS:
        _refuse_shard(path)
        weights = (path,)
    else:
        raise _no_checkpoint(path)
    beside = path.parent
    companions = {
        found.relative_to(beside).as_posix(): found
        for pattern in COMPANIONS
        for found in beside.glob(pattern)
        if found.is_file() and not _left_out(found.name, "model")
    }
    for lacking in lacking_companions(companions.keys(), _json(beside / CONFIG, CONFIG)):
        raise BadRequest(
            f"{path} is weights alone: {lacking} is missing, which is expected at"
            f" {beside / lacking}; put it there, or name the folder to bring it as it is",
            param="path",
        )
    yield from weights
    yield from companions.values()


def _shards(index: Path) -> list[Path]:
    shards = sorted(shards_of(_json(index, INDEX)))
    if not shards:
        raise BadRequest(
            f"{index} has no weight_map that names .safetensors files; get it again", param="path"
        )
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise BadRequest(
            f"{index} names {len(shards)} files and {len(missing)} of them are not there:"
            f" {_some(missing)}; get them from where it came",
            param="path",
        )
    return [index.parent / name for name in shards]


def _refuse_shard(path: Path) -> None:
    """Raises BadRequest for a part of a checkpoint, which has only some of the weights."""
    part = PART.fullmatch(path.stem)
    if part is None or int(part["count"]) < 2:
        return
    index = path.with_name(f"{part['stem']}{INDEX_END}")
    whole = index if index.is_file() else path.parent
    raise BadRequest(
        f"{path} is one of {int(part['count'])} shards; name {whole}, which stands for all of them",
        param="path",
    )


def _no_checkpoint(path: Path) -> BadRequest:
    suffix = path.suffix.lower()
    if suffix == GGUF:
        return BadRequest(
            f"{path} is GGUF, which is converted once: `stoker push {shlex.quote(str(path))} NAME`,"
            " and say store://NAME",
            param="path",
        )
    if suffix in PICKLES:
        command, folder = conversion(path)
        return BadRequest(
            f"{path} is a pickle, which is a program: make safetensors of it with `{command}`, and"
            f" name {folder} in its place",
            param="path",
        )
    return BadRequest(
        f"{path} holds no checkpoint that is known by its name; expected a folder, or a file"
        f" *{SAFETENSORS}, *{INDEX_END} or *{GGUF}",
        param="path",
    )


def _holds_gguf(folder: Path, files: Iterable[LocalFile]) -> BadRequest:
    found = (file.location for file in files if file.location.suffix.lower() == GGUF)
    firsts = [
        shlex.quote(str(location))
        for location in found
        if (part := PART.fullmatch(location.stem)) is None or int(part["number"]) == 1
    ]
    commands = _some([f"`stoker push {location} NAME`" for location in firsts])
    which = commands if len(firsts) == 1 else f"the one that you want: {commands}"
    return BadRequest(
        f"{folder} holds GGUF and no .safetensors; push the file, which converts it: {which}",
        param="path",
    )


def _is_weights(file: LocalFile) -> bool:
    return file.location.suffix.lower() == SAFETENSORS


def _json(path: Path, kind: str) -> object:
    """What a small file says; None where that cannot be read."""
    try:
        if path.stat().st_size > MAX_READ_BYTES[kind]:
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _some(words: list[str]) -> str:
    more = len(words) - MAX_NAMED
    return ", ".join(words[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


# --- folders ----------------------------------------------------------------------------------


def _collect(
    root: Path, kind: str, max_files: int, max_bytes: int | None, locations: Iterable[Path]
) -> tuple[LocalFile, ...]:
    files: list[LocalFile] = []
    total_bytes = 0
    for location in locations:
        size_bytes = location.stat().st_size
        total_bytes += size_bytes
        files.append(LocalFile(location.relative_to(root).as_posix(), location, size_bytes))
        if len(files) > max_files or (max_bytes is not None and total_bytes > max_bytes):
            raise PayloadTooLarge(
                f"{root} is more than a function's {kind} may be ({max_files} files"
                + (f", {max_bytes >> 20} MiB)" if max_bytes is not None else ")")
                + "; keep weights in a directory of their own and name it in model.uri",
                details={"path": str(root), "max_files": max_files, "max_bytes": max_bytes},
            )
    if not files:
        raise BadRequest(f"{root} holds no files", param="path")
    return tuple(sorted(files, key=lambda file: file.path))


def _walk(root: Path, kind: str, without: frozenset[Path]) -> Iterator[Path]:
    def wanted(path: Path) -> bool:
        return not _left_out(path.name, kind) and not (without and path.resolve() in without)

    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = [name for name in folders if wanted(here / name)]
        for name in names:
            if wanted(here / name) and (here / name).is_file():
                yield here / name


def _left_out(name: str, kind: str) -> bool:
    if name.startswith(".") or name in LEFT_OUT:
        return True
    return kind == "source" and name.upper().startswith("README")
