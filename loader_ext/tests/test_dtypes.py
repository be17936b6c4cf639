"""Every dtype of the format: written by the reference package where it can, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import stoker_loader as sl
from stoker_loader.conversion.tensor_file import create, plan, write
from stoker_loader.errors import UnsupportedDtypeError
from stoker_loader.tensors import format_name

# The format's name -> torch's dtype, and what numpy gives for it.
DTYPES = {
    "BOOL": (torch.bool, np.bool_),
    "F4": (torch.float4_e2m1fn_x2, None),
    "U8": (torch.uint8, np.uint8),
    "I8": (torch.int8, np.int8),
    "F8_E5M2": (torch.float8_e5m2, np.uint8),
    "F8_E4M3": (torch.float8_e4m3fn, np.uint8),
    "F8_E5M2FNUZ": (torch.float8_e5m2fnuz, np.uint8),
    "F8_E4M3FNUZ": (torch.float8_e4m3fnuz, np.uint8),
    "F8_E8M0": (torch.float8_e8m0fnu, np.uint8),
    "I16": (torch.int16, np.int16),
    "U16": (torch.uint16, np.uint16),
    "F16": (torch.float16, np.float16),
    "BF16": (torch.bfloat16, np.uint16),
    "I32": (torch.int32, np.int32),
    "U32": (torch.uint32, np.uint32),
    "F32": (torch.float32, np.float32),
    "F64": (torch.float64, np.float64),
    "I64": (torch.int64, np.int64),
    "U64": (torch.uint64, np.uint64),
    "C64": (torch.complex64, np.complex64),
}
NOWHERE = ("F6_E2M3", "F6_E3M2")  # neither torch nor numpy has these


def sample(dtype: torch.dtype, rows: int = 3, columns: int = 4) -> torch.Tensor:
    """A matrix of this dtype with other bits in every element."""
    size_bytes = rows * columns * dtype.itemsize
    raw = torch.arange(size_bytes, dtype=torch.int64).mul(37).remainder(251).to(torch.uint8)
    return (raw % 2 if dtype is torch.bool else raw).view(dtype).reshape(rows, columns)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("name", DTYPES)
def test_what_the_reference_package_writes(disk: Path, name: str) -> None:
    dtype, numpy_dtype = DTYPES[name]
    tensor = sample(dtype)
    path = disk / "x.safetensors"
    save_file({"w": tensor}, path)
    with sl.open(path) as checkpoint:
        info = checkpoint.info("w")
        assert info.dtype == name
        assert info.shape == ((3, 8) if name == "F4" else (3, 4))
        loaded = checkpoint.load()["w"]
        assert (loaded.dtype, loaded.shape) == (dtype, tensor.shape)
        assert bits(loaded) == bits(tensor)
        assert checkpoint.stats.copied_bytes == 0
        assert loaded.data_ptr() == checkpoint.tensor("w").data_ptr()
        if numpy_dtype is None:
            with pytest.raises(UnsupportedDtypeError, match="numpy has no dtype for F4"):
                checkpoint.numpy("w")
        else:
            array = checkpoint.numpy("w")
            assert (array.dtype, array.shape) == (numpy_dtype, (3, 4))
            assert array.tobytes() == bits(tensor)


@pytest.mark.parametrize("name", DTYPES)
def test_what_the_converter_writes_is_what_the_reference_package_reads(
    disk: Path, name: str
) -> None:
    dtype = DTYPES[name][0]
    tensors = {"w": sample(dtype), "strided": sample(dtype, 6)[::2], "empty": sample(dtype, 0)}
    assert format_name(dtype) == name
    path = disk / "x.safetensors"
    with create(path) as output:
        planned = plan(tensors, {"format": "pt"}, dtype=None, file="test")
        write(output, planned, lambda done, total: None)
    with safe_open(path, "pt") as reference:
        assert reference.metadata() == {"format": "pt"}
        for key, tensor in tensors.items():
            found = reference.get_tensor(key)
            assert (found.dtype, found.shape, bits(found)) == (dtype, tensor.shape, bits(tensor))
    ours = sl.load_file(path)
    assert all(bits(ours[key]) == bits(tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("name", [*DTYPES, *NOWHERE])
def test_raw_bytes_survive_the_layout(
    disk: Path, write_file: Callable[[object, bytes], Path], name: str
) -> None:
    """Whatever torch has a dtype for: the core moves bytes and knows their number."""
    item_bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}.get(name)
    item_bits = item_bits or 8 * DTYPES[name][0].itemsize
    shape = [5, 8]
    raw = bytes(index % 2 for index in range(40 * item_bits // 8))
    path = write_file({"w": {"dtype": name, "shape": shape, "data_offsets": [0, len(raw)]}}, raw)
    sl.layout(path, disk / "laid")
    with sl.open(disk / "laid") as checkpoint:
        info = checkpoint.info("w")
        assert (info.dtype, info.shape, info.size_bytes) == (name, (5, 8), len(raw))
        if name in NOWHERE:
            with pytest.raises(UnsupportedDtypeError, match=f"torch .* has no dtype for {name}"):
                checkpoint.tensor("w")
            with pytest.raises(UnsupportedDtypeError, match=f"numpy has no dtype for {name}"):
                checkpoint.numpy("w")
        else:
            assert bits(checkpoint.tensor("w")) == raw
    content = (disk / "laid" / "model.safetensors").read_bytes()
    assert content[info.offset_bytes : info.offset_bytes + info.size_bytes] == raw


def test_pairs_that_torch_cannot_divide(
    disk: Path, write_file: Callable[[object, bytes], Path]
) -> None:
    header = {
        "odd": {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]},
        "a": {"dtype": "F4", "shape": [1, 4], "data_offsets": [3, 5]},
        "b": {"dtype": "F4", "shape": [2, 4], "data_offsets": [5, 9]},
    }
    with sl.open(write_file(header, bytes(range(9)))) as checkpoint:
        with pytest.raises(UnsupportedDtypeError, match=r"odd in \(2, 3\)") as caught:
            checkpoint.tensor("odd")
        assert caught.value.tensor == "odd"
        fused = checkpoint.fused(["a", "b"])
        assert fused is not None
        assert fused.shape == (3, 2)
        assert bits(fused) == bytes(range(3, 9))


def test_4_bit_weights_become_a_modules(disk: Path) -> None:
    class Packed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            empty = torch.empty(3, 4, dtype=torch.float4_e2m1fn_x2)
            self.weight = torch.nn.Parameter(empty, requires_grad=False)

    tensor = sample(torch.float4_e2m1fn_x2)
    save_file({"weight": tensor}, disk / "x.safetensors")
    with torch.device("meta"):
        module = Packed()
    with sl.open(disk / "x.safetensors") as checkpoint:
        checkpoint.load_into(module)
    assert bits(module.weight.data) == bits(tensor)
