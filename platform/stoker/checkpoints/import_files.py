"""The files of folders that are imported, on their way.

<root>/<name>/<fingerprint>/files/...    of one state of a folder
                            result/      what is made of them
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from stoker.checkpoints.staging import remove_tree
from stoker.errors import StorageFull
from stoker.store.disk import disk_errors

COPIES_WHILE_IMPORTING = 2  # the files, and what is made of them
BLOCK_BYTES = 512  # of st_blocks: stat(2)


def stage(files: Path, sizes: Mapping[str, int]) -> None:
    """Makes the folders for one state of a bucket's folder; what came of earlier ones, and what
    was half made of this one, goes. Raises StorageFull."""
    staged = files.parent
    with disk_errors(staged):
        others = list(staged.parent.iterdir()) if staged.parent.is_dir() else []
        halves = list(staged.iterdir()) if staged.is_dir() else []
        for other in (*others, *halves):
            if other not in (staged, files):
                remove_tree(other)
        for parent in sorted({(files / path).parent for path in sizes}):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        here_bytes = sum(path.lstat().st_blocks * BLOCK_BYTES for path in files.rglob("*"))
        needed_bytes = COPIES_WHILE_IMPORTING * sum(sizes.values()) - here_bytes
        free_bytes = shutil.disk_usage(files).free
    if needed_bytes > free_bytes:
        raise StorageFull(
            f"importing it needs {needed_bytes} bytes and the disk of {files} has {free_bytes}",
            details={"needed_bytes": needed_bytes, "free_bytes": free_bytes},
        )


def place(target: Path, data: bytes) -> None:
    """Makes a small file, whole or not at all; one that is there is of the same state."""
    partial = target.with_name(f".{secrets.token_hex(8)}")  # which no layout looks at
    with disk_errors(target):
        partial.write_bytes(data)
        partial.replace(target)


def sweep(root: Path, names: frozenset[str]) -> None:
    """Removes what came of folders that are gone."""
    with disk_errors(root):
        for path in list(root.iterdir()) if root.is_dir() else []:
            if path.name not in names:
                remove_tree(path)
