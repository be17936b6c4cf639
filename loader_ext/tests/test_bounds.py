"""The native side against numbers that its own Python package never gives it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import stoker_loader as sl
from stoker_loader import _native

CHUNK = 8 << 20
LAST = 2**64 - 1

Ask = Callable[[_native.Checkpoint, int], object]
WAYS: dict[str, Ask] = {
    "wait": lambda native, shard: native.wait(shard, 0, 1),
    "capsule": lambda native, shard: native.capsule(shard, 0, "U8", (1,)),
    "buffer": lambda native, shard: native.buffer(shard),
    "copy": lambda native, shard: _native.copy_to_devices(
        native, [0], [(shard, 0, 0, [])], None, 1
    ),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("shard", [3, LAST])
def test_a_shard_that_is_not_there(sharded: tuple[Path, dict], name: str, shard: int) -> None:
    native = _native.Checkpoint(sharded[0], None)
    with pytest.raises(IndexError, match=str(shard)):
        WAYS[name](native, shard)
    with pytest.raises(OverflowError):
        WAYS[name](native, -1)


@pytest.mark.parametrize(
    ("offset", "size_bytes"), [(LAST, 1), (LAST, 2**60), (CHUNK, LAST), (0, LAST), (CHUNK, 2**40)]
)
def test_a_range_that_leaves_its_file(large: Path, offset: int, size_bytes: int) -> None:
    native = _native.Checkpoint(large, None, True, _known(large))
    with pytest.raises(IndexError, match=str(offset)):
        native.wait(0, offset, size_bytes)
    # In bits, the longest ones are no numbers any more.
    with pytest.raises((IndexError, ValueError), match=f"{offset}|shape"):
        native.capsule(0, offset, "U8", (size_bytes,))
    with pytest.raises(ValueError, match="leaves its file"):
        _native.copy_to_devices(native, [0], [(0, offset, size_bytes, [])], None, 1)


def test_a_shape_beyond_64_bits(large: Path) -> None:
    native = _native.Checkpoint(large, None)
    for shape in [(LAST, 2), (0, LAST, LAST)]:
        with pytest.raises(ValueError, match="shape"):
            native.capsule(0, 0, "F32", shape)


@pytest.mark.parametrize(("dtype", "bytes_each"), [("BF16", 2), ("F32", 4), ("I64", 8), ("C64", 8)])
def test_elements_that_do_not_lie_as_they_must(large: Path, dtype: str, bytes_each: int) -> None:
    """What takes a capsule trusts its address; torch would load from it as if it were aligned."""
    native = _native.Checkpoint(large, None)
    for offset in range(1, bytes_each):
        with pytest.raises(ValueError, match=f"{dtype} must begin at a multiple of {bytes_each}"):
            native.capsule(0, offset, dtype, (2,))
        with pytest.raises(ValueError, match="must begin"):
            native.capsule(0, offset, dtype, (0,))
    assert native.capsule(0, bytes_each, dtype, (2,))
    assert native.capsule(0, 1, "F8_E4M3", (2,))
    assert native.capsule(0, 1, "F4", (2,))


def _known(path: Path) -> tuple[str, list[tuple[str, int, list[str]]]]:
    known = sl.digest(path)
    return known.root, [(file.name, file.size_bytes, list(file.chunks)) for file in known.files]
