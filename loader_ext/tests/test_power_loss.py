"""A machine that went down in the middle of a fetch: the map says more than the disk has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import stoker_loader as sl
from stoker_loader import errors
from support.object_store import ObjectStore, served

CHUNK = 8 << 20
BOOT_AT = 72  # in the map: see the README
TENSORS = {f"t{n}": np.random.default_rng(n).integers(0, 255, CHUNK, np.uint8) for n in range(3)}
BODY = save(TENSORS)


class Enough(Exception):
    pass


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with served(ObjectStore(BODY)) as store:
        yield store


def begun(store: ObjectStore, target: Path) -> None:
    """A fetch that ended behind its second chunk."""

    def progress(done: int, total: int) -> None:
        if done >= 2 * CHUNK:
            raise Enough

    with pytest.raises(Enough):
        sl.fetch(store.url, target, limits=sl.FetchLimits(streams=1), progress=progress)


def lose_power(target: Path) -> None:
    """What a disk may hold after it: the map as it was, of a boot that is over, and zeros where
    the second chunk never got."""
    with target.with_name(target.name + ".part.map").open("r+b") as file:
        file.seek(BOOT_AT)
        boot = file.read(16)
        assert boot.hex() == Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace(
            "-", ""
        )
        file.seek(BOOT_AT)
        file.write(bytes(byte ^ 0xFF for byte in boot))
    with target.with_name(target.name + ".part").open("r+b") as file:
        file.seek(CHUNK)
        file.write(bytes(CHUNK))


def test_nothing_of_another_boot_is_seen_before_it_was_read_again(
    store: ObjectStore, disk: Path
) -> None:
    target = disk / "model.safetensors"
    begun(store, target)
    with sl.open_arriving(target) as checkpoint:
        assert np.array_equal(checkpoint.numpy("t0"), TENSORS["t0"]), "the process is gone, no more"
    lose_power(target)
    with pytest.raises(errors.FetchAbandonedError):
        sl.open_arriving(target)

    store.asked.clear()
    fetched = sl.fetch(store.url, target)
    assert target.read_bytes() == BODY
    assert 0 not in store.ranges, "the chunk that did get to the disk is kept"
    assert CHUNK in store.ranges
    assert fetched.stats.resumed_bytes >= CHUNK
