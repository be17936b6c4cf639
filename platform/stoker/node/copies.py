"""The folders of a node's copies of artifacts.

    <root>/<hex digest>/...     filled in place, so that it can be opened while it arrives
           <hex digest>.json    its record: there once every byte was compared and is on the disk
           pinned               the digests of those that are never given up

Without its record a folder is worth what a fetch finds good of it. Every method touches the disk
and belongs in a thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import structlog

import stoker_loader
from stoker.checkpoints.records import (
    VERSION,
    FileStat,
    Record,
    read_record,
    snapshot,
    write_record,
)
from stoker.checkpoints.staging import GONE_PREFIX, remove_tree
from stoker.checkpoints.store import Content
from stoker.domain import Digest
from stoker.store.base import StoreUnusable
from stoker.store.disk import disk_errors, sync_directory

PINNED = "pinned"  # a file of digests
BLOCK_BYTES = 512  # of st_blocks: stat(2)
_FOLDER = re.compile(r"[0-9a-f]{64}")

log = structlog.get_logger(__name__)


class Copies:
    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: Digest) -> Path:
        """Where a copy's folder is, if it is there."""
        return self.root / digest.removeprefix("blake3:")

    def unchanged(self, digest: Digest) -> bool:
        """Whether the copy is whole, and its files look as they did when they were compared."""
        try:
            with disk_errors(self.root):
                record = read_record(self._record_path(digest))
                return record is not None and snapshot(self.path(digest)) == record.stats
        except StoreUnusable as error:  # of another version, or no longer readable
            log.warning("not a copy any more", checkpoint=digest, error=error.message)
            return False

    def vouch(self, content: Content, stats: Mapping[str, FileStat]) -> None:
        """Says that the folder's files were compared and are on the disk. `stats` is how each
        looked when it was: what is changed afterwards shows."""
        digest = content.artifact.digest
        with disk_errors(self.root):
            for parent, _, _ in os.walk(self.path(digest)):
                sync_directory(Path(parent))
        write_record(
            self._record_path(digest),
            Record(VERSION, content.artifact, content.digest, dict(stats)),
        )

    def content(self, digest: Digest) -> stoker_loader.Digest | None:
        """What a copy's files were compared with; None where that is not known."""
        record = read_record(self._record_path(digest))
        return record.digest if record is not None else None

    def distrust(self, digest: Digest) -> None:
        """From now on, and after a crash, its files are compared before they are used again."""
        with disk_errors(self.root):
            remove_tree(self._record_path(digest))
            sync_directory(self.root)

    def drop(self, digest: Digest) -> None:
        """Removes whatever is there of a copy."""
        with disk_errors(self.root):
            remove_tree(self._record_path(digest))  # from here on it is not whole
            remove_tree(self.path(digest))

    def pinned(self) -> frozenset[Digest]:
        """What was to be kept when somebody said so last."""
        with disk_errors(self.root):
            try:
                text = (self.root / PINNED).read_text()
            except FileNotFoundError:
                return frozenset()
        return frozenset(Digest(line) for line in text.splitlines())

    def write_pinned(self, digests: frozenset[Digest]) -> None:
        """For the next start, which must not give up what is pinned before it is told so."""
        partial = self.root / f".{PINNED}"
        with disk_errors(self.root):
            partial.write_text("".join(f"{digest}\n" for digest in sorted(digests)))
            partial.replace(self.root / PINNED)

    def sweep(self) -> dict[Digest, int]:
        """After a start: removes what a crash left half-removed; the bytes that each folder takes
        on the disk, unfinished ones among them."""
        held: dict[Digest, int] = {}
        with disk_errors(self.root):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in sorted(self.root.iterdir()):
                if path.is_dir() and _FOLDER.fullmatch(path.name):
                    held[Digest(f"blake3:{path.name}")] = _disk_bytes(path)
                    continue
                orphan = path.suffix == ".json" and not path.with_suffix("").is_dir()
                if orphan or path.name.startswith((".", GONE_PREFIX)):
                    remove_tree(path)
        return held

    def _record_path(self, digest: Digest) -> Path:
        return self.path(digest).with_suffix(".json")


def _disk_bytes(folder: Path) -> int:
    """What the files there have, of one on its way what has come; not the ends of their blocks,
    which no budget counts."""
    facts = (path.lstat() for path in folder.rglob("*"))
    return sum(min(fact.st_size, fact.st_blocks * BLOCK_BYTES) for fact in facts)
