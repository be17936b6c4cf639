"""Objects of several chunks that a server may hold under one URL, one after the other."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import stoker_loader as sl

CHUNK = 8 << 20
LENGTHS = {"a": 4 << 20, "b": 8 << 20, "c": (4 << 20) + 77}  # over three chunks


@dataclass(frozen=True)
class Version:
    """An object that the server may hold."""

    etag: str
    body: bytes
    tensors: dict[str, bytes]
    digest: sl.FileDigest

    @staticmethod
    def make(seed: int, directory: Path) -> Version:
        source = random.Random(seed)
        tensors = {name: source.randbytes(length) for name, length in LENGTHS.items()}
        header, begin = {}, 0
        for name, data in tensors.items():
            offsets = [begin, begin + len(data)]
            header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": offsets}
            begin += len(data)
        text = json.dumps(header).encode()
        body = len(text).to_bytes(8, "little") + text + b"".join(tensors.values())
        path = directory / f"version-{seed}"
        path.write_bytes(body)
        (digest,) = sl.digest(path).files
        return Version(f'"v{seed}"', body, tensors, digest)

    def chunk(self, number: int) -> bytes:
        return self.body[number * CHUNK : (number + 1) * CHUNK]
