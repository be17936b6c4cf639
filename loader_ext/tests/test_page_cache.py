"""Residency, eviction and prefetch on a real disk, and the tier that follows from them."""

from __future__ import annotations

from pathlib import Path

import pytest

import stoker_loader as sl
from stoker_loader.errors import CheckpointNotFoundError


def test_evict_and_prefetch_a_file(large: Path) -> None:
    size = large.stat().st_size
    assert sl.evict(large) == sl.Residency(size, 0)
    assert sl.residency(large) == sl.Residency(size, 0)  # asking reads nothing
    seen: list[int] = []
    assert sl.prefetch(large, lambda done, total: seen.append(done)) == size
    assert seen[-1] == size
    assert sl.residency(large) == sl.Residency(size, size)


def test_a_part_of_a_file(large: Path) -> None:
    sl.evict(large)
    with large.open("rb", buffering=0) as file:
        file.seek(32 << 20)
        assert len(file.read(4096)) == 4096
    resident = sl.residency(large).resident_bytes
    assert 4096 <= resident < large.stat().st_size


def test_a_directory_is_all_its_files(sharded: tuple[Path, dict]) -> None:
    directory, _ = sharded
    (directory / "sub").mkdir()
    (directory / "sub" / "more").write_bytes(b"x" * 5000)
    (directory / "empty").touch()
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    assert sl.evict(directory) == sl.Residency(size, 0)
    assert sl.prefetch(directory) == size
    assert sl.residency(directory) == sl.Residency(size, size)


def test_mapped_pages_stay(large: Path) -> None:
    tensors = sl.load_file(large)
    size = large.stat().st_size
    assert sl.evict(large) == sl.Residency(size, size)
    del tensors
    assert sl.evict(large) == sl.Residency(size, 0)


def test_the_tier_is_what_was_resident_before(large: Path) -> None:
    size = large.stat().st_size
    sl.evict(large)
    with sl.open(large) as checkpoint:
        checkpoint.load()
        cold = checkpoint.stats
    with sl.open(large) as checkpoint:
        checkpoint.load()
        warm = checkpoint.stats
    # Opening reads the header, and the kernel a little more behind it.
    assert cold.resident_bytes_before < 1 << 20
    assert cold.tier == "ssd"
    assert cold.bytes_by_tier == {
        "remote": 0,
        "dram": cold.resident_bytes_before,
        "ssd": size - cold.resident_bytes_before,
    }
    assert (warm.tier, warm.resident_bytes_before) == ("dram", size)
    assert warm.bytes_by_tier == {"remote": 0, "dram": size, "ssd": 0}
    for stats in (cold, warm):
        assert stats.checkpoint_bytes == size
        assert stats.residency_known
        assert stats.copied_bytes == 0
        assert min(stats.open_ms, stats.map_ms, stats.populate_ms, stats.attach_ms) > 0


def test_nothing_there(disk: Path) -> None:
    for call in (sl.residency, sl.evict, sl.prefetch):
        with pytest.raises(CheckpointNotFoundError):
            call(disk / "gone")
