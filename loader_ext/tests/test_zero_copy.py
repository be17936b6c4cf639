"""Tensors are the page cache: proven by addresses and by what the kernel says of the mapping."""

from __future__ import annotations

import gc
import io
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import stoker_loader as sl

HUGE_PAGE_BYTES = 2 << 20


def mappings(path: Path) -> list[tuple[int, int, dict[str, int]]]:
    """`(begin, end, counters in KiB)` of each mapping of a file, from /proc/self/smaps."""
    found: list[tuple[int, int, dict[str, int]]] = []
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, value = line.partition(":")
        if "-" in key.split(" ")[0]:
            ours = line.endswith(os.fspath(path.resolve()))
            if ours:
                begin, end = (int(part, 16) for part in line.split(" ")[0].split("-"))
                assert line.split()[1] == "rw-p"
                found.append((begin, end, {}))
        elif ours and value.endswith("kB"):
            found[-1][2][key] = int(value.split()[0])
    return found


def test_every_tensor_lies_in_the_one_private_mapping(decoder: tuple[Path, dict]) -> None:
    path = decoder[0] / "model.safetensors"
    with sl.open(path) as checkpoint:
        tensors = checkpoint.load()
        [(begin, end, counters)] = mappings(path)
        assert begin % HUGE_PAGE_BYTES == 0
        for name, tensor in tensors.items():
            info = checkpoint.info(name)
            assert tensor.data_ptr() == begin + info.offset_bytes
            assert tensor.data_ptr() + info.size_bytes <= end
        assert checkpoint.stats.copied_bytes == 0
    assert counters["Anonymous"] == 0
    assert counters["Rss"] * 1024 >= path.stat().st_size


def test_a_write_copies_its_page_and_leaves_the_file(decoder: tuple[Path, dict]) -> None:
    path = decoder[0] / "model.safetensors"
    before = path.read_bytes()
    tensors = sl.load_file(path)
    tensors["embed.weight"][7] = 1.0
    [(_, _, counters)] = mappings(path)
    assert 4 <= counters["Anonymous"] <= 8  # the row's page, or two
    assert (tensors["embed.weight"][7] == 1.0).all()
    assert path.read_bytes() == before
    again = sl.load_file(path)
    assert torch.equal(again["embed.weight"], decoder[1]["embed.weight"])


def test_tensors_outlive_the_checkpoint_and_the_mapping_goes_with_the_last(
    sharded: tuple[Path, dict],
) -> None:
    directory, reference = sharded
    path = directory / "model-0.safetensors"
    with sl.open(directory) as checkpoint:
        tensors = checkpoint.load()
        one = checkpoint.numpy("embed.weight")
    del checkpoint
    gc.collect()
    assert len(mappings(path)) == 1
    assert all(torch.equal(tensors[name], reference[name]) for name in reference)
    del tensors
    gc.collect()
    assert len(mappings(path)) == 1  # the array holds its own file alone
    assert not mappings(directory / "model-1.safetensors")
    assert one[0, 0] == reference["embed.weight"].view(torch.uint16)[0, 0]
    del one
    gc.collect()
    assert not mappings(path)


def test_opening_maps_nothing(decoder: tuple[Path, dict]) -> None:
    path = decoder[0] / "model.safetensors"
    with sl.open(path) as checkpoint:
        assert checkpoint.names
        assert not mappings(path)


def test_tensors_are_no_autograd_views_of_each_other(decoder: tuple[Path, dict]) -> None:
    tensors = sl.load_file(decoder[0])
    weight = tensors["layers.0.attn.o_proj.weight"]
    version = weight._version
    output = (weight * torch.ones_like(weight).requires_grad_()).sum()
    tensors["norm.weight"].zero_()  # must not count as a change of `weight`
    output.backward()
    assert weight._version == version


def test_two_loads_share_the_pages(large: Path) -> None:
    first, second = sl.load_file(large), sl.load_file(large)
    assert first["w"].data_ptr() != second["w"].data_ptr()
    for _, _, counters in mappings(large):
        assert counters["Pss"] < counters["Rss"]
        assert counters["Anonymous"] == 0


def test_each_tensor_has_a_storage_of_its_own(decoder: tuple[Path, dict]) -> None:
    with sl.open(decoder[0]) as checkpoint:
        tensors = checkpoint.load()
        fused_alone = checkpoint.tensor("norm.weight")
    for tensor in (*tensors.values(), fused_alone):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert not tensor._is_view()
        assert tensor._version == 0
    saved = io.BytesIO()
    torch.save(tensors["norm.weight"], saved)
    assert len(saved.getvalue()) < 4096


def test_making_thousands_of_tensors_pauses_the_collector(disk: Path) -> None:
    path = disk / "many.safetensors"
    save_file({f"w.{number}": torch.ones(1) for number in range(3000)}, path)
    collected: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        collected.append(info["generation"])

    with sl.open(path) as checkpoint:
        checkpoint.populate()
        views = checkpoint._torch_views()
        native = checkpoint._native
        assert native is not None
        gc.callbacks.append(note)
        try:
            tensors = views.attach(native)
            during = len(collected)
        finally:
            gc.callbacks.remove(note)
    assert len(tensors) == 3000
    assert during == 0
    assert gc.isenabled()
    gc.disable()
    try:
        sl.load_file(path)
        assert not gc.isenabled()  # whoever turned it off keeps it off
    finally:
        gc.enable()


def test_a_dtype_that_dlpack_lacks_is_no_view_either(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = disk / "f8.safetensors"
    whole = torch.arange(24, dtype=torch.uint8).view(torch.float8_e5m2).view(4, 6)
    save_file({"w": whole, "scalar": whole[0, 1].clone()}, path)

    from_dlpack = torch._C._from_dlpack

    def older(capsule: object) -> torch.Tensor:
        tensor = from_dlpack(capsule)
        if tensor.dtype == torch.float8_e5m2:
            raise BufferError("an older torch")
        return tensor

    with sl.open(path) as checkpoint:
        direct = checkpoint.load()["w"]
    monkeypatch.setattr(torch._C, "_from_dlpack", older)
    with sl.open(path) as checkpoint:
        tensors = checkpoint.load()
        assert checkpoint.stats.copied_bytes == 0
    for name, wanted in (("w", whole), ("scalar", whole[0, 1])):
        assert tensors[name].dtype == torch.float8_e5m2
        assert tensors[name].shape == wanted.shape
        assert not tensors[name]._is_view()
    assert torch.equal(tensors["w"].view(torch.uint8), direct.view(torch.uint8))


def test_no_cycle_holds_a_mapping(decoder: tuple[Path, dict]) -> None:
    path = decoder[0] / "model.safetensors"
    gc.disable()
    try:
        checkpoint = sl.open(path)  # and never closed
        tensor = checkpoint.load()["norm.weight"]
        del checkpoint
        assert len(mappings(path)) == 1
        del tensor
        assert not mappings(path)
    finally:
        gc.enable()
