"""Which state of a folder became which checkpoint, as objects of the bucket.

imports/<name>.json
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from stoker.checkpoints.bucket import Bucket
from stoker.checkpoints.bucket_errors import ObjectNotFound
from stoker.domain import Digest
from stoker.errors import PayloadTooLarge, StokerError

IMPORTS = "imports/"
MAX_NOTE_BYTES = 1 << 16
VERSION = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Note:
    """Of which state of a folder a checkpoint was made."""

    version: int
    fingerprint: str
    digest: Digest


_NOTE = TypeAdapter(Note)


class Notes:
    """A note only spares another import after a restart: one that is lost or damaged is none."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def read(self, name: str) -> Note | None:
        """Raises StoreUnreachable, StoreRefused."""
        try:
            data = await self._bucket.get(f"{IMPORTS}{name}.json", MAX_NOTE_BYTES)
            note = _NOTE.validate_json(data)
        except (ObjectNotFound, PayloadTooLarge, ValidationError):
            return None
        return note if note.version == VERSION else None

    async def write(self, name: str, fingerprint: str, digest: Digest) -> None:
        note = Note(VERSION, fingerprint, digest)
        try:
            await self._bucket.put(f"{IMPORTS}{name}.json", _NOTE.dump_json(note))
        except StokerError as error:
            log.warning("%s%s.json cannot be written: %s", IMPORTS, name, error.message)
