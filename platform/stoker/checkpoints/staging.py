"""Uploads under way, as folders: a crash or a lost connection loses at most a file's part.

    <root>/<upload id>/upload.json    what was offered
                       files/...      complete files: their bytes had the digest that was offered
                       parts/<n>      files on their way; worth nothing after a restart
                       result/        a layout; worth nothing after a restart

The id follows from what is offered, so whoever offers the same again goes on where it ended.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from stoker.checkpoints.files import FileSpec, Kind, source_digest
from stoker.domain import Digest
from stoker.errors import BadRequest, NotFound, StorageFull
from stoker.store.disk import disk_errors, sync_directory

STALE_UPLOAD_S = 24 * 3600.0
GONE_PREFIX = "gone-"  # of folders that are being removed
_ID = re.compile(r"[0-9a-f]{32}")


class UploadNotFound(NotFound):
    code = "upload_not_found"


@dataclass(frozen=True, slots=True)
class Upload:
    """What a client offered, and the paths that it still has to send."""

    id: str
    kind: Kind
    files: tuple[FileSpec, ...]
    source_digest: Digest
    missing: tuple[str, ...]

    def file(self, path: str) -> FileSpec:
        """Raises BadRequest for a path that was not offered."""
        for file in self.files:
            if file.path == path:
                return file
        raise BadRequest(f"{path!r} is not one of the files that were offered", param="path")


@dataclass(frozen=True, slots=True)
class _Offer:
    version: int
    kind: Kind
    files: tuple[FileSpec, ...]


_OFFER_VERSION = 1
_OFFER = TypeAdapter(_Offer)


class Staging:
    """The folder of uploads. Every method touches the disk and belongs in a thread."""

    def __init__(self, root: Path, *, now: Callable[[], float] = time.time) -> None:
        self.root = root
        self._now = now

    def begin(self, kind: Kind, files: Sequence[FileSpec]) -> Upload:
        """Opens an upload, or the same one again. Raises StorageFull, StorageReadOnly."""
        upload_id = source_digest(kind, files).removeprefix("blake3:")[:32]
        folder = self.folder(upload_id)
        try:
            with disk_errors(self.root):
                for name in ("files", "parts"):
                    (folder / name).mkdir(parents=True, exist_ok=True)
                partial = folder / "parts" / secrets.token_hex(8)
                partial.write_bytes(_OFFER.dump_json(_Offer(_OFFER_VERSION, kind, tuple(files))))
                partial.rename(folder / "upload.json")
            upload = self.load(upload_id)
            self._check_space(upload)
        except StorageFull:
            self.discard(upload_id)
            raise
        return upload

    def load(self, upload_id: str) -> Upload:
        """Raises UploadNotFound."""
        path = self.folder(upload_id) / "upload.json"
        try:
            offer = _OFFER.validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError) as error:
            raise upload_not_found(upload_id) from error
        complete = self.folder(upload_id) / "files"
        missing = tuple(
            file.path for file in offer.files if not _is_complete(complete / file.path, file)
        )
        digest = source_digest(offer.kind, offer.files)
        return Upload(upload_id, offer.kind, offer.files, digest, missing)

    def folder(self, upload_id: str) -> Path:
        """Raises UploadNotFound for what cannot be an upload's id."""
        if not _ID.fullmatch(upload_id):
            raise upload_not_found(upload_id)
        return self.root / upload_id

    def new_part(self, upload: Upload) -> Path:
        return self.folder(upload.id) / "parts" / secrets.token_hex(8)

    def accept(self, upload: Upload, file: FileSpec, part: Path) -> None:
        """Makes a part, complete and on the disk, the file that was offered."""
        folder = self.folder(upload.id)
        target = folder / "files" / file.path
        with disk_errors(self.root):
            try:
                # Not `parents=True`: a folder that was discarded meanwhile must not come back.
                for parent in reversed(target.relative_to(folder / "files").parents[:-1]):
                    (folder / "files" / parent).mkdir(exist_ok=True)
                part.rename(target)
                sync_directory(target.parent)
                os.utime(folder / "upload.json", (self._now(), self._now()))
            except FileNotFoundError:
                raise upload_not_found(upload.id) from None

    def discard(self, upload_id: str) -> None:
        """Forgets an upload and all its files; one that is not there is forgotten already."""
        with disk_errors(self.root):
            remove_tree(self.folder(upload_id))

    def sweep(self) -> tuple[str, ...]:
        """After a start: removes what is worth nothing then, and the uploads (given by id) that
        nobody touched for STALE_UPLOAD_S."""
        removed = []
        oldest = self._now() - STALE_UPLOAD_S
        with disk_errors(self.root):
            for folder in list(self.root.iterdir()) if self.root.is_dir() else []:
                offer = folder / "upload.json"
                known = _ID.fullmatch(folder.name) and offer.is_file()
                if not known or offer.stat().st_mtime < oldest:
                    remove_tree(folder)
                    removed.append(folder.name)
                    continue
                for item in list(folder.iterdir()):
                    if item.name not in {"upload.json", "files"}:
                        remove_tree(item)
                (folder / "parts").mkdir()
        return tuple(removed)

    def _check_space(self, upload: Upload) -> None:
        sizes = {file.path: file.size_bytes for file in upload.files}
        needed_bytes = sum(sizes[path] for path in upload.missing)
        if upload.kind is Kind.CHECKPOINT and not (self.folder(upload.id) / "result").exists():
            needed_bytes += sum(sizes.values())  # the layout is a second copy for a while
        free_bytes = shutil.disk_usage(self.root).free
        if needed_bytes > free_bytes:
            raise StorageFull(
                f"the upload needs {needed_bytes} bytes and the disk of {self.root} has"
                f" {free_bytes}; free some space and try again",
                details={"needed_bytes": needed_bytes, "free_bytes": free_bytes},
            )


def remove_tree(path: Path) -> None:
    """Removes a file or a folder; absent is fine."""
    try:
        if path.is_dir() and not path.is_symlink():
            # Gone at once for everybody, also for a writer that would put a file in meanwhile.
            doomed = path.with_name(f"{GONE_PREFIX}{secrets.token_hex(8)}")
            path.rename(doomed)
            shutil.rmtree(doomed)
        else:
            path.unlink()
    except FileNotFoundError:
        return


def _is_complete(path: Path, file: FileSpec) -> bool:
    # A name appears in `files` by a rename alone, after the digest of its bytes was right.
    try:
        return path.stat().st_size == file.size_bytes
    except (FileNotFoundError, NotADirectoryError):
        return False


def upload_not_found(upload_id: str) -> UploadNotFound:
    return UploadNotFound(
        f"no upload {upload_id[:64]!r} is under way; begin again with POST /v1/uploads",
        param="upload_id",
    )
