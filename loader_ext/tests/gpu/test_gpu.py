"""What only a GPU can show. `make check-gpu` runs it, and says why it skips where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

import stoker_loader as sl
from stoker_loader import _native, devices, errors
from stoker_loader.backends import Backend

COUNT = torch.cuda.device_count() if torch.cuda.is_available() else 0
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        COUNT == 0, reason=f"PyTorch {torch.__version__} sees no CUDA device on this machine"
    ),
]
DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip
SPEED_BYTES = int(os.environ.get("STOKER_GPU_BYTES", 2 << 30))
SPEED_RUNS = 7


@pytest.fixture
def mixed(disk: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Tensors of all dtypes, odd lengths among them, of more bytes than the ring holds."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for number, dtype in enumerate(DTYPES):
        for size in (0, 1, 31 + number, (3 << 20) + number):
            shape = (size * dtype.itemsize,)
            raw = torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8)
            tensors[f"{dtype}.{size}"] = raw.view(dtype)
    path = disk / "mixed.safetensors"
    save_file(tensors, path)
    return path, tensors


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    bits = [t.cpu().contiguous().view(torch.uint8) for t in (found, expected)]
    return found.dtype == expected.dtype and torch.equal(*bits)


def test_a_load_is_the_load_to_the_cpu(mixed: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = mixed
    with sl.open(path) as checkpoint:
        loaded = checkpoint.load("cuda:0")
        stats = checkpoint.stats
    assert {tensor.device for tensor in loaded.values()} == {torch.device("cuda:0")}
    assert loaded.keys() == tensors.keys()
    assert [name for name in tensors if not same(loaded[name], tensors[name])] == []
    assert stats.copied_bytes == sum(t.numel() * t.itemsize for t in tensors.values())
    assert stats.copy_ms > 0


@pytest.mark.parametrize("source", get_args(Backend))
def test_every_back_end_fills_a_device(
    mixed: tuple[Path, dict[str, torch.Tensor]], source: Backend
) -> None:
    path, tensors = mixed
    if reason := sl.backends(path).refused.get(source):
        pytest.skip(f"refused here: {reason}")
    sl.evict(path)
    with sl.open(path) as checkpoint:
        loaded = checkpoint.load("cuda:0", source=source)
        assert checkpoint.stats.source == source
    assert [name for name in tensors if not same(loaded[name], tensors[name])] == []


def test_the_current_device_stays_what_it_was(large: Path) -> None:
    """Also for the callback, which may ask for memory of its own."""
    last, seen = COUNT - 1, set()
    torch.cuda.set_device(0)
    with sl.open(large) as checkpoint:
        checkpoint.load(f"cuda:{last}", progress=lambda *_: seen.add(torch.cuda.current_device()))
    assert seen == {0}
    assert torch.cuda.current_device() == 0


def test_every_device_gets_the_same(mixed: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = mixed
    targets = [f"cuda:{number}" for number in range(COUNT)]
    with sl.open(path) as checkpoint:
        replicas = checkpoint.load_replicas(targets)
    for target, loaded in zip(targets, replicas, strict=True):
        assert {tensor.device for tensor in loaded.values()} == {torch.device(target)}
        assert all(same(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("on_a_stream_of_its_own", [False, True])
def test_memory_that_a_kernel_still_uses_is_not_overwritten(
    large: Path, on_a_stream_of_its_own: bool
) -> None:
    """PyTorch gives freed memory out again at once; what was queued on it must run before."""
    size_bytes = large.stat().st_size
    expected = torch.full((size_bytes,), 7, dtype=torch.uint8)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream() if on_a_stream_of_its_own else torch.cuda.current_stream()
    for _ in range(5):
        with torch.cuda.stream(stream):
            busy = torch.full((size_bytes,), 7, dtype=torch.uint8, device="cuda:0")
            torch.cuda._sleep(200_000_000)  # the kernels behind it have not begun when we load
            result = busy.clone()
            del busy
            with sl.open(large) as checkpoint:
                loaded = checkpoint.load("cuda:0")
        stream.synchronize()
        assert torch.equal(result.cpu(), expected)
        assert torch.equal(loaded["w"].cpu(), torch.arange(16 << 20, dtype=torch.int32))


def test_a_module_on_the_device_computes(decoder: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = decoder
    weight = tensors["layers.0.attn.o_proj.weight"]
    save_file({"weight": weight}, path / "one.safetensors")
    module = torch.nn.Linear(64, 64, bias=False, device="meta")
    with sl.open(path / "one.safetensors") as checkpoint:
        checkpoint.load_into(module, device="cuda")
    x = torch.eye(64, dtype=torch.bfloat16, device="cuda")
    assert torch.equal(module(x).cpu(), weight.T)


def test_cancelling_leaves_a_device_that_works(large: Path) -> None:
    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done < total:
            raise Enough

    with sl.open(large) as checkpoint:
        with pytest.raises(Enough):
            checkpoint.load("cuda:0", progress=stop)
        loaded = checkpoint.load("cuda:0")
    assert torch.equal(loaded["w"].cpu(), torch.arange(16 << 20, dtype=torch.int32))


def test_wrong_addresses_are_refused(large: Path) -> None:
    size_bytes = large.stat().st_size
    native = _native.Checkpoint(large, None)
    host = torch.empty(size_bytes, dtype=torch.uint8)
    for target in [host, *([host.to("cuda:1")] if COUNT > 1 else [])]:
        transfers = [(0, 0, size_bytes, [(0, target.data_ptr())])]
        with pytest.raises(errors.DeviceAddressError):
            _native.copy_to_devices(native, [0], transfers, None, None)
    with pytest.raises(errors.DeviceUnknownError):
        _native.copy_to_devices(native, [COUNT], [], None, None)
    with pytest.raises(errors.DeviceUnavailableError):
        devices.resolve(f"cuda:{COUNT}")


@pytest.fixture
def heavy(disk: Path) -> Iterator[Path]:
    path = disk / "heavy.safetensors"
    tensors = {f"w{n}": torch.zeros(SPEED_BYTES // 32, dtype=torch.bfloat16) for n in range(16)}
    save_file(tensors, path)
    yield path
    torch.cuda.empty_cache()


def test_speed(heavy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not judged: warm loads beside one copy from pinned memory, the bus's own limit."""
    size_bytes = heavy.stat().st_size
    pinned = torch.zeros(size_bytes, dtype=torch.uint8).pin_memory()

    def limit() -> object:
        return pinned.to("cuda:0", non_blocking=True)

    def ours() -> object:
        with sl.open(heavy) as checkpoint:
            return checkpoint.load("cuda:0")

    def view_then_move() -> object:
        with sl.open(heavy) as checkpoint:
            return {name: tensor.to("cuda:0") for name, tensor in checkpoint.load().items()}

    def safetensors() -> object:
        return load_file(heavy, device="cuda:0")

    contenders = [limit, ours, view_then_move, safetensors]
    samples: dict[str, list[float]] = {contender.__name__: [] for contender in contenders}
    for run in range(SPEED_RUNS + 1):
        for contender in contenders:
            torch.cuda.synchronize()
            started = perf_counter()
            result = contender()
            torch.cuda.synchronize()
            if run:  # the first warms page cache and allocator
                samples[contender.__name__].append(size_bytes / 1e9 / (perf_counter() - started))
            del result
    with capsys.disabled():
        print(f"\n{torch.cuda.get_device_name(0)}, {size_bytes / 1e9:.2f} GB, page cache warm")
        for name, rates in samples.items():
            print(f"  {name:15} {median(rates):6.2f} GB/s ({min(rates):.2f} to {max(rates):.2f})")
