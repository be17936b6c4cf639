"""What is to be converted: the format of a source, and the files that hold its weights."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from stoker_loader.converting import SourceFormat
from stoker_loader.errors import (
    CheckpointNotFoundError,
    IndexInvalidError,
    PartsMismatchError,
    ShardMissingError,
    SourceFormatError,
)

PICKLE_INDEX = "pytorch_model.bin.index.json"
# As in the core, which refuses to open these.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Weights of other libraries, which lie beside pickles in published checkpoints.
FOREIGN_SUFFIXES = (".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".safetensors")
# What trainers leave beside the weights, by the names of Transformers and Accelerate.
TRAINER_STATE = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states)\b.*"
)
# With several pickles in a directory these are the weights.
USUAL_NAMES = ("pytorch_model.bin", "adapter_model.bin")
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
MAX_INDEX_BYTES = 100_000_000  # the format's own limit of a header


@dataclass(frozen=True, slots=True)
class Source:
    """A source and its format; `weights` are the files to convert, none for safetensors, and
    `tensors` the names that an index says they hold."""

    format: SourceFormat
    path: Path
    weights: tuple[Path, ...] = ()
    tensors: tuple[str, ...] = ()

    @property
    def weights_bytes(self) -> int:
        """The length of all files of weights."""
        return sum(file.stat().st_size for file in self.weights)


def find_source(path: Path) -> Source:
    """Look at names, and at the first bytes of a single file.

    Raises CheckpointNotFoundError, SourceFormatError, IndexInvalidError, ShardMissingError,
    PartsMismatchError.
    """
    if path.is_file():
        found = format_of(path)
        if found == "gguf":
            return Source(found, path, _gguf_parts(path))
        return Source(found, path, () if found == "safetensors" else (path,))
    if not path.is_dir():
        raise CheckpointNotFoundError(
            f"{path}: no such file or directory; check the path", file=str(path)
        )
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    if any(name.endswith(".safetensors") for name in names):
        return Source("safetensors", path)
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        firsts = sorted({_first_part(name) for name in ggufs})
        return Source("gguf", path, _gguf_parts(path / _only(path, firsts)))
    if PICKLE_INDEX in names:
        shards, tensors = _indexed(path, names)
        return Source("pickle", path, tuple(path / name for name in shards), tensors)
    pickles = [
        name
        for name in names
        if name.endswith(PICKLE_SUFFIXES) and not TRAINER_STATE.fullmatch(name)
    ]
    return Source("pickle", path, tuple(path / name for name in _pickles(path, pickles)))


def format_of(file: Path) -> SourceFormat:
    """The format by the first bytes, whatever the name says."""
    with file.open("rb") as opened:
        start = opened.read(4)
    if start == b"GGUF":
        return "gguf"
    if is_archive(start) or start[:1] == b"\x80":
        return "pickle"
    return "safetensors"  # or nothing: the core says what is wrong with it


def is_archive(start: bytes) -> bool:
    """Whether a file begins as the zip archives that `torch.save` writes since version 1.6."""
    return start.startswith(b"PK\x03\x04")


def _gguf_parts(file: Path) -> tuple[Path, ...]:
    """All parts of a split file in order, given one of them; else the file alone."""
    match = SHARD.fullmatch(file.name)
    if match is None or match["suffix"] != ".gguf":
        return (file,)
    parts = _series(match)
    for part in parts:
        if not (file.parent / part).is_file():
            raise ShardMissingError(
                f"{file.parent / part}: is not there, and is one of the {len(parts)} parts of a"
                " split file; fetch it",
                file=str(file.parent / part),
            )
    if file.name not in parts:
        raise PartsMismatchError(
            f"{file}: there is no such part of {int(match['count'])}; remove it, or give it its"
            " right name",
            file=str(file),
        )
    return tuple(file.parent / part for part in parts)


def _first_part(name: str) -> str:
    match = SHARD.fullmatch(name)
    return name if match is None or name not in (parts := _series(match)) else parts[0]


def _series(match: re.Match[str]) -> list[str]:
    """The names of all shards of as many as one of them says."""
    stem, count, suffix = match["stem"], match["count"], match["suffix"]
    return [f"{stem}-{number:05}-of-{count}{suffix}" for number in range(1, int(count) + 1)]


def _only(directory: Path, names: list[str]) -> str:
    if len(names) > 1:
        raise SourceFormatError(
            f"{directory}: holds {', '.join(names)}, any of which could be meant; name one file",
            file=str(directory),
        )
    return names[0]


def _pickles(directory: Path, names: list[str]) -> list[str]:
    for name in USUAL_NAMES:
        if name in names:
            return [name]
    if not names:
        raise SourceFormatError(
            f"{directory}: holds no .safetensors, .gguf, .bin, .pt, .pth or .ckpt file;"
            " name the directory or the file that holds the weights",
            file=str(directory),
        )
    matches = [SHARD.fullmatch(name) for name in names]
    series = {(match["stem"], match["count"], match["suffix"]) for match in matches if match}
    wanted = _series(next(match for match in matches if match)) if len(series) == 1 else []
    if not wanted or None in matches:
        return [_only(directory, names)]
    _check_shards(directory, wanted, names, directory)
    return wanted


def _indexed(directory: Path, names: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """The shards that the index names, and their tensors."""
    index = directory / PICKLE_INDEX
    invalid = f"{index}: the index is not valid: "
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise IndexInvalidError(f"{invalid}it is too long", file=str(index))
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IndexInvalidError(f"{invalid}{error!r}; fetch it again", file=str(index)) from error
    if not shards:
        raise IndexInvalidError(f"{invalid}it names no shard; fetch it again", file=str(index))
    for shard in shards:
        if not isinstance(shard, str) or "/" in shard or not shard.endswith(PICKLE_SUFFIXES):
            raise IndexInvalidError(
                f"{invalid}{shard!r} is no name of a pickle beside it", file=str(index)
            )
    _check_shards(index, shards, names, directory)
    return shards, tuple(weight_map)


def _check_shards(what: Path, wanted: list[str], names: list[str], directory: Path) -> None:
    for shard in wanted:
        if shard not in names:
            raise ShardMissingError(
                f"{what}: names the shard {shard!r}, which is not in {directory}; fetch it",
                file=str(what),
            )
