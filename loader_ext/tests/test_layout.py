"""The aligned layout: valid for the reference package, fused without a copy, whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import stoker_loader as sl
from stoker_loader.errors import DestinationExistsError, SymlinkRefusedError

QKV = [f"layers.1.attn.{part}_proj.weight" for part in "qkv"]
QKV_BIAS = [f"layers.1.attn.{part}_proj.bias" for part in "qkv"]
GATE_UP = [f"layers.0.mlp.{part}_proj.weight" for part in ("gate", "up")]


@pytest.mark.parametrize("kind", ["decoder", "sharded"])
def test_the_reference_package_reads_it(
    kind: str, disk: Path, request: pytest.FixtureRequest
) -> None:
    source, tensors = request.getfixturevalue(kind)
    report = sl.layout(source, disk / "laid")
    path = disk / "laid" / "model.safetensors"
    reference = load_file(path)
    assert reference.keys() == tensors.keys()
    assert all(torch.equal(reference[name], tensors[name]) for name in tensors)
    ours = sl.load_file(disk / "laid")
    assert all(torch.equal(ours[name], tensors[name]) for name in tensors)
    assert report.tensors == len(tensors)
    assert len(report.fused_groups) == 6
    assert tuple(QKV) in report.fused_groups
    assert report.digest == sl.digest(disk / "laid")
    files = [path for path in (disk / "laid").rglob("*") if path.is_file()]
    assert report.checkpoint_bytes == sum(path.stat().st_size for path in files)
    with safe_open(path, "pt") as opened:
        assert opened.metadata()["stoker.layout"] == "1"


@pytest.mark.parametrize("names", [QKV, QKV_BIAS, GATE_UP], ids=lambda names: names[0])
def test_fused_weights_are_one_view(
    decoder: tuple[Path, dict], disk: Path, names: list[str]
) -> None:
    source, tensors = decoder
    sl.layout(source, disk / "laid")
    with sl.open(disk / "laid") as checkpoint:
        fused = checkpoint.fused(names)
        assert fused is not None
        assert fused.data_ptr() == checkpoint.tensor(names[0]).data_ptr()
        assert fused.is_contiguous()
        assert checkpoint.fused(names[::-1]) is None
        assert checkpoint.fused([]) is None
        assert checkpoint.stats.copied_bytes == 0
    assert torch.equal(fused, torch.cat([tensors[name] for name in names]))
    with sl.open(source) as checkpoint:
        # The reference writer sorts by name, which sets gate before up but not q before k.
        assert (checkpoint.fused(names) is None) == (names is not GATE_UP)


def test_neighbours_that_differ_do_not_fuse(disk: Path) -> None:
    path = disk / "x.safetensors"
    save_file(
        {
            "a": torch.zeros(2, 4), "b": torch.ones(3, 4), "c": torch.ones(3, 5),
            "d": torch.ones(4), "e": torch.tensor(1.0), "f": torch.zeros(2, 4, dtype=torch.int32),
        },
        path,
    )  # fmt: skip
    with sl.open(path) as checkpoint:
        assert torch.equal(
            checkpoint.fused(["a", "b"]), torch.cat([torch.zeros(2, 4), torch.ones(3, 4)])
        )
        for pair in (["b", "c"], ["c", "d"], ["d", "e"], ["e", "d"], ["f", "a"]):
            assert checkpoint.fused(pair) is None


def test_large_tensors_lie_on_pages(disk: Path) -> None:
    path = disk / "x.safetensors"
    save_file(
        {
            "b.10": torch.zeros(1024, 64),
            "b.9": torch.zeros(1024, 64),
            "odd": torch.zeros(100_001),
            "small": torch.zeros(5),
        },
        path,
    )
    sl.layout(path, disk / "laid")
    with sl.open(disk / "laid") as checkpoint:
        assert checkpoint.names == ("small", "b.9", "b.10", "odd")
        assert checkpoint.info("b.9").offset_bytes % 4096 == 0
        assert checkpoint.info("b.10").offset_bytes % 4096 == 0


def test_other_files_come_along_and_pickles_stay(decoder: tuple[Path, dict], disk: Path) -> None:
    source, _ = decoder
    (source / "tokenizer").mkdir()
    (source / "tokenizer" / "vocab.txt").write_text("a\n")
    (source / "training_args.bin").write_bytes(b"\x80\x02")
    (source / "old.safetensors").write_bytes(b"another file of weights")
    report = sl.layout(source, disk / "laid")
    names = [file.name for file in report.digest.files]
    assert names == ["config.json", "model.safetensors", "model.stx", "tokenizer/vocab.txt"]
    assert report.skipped == ("old.safetensors", "training_args.bin")
    assert (disk / "laid" / "tokenizer" / "vocab.txt").read_text() == "a\n"


def test_progress_counts_what_is_written(decoder: tuple[Path, dict], disk: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = sl.layout(decoder[0], disk / "laid", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (report.checkpoint_bytes, report.checkpoint_bytes)


def test_a_stopped_layout_leaves_nothing(decoder: tuple[Path, dict], disk: Path) -> None:
    before = set(disk.iterdir())

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        sl.layout(decoder[0], disk / "laid", stop)
    assert set(disk.iterdir()) == before


def test_a_destination_is_never_overwritten(decoder: tuple[Path, dict], disk: Path) -> None:
    (disk / "laid").mkdir()
    with pytest.raises(DestinationExistsError, match="nothing is ever written over it"):
        sl.layout(decoder[0], disk / "laid")


def test_links_are_followed_into_the_layout_and_refused_by_the_digest(
    decoder: tuple[Path, dict], disk: Path
) -> None:
    source, _ = decoder
    (source / "config.json").rename(disk / "blob")
    (source / "config.json").symlink_to(disk / "blob")
    with pytest.raises(SymlinkRefusedError, match=r"config.json: is a symbolic link"):
        sl.digest(source)
    sl.layout(source, disk / "laid")
    assert not (disk / "laid" / "config.json").is_symlink()
    assert (disk / "laid" / "config.json").read_text() == "{}"
