"""The files beside the weights, such as configuration and tokenizer, which come along."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from stoker_loader.conversion.sources import FOREIGN_SUFFIXES, PICKLE_INDEX, PICKLE_SUFFIXES

CONFIG = "config.json"
INDICES = (PICKLE_INDEX, "model.safetensors.index.json")
# Both names of the entry, the newer one first.
DTYPE_KEYS = ("dtype", "torch_dtype")
MAX_CONFIG_BYTES = 64 << 20


def link_companions(
    directory: Path, folder: Path, used: Collection[str], dtype: str | None
) -> tuple[str, ...]:
    """Link to all files of a source's directory that are no weights and not in `folder` already.

    `used` are the files that were converted; `dtype`, if given, becomes that of `config.json`.
    Returns the names of what was left out: other weights, hidden files, links to directories.
    """
    skipped: list[str] = []
    for path in _entries(directory):
        name = path.relative_to(directory).as_posix()
        if name in used:
            continue
        if path.name.startswith(".") or not path.is_file() or _is_weights(path.name):
            skipped.append(name)
            continue
        link = folder / name
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    if dtype is not None:
        _set_dtype(folder / CONFIG, dtype)
    return tuple(skipped)


def read_config(directory: Path) -> dict[str, Any]:
    """The model's configuration, empty where there is none that can be read."""
    path = directory / CONFIG
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            return {}
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def ties_word_embeddings(config: dict[str, Any]) -> bool:
    """Whether the configuration says, in so many words, that the head is the embedding."""
    text: Iterable[Any] = (config, config.get("text_config"))
    return any(isinstance(part, dict) and part.get("tie_word_embeddings") is True for part in text)


def _entries(directory: Path) -> Iterator[Path]:
    """What is below a directory; hidden directories and links to others are not entered."""
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _entries(path)
        else:
            yield path


def _is_weights(name: str) -> bool:
    return name.endswith((*PICKLE_SUFFIXES, *FOREIGN_SUFFIXES)) or name in INDICES


def _set_dtype(path: Path, dtype: str) -> None:
    config = read_config(path.parent)
    if any(key in config for key in DTYPE_KEYS):
        config |= {key: dtype for key in DTYPE_KEYS if key in config}
        path.unlink()  # a link to the source's
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
