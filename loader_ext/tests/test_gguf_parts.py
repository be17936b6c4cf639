"""Split GGUF: all parts are read as one file, or the one that does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file

import stoker_loader as sl
from gguf_files import make_gguf
from stoker_loader import errors
from stoker_loader.conversion.gguf_parts import Part, check
from stoker_loader.conversion.sources import find_source


def same_weights(found: Path, wanted: Path) -> bool:
    one, other = (load_file(path / "model.safetensors") for path in (found, wanted))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("from_part", [0, 2, None], ids=["first part", "last part", "directory"])
def test_a_split_file_is_one_file(disk: Path, from_part: int | None) -> None:
    whole = make_gguf(disk / "whole", quantised=True)
    # The first part has metadata alone, as gguf-split makes it with --no-tensor-first-split.
    split = {"split_max_tensors": 11, "small_first_shard": True}
    parts = make_gguf(disk / "parts", quantised=True, split=split)
    names = [f"tiny-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    assert sorted(path.name for path in parts.iterdir()) == names
    assert not gguf.GGUFReader(parts / names[0]).tensors
    report = sl.convert(parts if from_part is None else parts / names[from_part], disk / "made")
    assert (report.source_format, report.skipped_files) == ("gguf", ())
    sl.convert(whole, disk / "wanted")
    assert same_weights(disk / "made", disk / "wanted")
    configs = [json.loads((disk / made / "config.json").read_text()) for made in ("made", "wanted")]
    assert configs[0] == configs[1]


def test_a_part_that_is_missing_or_too_many(disk: Path) -> None:
    for number in (1, 2, 3):
        (disk / f"x-{number:05}-of-00003.gguf").write_bytes(b"GGUF")
    found = find_source(disk)
    assert [path.name[:7] for path in found.weights] == ["x-00001", "x-00002", "x-00003"]
    (disk / "x-00004-of-00003.gguf").write_bytes(b"GGUF")
    with pytest.raises(errors.PartsMismatchError, match="there is no such part of 3"):
        find_source(disk / "x-00004-of-00003.gguf")
    with pytest.raises(errors.SourceFormatError, match=r"x-00001-of-00003.*x-00004-of-00003"):
        find_source(disk)
    (disk / "x-00004-of-00003.gguf").unlink()
    (disk / "x-00002-of-00003.gguf").unlink()
    for path in (disk, disk / "x-00001-of-00003.gguf"):
        with pytest.raises(errors.ShardMissingError, match=r"one of the 3 parts.*fetch it") as lost:
            find_source(path)
        assert lost.value.file == str(disk / "x-00002-of-00003.gguf")
    (disk / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(errors.SourceFormatError, match=r"x-00001-of-00003.gguf, x.gguf.*name one"):
        find_source(disk)


def test_parts_that_contradict_each_other() -> None:
    one, two = Part("1", ("a", "b"), 0, 2, 3), Part("2", ("c",), 1, 2, 3)
    check([one, two])
    check([Part("alone", ("a",))])
    wrong: dict[str, tuple[list[Part], str]] = {
        "a part twice": ([one, one], "1: is part 1 of 2 by its metadata, and 2 of 2 by its name"),
        "swapped": ([two, one], "2: is part 2 of 2 by its metadata, and 1 of 2"),
        "renamed": ([one], "1: is part 1 of 2 by its metadata, and 1 of 1 by its name"),
        "no part": ([one, Part("2", ("c",))], "2: is part 1 of 1 by its metadata, and 2 of 2"),
        "too few": (
            [one, Part("2", (), 1, 2, 3)],
            "1: says that all parts hold 3 tensors.* hold 2",
        ),
    }
    for parts, words in wrong.values():
        with pytest.raises(errors.PartsMismatchError, match=words):
            check(parts)
    with pytest.raises(errors.ShardDuplicateError, match="2: tensor 'a': is in 1 too") as twice:
        check([one, Part("2", ("a",), 1, 2, 3)])
    assert (twice.value.file, twice.value.tensor) == ("2", "a")


def test_a_copy_in_place_of_a_part_is_refused(disk: Path) -> None:
    parts = make_gguf(disk / "parts", split={"split_max_tensors": 11})
    first, second = sorted(parts.iterdir())
    second.write_bytes(first.read_bytes())
    with pytest.raises(errors.PartsMismatchError, match="part 1 of 2 by its metadata") as caught:
        sl.convert(parts, disk / "made")
    assert caught.value.file == str(second)
    first.rename(parts / "renamed.gguf")
    with pytest.raises(errors.PartsMismatchError, match="and 1 of 1 by its name"):
        sl.convert(parts / "renamed.gguf", disk / "made")
    assert sorted(path.name for path in disk.iterdir()) == ["parts"]
