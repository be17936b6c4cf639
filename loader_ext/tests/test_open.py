"""Opening and loading, held against the reference package."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import stoker_loader as sl
from stoker_loader.errors import (
    BackendUnknownError,
    CheckpointClosedError,
    UnknownTensorError,
    UnsupportedDtypeError,
)

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int16, torch.uint16, torch.float16,
    torch.bfloat16, torch.int32, torch.uint32, torch.float32, torch.int64, torch.uint64,
    torch.float64, torch.complex64,
]  # fmt: skip


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equality of dtype, shape and bits (float8 and NaN have no useful `==`)."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(
        left.contiguous().flatten().view(torch.uint8),
        right.contiguous().flatten().view(torch.uint8),
    )


def test_every_tensor_is_the_reference_packages(decoder: tuple[Path, dict]) -> None:
    directory, _ = decoder
    reference = load_file(directory / "model.safetensors")
    with sl.open(directory) as checkpoint:
        tensors = checkpoint.load()
        assert set(checkpoint.names) == set(reference)
        assert all(same(checkpoint.tensor(name), reference[name]) for name in reference)
    assert list(tensors) == list(checkpoint.names)
    assert all(same(tensors[name], reference[name]) for name in reference)
    assert all(same(t, reference[n]) for n, t in sl.load_file(directory).items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(disk: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    raw = torch.randint(0, 2, (48 * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    path = disk / "x.safetensors"
    save_file(
        {"a": raw.view(dtype).view(3, 4, 4), "scalar": raw.view(dtype)[0].clone(),
         "empty": torch.empty(0, 5, dtype=dtype)},
        path,
    )  # fmt: skip
    reference = load_file(path)
    tensors = sl.load_file(path)
    assert all(same(tensors[name], reference[name]) for name in reference)
    assert tensors["a"].is_contiguous()
    with sl.open(path) as checkpoint:
        array = checkpoint.numpy("a")
        assert array.tobytes() == reference["a"].contiguous().view(torch.uint8).numpy().tobytes()
        assert checkpoint.numpy("empty").shape == (0, 5)


def test_bfloat16_comes_to_numpy_as_uint16(decoder: tuple[Path, dict]) -> None:
    directory, tensors = decoder
    with sl.open(directory) as checkpoint:
        array = checkpoint.numpy("embed.weight")
    assert array.dtype == np.uint16
    assert (array == tensors["embed.weight"].view(torch.uint16).numpy()).all()
    array[0, 0] += 1  # private: writing is allowed


def test_what_the_header_says(decoder: tuple[Path, dict]) -> None:
    directory, tensors = decoder
    raw = (directory / "model.safetensors").read_bytes()
    with sl.open(directory / "model.safetensors") as checkpoint:
        assert checkpoint.metadata == {"format": "pt"}
        for name, tensor in tensors.items():
            info = checkpoint.info(name)
            assert (info.name, info.dtype, info.file) == (name, "BF16", "model.safetensors")
            assert info.shape == tuple(tensor.shape)
            found = raw[info.offset_bytes : info.offset_bytes + info.size_bytes]
            assert found == tensor.view(torch.uint8).numpy().tobytes()


def test_shards(sharded: tuple[Path, dict]) -> None:
    directory, tensors = sharded
    with sl.open(directory) as checkpoint:
        loaded = checkpoint.load()
        files = {checkpoint.info(name).file for name in checkpoint.names}
    assert files == {f"model-{number}.safetensors" for number in range(3)}
    assert loaded.keys() == tensors.keys()
    assert all(same(loaded[name], tensors[name]) for name in tensors)


def test_misaligned_tensors_are_copied_and_counted(write_file: object, disk: Path) -> None:
    values = torch.arange(6, dtype=torch.float32)
    header = {
        "odd": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [1, 25]},
    }
    # The reference writer pads its header to 8 bytes; this one must be aligned by hand too.
    text = json.dumps(header)
    text += " " * (-len(text) % 8)
    path = write_file(text, b"\x05" + values.numpy().tobytes())  # type: ignore[operator]
    with sl.open(path) as checkpoint:
        tensors = checkpoint.load()
        assert checkpoint.stats.copied_bytes == 24
        assert (checkpoint.numpy("w") == values.view(2, 3).numpy()).all()
    assert torch.equal(tensors["w"], values.view(2, 3))
    assert tensors["odd"].tolist() == [5]


def test_packed_dtypes_are_named_in_the_error(write_file: object) -> None:
    header = {"w": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}
    with sl.open(write_file(header, b"123")) as checkpoint:  # type: ignore[operator]
        assert checkpoint.info("w").size_bytes == 3
        with pytest.raises(UnsupportedDtypeError, match=r"'w'.*no dtype for F6_E2M3"):
            checkpoint.load()
        with pytest.raises(UnsupportedDtypeError, match="no dtype for F6_E2M3"):
            checkpoint.numpy("w")


def test_closing_forbids_new_loads(decoder: tuple[Path, dict]) -> None:
    directory, _ = decoder
    with sl.open(directory) as checkpoint:
        assert checkpoint.names
    for call in (
        checkpoint.load,
        checkpoint.populate,
        lambda: checkpoint.tensor("norm.weight"),
        lambda: checkpoint.numpy("norm.weight"),
        lambda: checkpoint.metadata,
    ):
        with pytest.raises(CheckpointClosedError, match="is closed; open it again"):
            call()


def test_an_unknown_name(decoder: tuple[Path, dict]) -> None:
    with sl.open(decoder[0]) as checkpoint:
        for call in (checkpoint.tensor, checkpoint.info, checkpoint.numpy):
            with pytest.raises(UnknownTensorError, match="'nope'") as caught:
                call("nope")
            assert caught.value.tensor == "nope"


def test_another_device_is_a_copy(decoder: tuple[Path, dict]) -> None:
    with sl.open(decoder[0]) as checkpoint:
        tensors = checkpoint.load("meta")
        sizes = sum(checkpoint.info(name).size_bytes for name in checkpoint.names)
        assert checkpoint.stats.copied_bytes == sizes
        assert checkpoint.stats.copy_ms > 0
    assert {tensor.device.type for tensor in tensors.values()} == {"meta"}


def test_importing_needs_neither_torch_nor_numpy(decoder: tuple[Path, dict]) -> None:
    program = (
        "import sys, stoker_loader as sl\n"
        "with sl.open(sys.argv[1]) as c: c.populate(); assert c.stats.checkpoint_bytes > 0\n"
        "sl.digest(sys.argv[1]); sl.residency(sys.argv[1])\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "c = sl.open(sys.argv[1]); c.numpy('norm.weight')\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(decoder[0])]
    subprocess.run(command, check=True, timeout=60)


def test_the_reference_package_sees_the_same_names(sharded: tuple[Path, dict]) -> None:
    directory, _ = sharded
    seen = []
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as reference:
            seen.extend(reference.keys())
    with sl.open(directory) as checkpoint:
        assert sorted(checkpoint.names) == sorted(seen)


def test_load_file_takes_what_the_reference_packages_takes(
    decoder: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    directory, tensors = decoder
    file = directory / "model.safetensors"
    wanted = inspect.signature(safetensors.torch.load_file).parameters
    ours = inspect.signature(sl.load_file).parameters
    assert [(one.name, one.kind, one.default) for one in wanted.values()] == [
        (one.name, one.kind, one.default) for one in ours.values() if one.name in wanted
    ]
    for backend in ("mmap", "pread"):
        loaded = sl.load_file(filename=str(file), device="cpu", backend=backend)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(BackendUnknownError, match="choose one of mmap, pread"):
        sl.load_file(file, backend="other")  # type: ignore[arg-type]
