"""The files on a user's disk that a manifest stands for, and that the CLI has to upload."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stoker.errors import InvalidManifest, PayloadTooLarge
from stoker.manifest import MANIFEST_NAME, Manifest

MAX_SOURCE_BYTES = 64 << 20
MAX_SOURCE_FILES = 1000
MAX_MODEL_FILES = 10_000
LEFT_OUT = frozenset({"__pycache__", "node_modules", MANIFEST_NAME})
# What the layout leaves out when there is a better copy: uploading it would be in vain.
PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})


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

    Raises InvalidManifest (not there, or empty), PayloadTooLarge.
    """
    model: tuple[LocalFile, ...] | None = None
    directory: Path | None = None
    if manifest.model is not None and manifest.model.directory and manifest.model.digest is None:
        directory = (base / Path(manifest.model.directory).expanduser()).resolve()
        model = model_files(directory)
    source: tuple[LocalFile, ...] | None = None
    if manifest.runtime.handler is not None and manifest.source is None:
        source = source_files(base, manifest.runtime.handler, without=directory)
    return LocalFiles(model, source)


def model_files(directory: Path) -> tuple[LocalFile, ...]:
    """The files of a checkpoint's directory, without hidden ones and without pickles beside
    safetensors; links to files are followed, because model hubs' local caches are made of them."""
    if not directory.is_dir():
        raise InvalidManifest(
            f"model.uri: there is no directory {directory}; name a directory with .safetensors"
            " files, or store://NAME for a checkpoint that `stoker push` stored",
            param="model.uri",
        )
    files = _collect(directory, "model", MAX_MODEL_FILES, None, without=None)
    if not any(file.location.suffix == ".safetensors" for file in files):
        return files
    return tuple(file for file in files if file.location.suffix not in PICKLES)


def source_files(base: Path, handler: str, *, without: Path | None = None) -> tuple[LocalFile, ...]:
    """A function's folder without hidden files, caches, README, the manifest, and `without`."""
    if not (base / handler).is_file():
        raise InvalidManifest(
            f"runtime.handler: there is no file {base / handler}", param="runtime.handler"
        )
    return _collect(base, "source", MAX_SOURCE_FILES, MAX_SOURCE_BYTES, without=without)


def _collect(
    root: Path, kind: str, max_files: int, max_bytes: int | None, *, without: Path | None
) -> tuple[LocalFile, ...]:
    files: list[LocalFile] = []
    total_bytes = 0
    for location in _walk(root, kind, without):
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
        raise InvalidManifest(f"{root} holds no files")
    return tuple(sorted(files, key=lambda file: file.path))


def _walk(root: Path, kind: str, without: Path | None) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = [
            name
            for name in folders
            if not _left_out(name, kind) and (without is None or (here / name).resolve() != without)
        ]
        for name in names:
            if not _left_out(name, kind) and (here / name).is_file():
                yield here / name


def _left_out(name: str, kind: str) -> bool:
    if name.startswith(".") or name in LEFT_OUT:
        return True
    return kind == "source" and name.upper().startswith("README")
