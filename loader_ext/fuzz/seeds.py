"""Writes the seeds of every target to `corpus/`: small inputs that get behind the first checks.

`python loader_ext/fuzz/seeds.py` after a change here; the files are kept in the repository.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
CHUNK_BYTES = 8 << 20
FITS = CHANGED = SOUND = b"\1"
AS_IT_IS = b"\0"
SEALED = b"\2"
CHANGED_AND_SEALED = SOUND_OF_THE_PART = b"\3"


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS = {
    "empty": "{}",
    "one": json.dumps({"w": tensor("F32", [2, 3], 0, 24)}),
    "padded": json.dumps({"w": tensor("U8", [4], 0, 4)}) + " " * 9,
    "metadata": json.dumps({"__metadata__": {"format": "pt", "a": "ü"}}, ensure_ascii=False),
    "scalars": json.dumps({"a": tensor("F64", [], 0, 8), "b": tensor("I8", [0, 7], 8, 8)}),
    "packed": json.dumps({"a": tensor("F4", [2, 4], 0, 4), "b": tensor("F6_E2M3", [4], 4, 7)}),
    "fused": json.dumps(
        {
            "l.0.q_proj.weight": tensor("BF16", [2, 2], 0, 8),
            "l.0.v_proj.weight": tensor("BF16", [1, 2], 8, 12),
            "l.0.k_proj.weight": tensor("BF16", [1, 2], 12, 16),
            "norm": tensor("F32", [1], 16, 20),
        }
    ),
    "hole": json.dumps({"a": tensor("U8", [1], 0, 1), "b": tensor("U8", [1], 2, 3)}),
    "overlap": json.dumps({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}),
    "reversed": json.dumps({"a": tensor("U8", [2], 4, 2)}),
    "huge": json.dumps({"a": tensor("C64", [1 << 60, 8], 0, 1 << 62)}),
    "strides": json.dumps({"a": tensor("U8", [0, 1 << 40, 1 << 40], 0, 0)}),
    "array": '{"w":["U8",[1],[0,1]]}',
    "escaped": r'{"w":{"dtype":"U\u0038","shape":[1],"data_offsets":[0,1]}}',
}
INDEXES = {
    "two": {
        "metadata": {"total_size": 9},
        "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"},
    },
    "path": {"weight_map": {"a": "../x.safetensors"}},
    "none": {"weight_map": {}},
    "array": [{"a": "x.safetensors"}],
}


def bare_sidecar() -> bytes:
    """One tensor `w` of four bytes and a pair of metadata; its hashes are the target's to make."""
    head = b"STKTENSR" + struct.pack("<II", 1, 1) + bytes(32) + struct.pack("<IIII", 1, 1, 1, 3)
    text_bytes = len(HEADERS["one"].encode())
    record = struct.pack("<QQIIIIQ", 0, 8 + text_bytes, 0, 1, 0, 1, 4)
    return head + record + number(4) + bytes(16) + struct.pack("<II", 1, 1) + b"wkv" + bytes(16)


def sidecars() -> dict[str, bytes]:
    seeds = {}
    for name, header in HEADERS.items():
        text = header.encode()
        block = struct.pack("<H", len(text)) + text
        seeds[name] = CHANGED + number(0) + block
        seeds[name + "-changed"] = CHANGED_AND_SEALED + number(0) + block + number(72) + b"\1"
    text = HEADERS["one"].encode()
    block = struct.pack("<H", len(text)) + text
    seeds["bare"] = SEALED + number(4) + block + bare_sidecar()
    return seeds


def arrivals() -> dict[str, bytes]:
    body = bytes(8) + b"\5" + bytes(7) + bytes(range(48))
    return {
        "three": SOUND_OF_THE_PART + number(3 * CHUNK_BYTES - 5) + b"\7" + body,
        "other": SOUND + number(CHUNK_BYTES) + b"\7" + body,
        "complete": SOUND_OF_THE_PART + number(1) + b"\0" + b"\1" + bytes(7) + b"\1" + bytes(7),
        "many": SOUND_OF_THE_PART + number(130 * CHUNK_BYTES) + b"\7" + bytes(8) + b"\xff" * 24,
        "nothing": AS_IT_IS + number(0) + b"\0",
        "magic": AS_IT_IS + number(0) + b"\0STKARRV1",
    }


def seeds() -> dict[str, dict[str, bytes]]:
    """The inputs of each target by name."""
    headers = {name: FITS + number(0) + text.encode() for name, text in HEADERS.items()}
    headers["short"] = AS_IT_IS + number(23) + HEADERS["one"].encode()
    return {
        "header": headers,
        "sidecar": sidecars(),
        "arrival": arrivals(),
        "index": {name: json.dumps(index).encode() for name, index in INDEXES.items()},
        "ledger": {
            "plain": b"\3" + number(2) + bytes([1, 0, 1, 1, 2, 0, 2, 0]),
            "hedged": b"\2" + number(0) + bytes([1, 0, 1, 1, 0, 7, 1, 2, 1, 3, 2, 0, 3, 1, 2, 0]),
            "failing": b"\1" + number(0) + bytes([1, 0, 3, 0, 1, 1, 3, 0, 1, 0, 2, 0]),
        },
    }


def main() -> None:
    for target, inputs in seeds().items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in inputs.items():
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
