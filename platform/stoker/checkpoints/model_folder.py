"""A folder of the bucket that people fill by hand: what of it makes a checkpoint, what it lacks.

    models/<name>/config.json, tokenizer.json, model.safetensors ...

Everything here is pure: who has listed the folder and read its small files asks what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from stoker.checkpoints.files import MAX_CHECKPOINT_BYTES, MAX_FILES, NAME, is_sound_path
from stoker.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from stoker.checkpoints.bucket import StoredObject

MODELS = "models/"
CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")  # one of them
# What engines and Transformers read beside the weights, as patterns of paths.
COMPANIONS = (
    *(CONFIG, "*_config.json", "modules.json", "1_Pooling/config.json"),
    *(*TOKENIZERS, "*.model", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json"),
)
MAX_READ_BYTES = {CONFIG: 1 << 20, INDEX: 16 << 20}
LEFT_OVER = (".part", ".part.map")  # of downloads, by this project's own tools among others
SAFETENSORS = "safetensors"
PICKLES = frozenset({"bin", "ckpt", "pickle", "pkl", "pt", "pth"})
_SHARD = re.compile(r"(?P<stem>[^/]+)-\d{5}-of-(?P<count>\d{5})\.safetensors")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What lies below `models/<name>/`, by path within it; markers of folders and hidden files left
    out."""

    name: str
    objects: Mapping[str, StoredObject]

    @property
    def manifest(self) -> StoredObject | None:
        """What says how the model is deployed, and is no part of it."""
        return self.objects.get(MANIFEST_NAME)

    @property
    def fingerprint(self) -> str:
        """Another one as soon as any of the model's objects is another."""
        hasher = blake3()
        for path, stored in sorted(self.objects.items()):
            if path == MANIFEST_NAME:
                continue
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
            folder = found.setdefault(place[0], {})
            if len(folder) <= MAX_FILES:  # one more is too many, and tells as much as all
                folder[place[1]] = stored
    return {name: ModelFolder(name, objects) for name, objects in found.items()}


def to_read(folder: ModelFolder) -> tuple[str, ...]:
    """The files whose content `judge` needs, as far as they are there."""
    return tuple(path for path in (CONFIG, INDEX) if path in folder.objects)


def judge(folder: ModelFolder, read: Mapping[str, object]) -> Verdict:
    """Whether a folder can be made a checkpoint of; `read` has the JSON of the files `to_read`."""
    if refused := _refused(folder, read):
        return Verdict(refused=refused)
    weights, lacking = _weights(folder, read.get(INDEX))
    lacking += lacking_companions(folder.objects.keys(), read.get(CONFIG))
    if lacking:
        return Verdict(lacking=tuple(lacking))
    others = (
        path
        for path in folder.objects
        if not _is_weights(path) and not path.endswith(LEFT_OVER) and path != MANIFEST_NAME
    )
    return Verdict(wanted=tuple(sorted({*weights, *others})))


def lacking_companions(paths: Set[str], config: object) -> tuple[str, ...]:
    """The files that a model needs beside its weights and that are not among `paths`."""
    if CONFIG not in paths:
        return (CONFIG,)
    if _reads_text(config) and paths.isdisjoint(TOKENIZERS):
        return (TOKENIZERS[0],)
    return ()


def shards_of(index: object) -> set[str]:
    """The files that an index names; none where one of them could be no shard beside it."""
    weight_map: Any = index.get("weight_map") if isinstance(index, dict) else None
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not all(isinstance(name, str) for name in names):
        return set()
    shards = set(names)
    sound = len(shards) <= MAX_FILES and all(
        "/" not in name and _suffix(name) == SAFETENSORS and is_sound_path(name) for name in shards
    )
    return shards if sound else set()


def _refused(folder: ModelFolder, read: Mapping[str, object]) -> str | None:
    if len(folder.objects) > MAX_FILES:
        return f"it has more than {MAX_FILES} files"
    for path in folder.objects:
        if not is_sound_path(path):
            return f"{path[:255]!r} is not a file's name; delete it or rename it"
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if (above := "/".join(parts[:depth])) in folder.objects:
                return f"{path!r} lies below {above!r}, which is a file; delete one of them"
    if folder.size_bytes > MAX_CHECKPOINT_BYTES:
        return f"it has {folder.size_bytes} bytes, and a checkpoint at most {MAX_CHECKPOINT_BYTES}"
    for path, document in read.items():
        if not isinstance(document, dict):
            return f"{path} holds no JSON object"
    if (index := read.get(INDEX)) is not None and not shards_of(index):
        return f"{INDEX} has no weight_map that names safetensors files of this folder"
    if sum(count for _, count in _series(folder)) > MAX_FILES:
        return f"its shards say that there are more than {MAX_FILES} of them"
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
        wanted = sorted(shards_of(index))
    else:
        # Other names may be any number of files: without an index nobody knows.
        wanted = [
            f"{stem}-{number:05d}-of-{count:05d}.safetensors"
            for stem, count in sorted(_series(folder))
            for number in range(1, count + 1)
        ] or [WEIGHTS]
    return wanted, [name for name in wanted if name not in folder.objects]


def _series(folder: ModelFolder) -> set[tuple[str, int]]:
    """The beginnings of its shards' names, and how many of each there are to be."""
    matches = map(_SHARD.fullmatch, folder.objects)
    return {(match["stem"], int(match["count"])) for match in matches if match}


def _reads_text(config: object) -> bool:
    return isinstance(config, dict) and ("vocab_size" in config or "text_config" in config)


def _is_weights(path: str) -> bool:
    return _suffix(path) in {SAFETENSORS, *PICKLES}


def _suffix(path: str) -> str:
    return path.rpartition(".")[2].lower()
