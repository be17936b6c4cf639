"""How the catalog's values are written: JSON in an envelope that says what it is.

{"kind": "revision", "version": 1, "value": {...}}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from stoker.domain import Artifact, Function, Revision
from stoker.store.base import StoreUnusable
from stoker.store.draft import UploadDeploy

FORMAT_VERSION = 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """Bytes to and from one type of value."""

    kind: str
    adapter: TypeAdapter[T]

    def encode(self, value: T) -> bytes:
        envelope = {
            "kind": self.kind,
            "version": FORMAT_VERSION,
            "value": self.adapter.dump_python(value, mode="json"),
        }
        return orjson.dumps(envelope)

    def decode(self, data: bytes) -> T:
        """Raises StoreUnusable for another kind or version, and for anything that is not ours."""
        try:
            envelope: Any = orjson.loads(data)
            kind, version, value = envelope["kind"], envelope["version"], envelope["value"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreUnusable(f"expected a stored {self.kind}, found {data[:40]!r}") from error
        if (kind, version) != (self.kind, FORMAT_VERSION):
            raise StoreUnusable(
                f"expected a stored {self.kind} of format {FORMAT_VERSION}, found {kind!r} of"
                f" format {version!r}; use the stoker that wrote it"
            )
        try:
            return self.adapter.validate_python(value)
        except ValidationError as error:
            raise StoreUnusable(f"a stored {self.kind} is damaged: {error}") from error


FUNCTION = Codec("function", TypeAdapter(Function))
REVISION = Codec("revision", TypeAdapter(Revision))
UPLOAD = Codec("upload", TypeAdapter(UploadDeploy))
ARTIFACT = Codec("artifact", TypeAdapter(Artifact))
