"""A folder of the bucket that people fill by hand: what of it makes a checkpoint, what it lacks.

    models/<name>/config.json, tokenizer.json, model.safetensors ...

Everything here is pure: who has listed the folder and read its small files asks what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from stoker.checkpoints.bucket import StoredObject
from stoker.checkpoints.files import MAX_CHECKPOINT_BYTES, MAX_FILES, is_sound_path

MODELS = "models/"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SAFETENSORS = "safetensors"
PICKLES = frozenset({"bin", "ckpt", "pickle", "pkl", "pt", "pth"})
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHARD = re.compile(r"(?P<stem>[^/]+)-\d{5}-of-(?P<count>\d{5})\.safetensors")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What lies below `models/<name>/`, by path within it; markers of folders and hidden files left
    out."""

    name: str
    objects: Mapping[str, StoredObject]

    @property
    def fingerprint(self) -> str:
        """Another one as soon as any of its objects is another."""
        hasher = blake3()
        for path, stored in sorted(self.objects.items()):
            hasher.update(f"{path}\n{stored.size_bytes}\n{stored.etag}\n".encode())
        return hasher.hexdigest()

    @property
    def size_bytes(self) -> int:
        return sum(stored.size_bytes for stored in self.objects.values())


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done with a folder: bring `wanted`; or wait for what is `lacking`; or nothing,
    because it is `refused` for this reason."""

    wanted: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    refused: str | None = None


def place_of(key: str) -> tuple[str, str] | None:
    """The folder's name and the path within it of an object below `models/`; None for what is
    elsewhere, marks a folder, or is hidden."""
    if not key.startswith(MODELS) or key.endswith("/"):
        return None
    name, separator, path = key.removeprefix(MODELS).partition("/")
    if not separator or not NAME.fullmatch(name):
        return None
    # Hidden are the leftovers of desktops; what climbs is no name at all, and has to be refused.
    hidden = any(part.startswith(".") and part not in {".", ".."} for part in path.split("/"))
    return None if hidden else (name, path)


def folders_of(objects: Iterable[StoredObject]) -> dict[str, ModelFolder]:
    """All folders that the objects lie in, by name."""
    found: dict[str, dict[str, StoredObject]] = {}
    for stored in objects:
        if place := place_of(stored.key):
            found.setdefault(place[0], {})[place[1]] = stored
    return {name: ModelFolder(name, objects) for name, objects in found.items()}


def to_read(folder: ModelFolder) -> tuple[str, ...]:
    """The files whose content `judge` needs, as far as they are there."""
    return tuple(path for path in (CONFIG, INDEX) if path in folder.objects)


def judge(folder: ModelFolder, read: Mapping[str, object]) -> Verdict:
    """Whether a folder can be made a checkpoint of; `read` has the JSON of the files `to_read`."""
    if refused := _refused(folder, read):
        return Verdict(refused=refused)
    weights, lacking = _weights(folder, read.get(INDEX))
    if CONFIG not in folder.objects:
        lacking.append(CONFIG)
    elif _reads_text(read.get(CONFIG)) and TOKENIZER not in folder.objects:
        lacking.append(TOKENIZER)
    if lacking:
        return Verdict(lacking=tuple(lacking))
    others = (path for path in folder.objects if not _is_weights(path))
    return Verdict(wanted=tuple(sorted({*weights, *others})))


def _refused(folder: ModelFolder, read: Mapping[str, object]) -> str | None:
    for path in folder.objects:
        if not is_sound_path(path):
            return f"{path[:255]!r} is not a file's name; delete it or rename it"
    if len(folder.objects) > MAX_FILES:
        return f"it has {len(folder.objects)} files, and a checkpoint has at most {MAX_FILES}"
    if folder.size_bytes > MAX_CHECKPOINT_BYTES:
        return f"it has {folder.size_bytes} bytes, and a checkpoint at most {MAX_CHECKPOINT_BYTES}"
    for path, document in read.items():
        if not isinstance(document, dict):
            return f"{path} holds no JSON object"
    if (index := read.get(INDEX)) is not None and not _shards(index):
        return f"{INDEX} has no weight_map that names files of this folder"
    names = list(folder.objects)
    suffixes = set(map(_suffix, names))
    if suffixes & PICKLES and SAFETENSORS not in suffixes:
        return (
            "its weights are pickles, which are programs: make safetensors of them with"
            " `python -m stoker_loader convert FOLDER OUT`, and upload those"
        )
    return None


def _weights(folder: ModelFolder, index: object) -> tuple[list[str], list[str]]:
    """The files of the weights, and those of them that are not there."""
    if WEIGHTS in folder.objects:
        return [WEIGHTS], []
    if index is not None:
        wanted = sorted(_shards(index))
    else:
        # Other names may be any number of files: without an index nobody knows.
        wanted = sorted({name for path in folder.objects for name in _siblings(path)}) or [WEIGHTS]
    return wanted, [name for name in wanted if name not in folder.objects]


def _shards(index: object) -> set[str]:
    """The files that an index names; none where one of them could lie outside the folder."""
    weight_map: Any = index.get("weight_map") if isinstance(index, dict) else None
    names = set(weight_map.values()) if isinstance(weight_map, dict) and weight_map else set()
    sound = all(isinstance(name, str) and "/" not in name and is_sound_path(name) for name in names)
    return names if sound else set()


def _siblings(path: str) -> list[str]:
    """A shard's name says how many there are; none where it is no shard."""
    if not (match := _SHARD.fullmatch(path)):
        return []
    count = int(match["count"])
    return [
        f"{match['stem']}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)
    ]


def _reads_text(config: object) -> bool:
    return isinstance(config, dict) and ("vocab_size" in config or "text_config" in config)


def _is_weights(path: str) -> bool:
    return _suffix(path) in {SAFETENSORS, *PICKLES}


def _suffix(path: str) -> str:
    return path.rpartition(".")[2].lower()
