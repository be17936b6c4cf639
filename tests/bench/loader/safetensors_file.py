"""Writes and reads safetensors files with nothing but numpy, for environments of any peer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tests.bench.loader.shapes import Shapes

BF16_BYTES = 2
# Clears the highest bit of a bfloat16's exponent: every value is finite and below 2, and the bytes
# stay as good as incompressible.
FINITE = np.uint16(0xBFFF)
# Sets the next three: no value is then below 2**-15. Any bits have denormal numbers among them,
# which processors are slow to compute with and trained weights hardly have.
NOT_TINY = np.uint16(0x3800)
AS_DRAWN = np.uint16(0)


def write_random(path: Path, shapes: Shapes, seed: int, always_set: np.uint16 = AS_DRAWN) -> None:
    """Writes bfloat16 tensors of random bits, in the order of `shapes`, with some `always_set`."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size_bytes = math.prod(shape) * BF16_BYTES
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + size_bytes],
        }
        offset += size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.Generator(np.random.SFC64(seed))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            bits = rng.integers(0, 1 << 16, math.prod(shape), dtype=np.uint16)
            bits &= FINITE
            bits |= always_set
            file.write(bits.data)


def read_bits(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Each bfloat16 tensor as the uint16 of its bits, a view of the mapped file."""
    raw = np.memmap(path, mode="r")
    header_bytes = int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8 : 8 + header_bytes].tobytes())
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        if tensor["dtype"] != "BF16":
            raise ValueError(f"{path}: {name} is {tensor['dtype']}; only BF16 is converted")
        begin, end = (8 + header_bytes + offset for offset in tensor["data_offsets"])
        yield name, raw[begin:end].view(np.uint16).reshape(tensor["shape"])
