"""Every way of reading a file gives the same tensors; the machine says which ones it allows."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import forbid
import stoker_loader as sl
from stoker_loader import _native, errors

BACKENDS = ("populate", "io_uring", "direct_pread", "pread")
DIRECT = ("io_uring", "direct_pread")
HUGE_PAGE_BYTES = 2 << 20
MIB = 1 << 20

needs_filter = pytest.mark.skipif(not forbid.NUMBERS, reason=forbid.SKIP)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, disk: Path) -> str:
    """Each back end that this machine and its disk allow."""
    path = disk / "probe.safetensors"
    save_file({"w": torch.zeros(1)}, path)
    reason = sl.backends(path).refused.get(request.param)
    if reason is not None:
        pytest.skip(f"refused here: {reason}")
    return str(request.param)


def assert_same(loaded: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("name", ["decoder", "sharded"])
def test_all_give_the_same_tensors(request: pytest.FixtureRequest, name: str, backend: str) -> None:
    path, tensors = request.getfixturevalue(name)
    with sl.open(path) as checkpoint:
        loaded = checkpoint.load(source=backend)
        assert checkpoint.stats.source == backend
        assert checkpoint.stats.refused_sources == {}
        copied = 0 if backend == "populate" else sum(t.nbytes for t in tensors.values())
        assert checkpoint.stats.copied_bytes == copied
    assert_same(loaded, tensors)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(0, 9000), max_size=6),
    long=st.sampled_from([0, 8 * MIB - 4096, 8 * MIB, 8 * MIB + 1, 17 * MIB + 4095]),
    pad=st.integers(0, 40),
)
def test_odd_lengths_and_borders(disk: Path, sizes: list[int], long: int, pad: int) -> None:
    """Tiny files, tails of every length, tensors across the borders of pieces."""
    path = disk / "model.safetensors"
    path.unlink(missing_ok=True)  # it may be mapped still
    generator = torch.Generator().manual_seed(long + pad)
    tensors = {
        f"t{number}": torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        for number, size in enumerate([*sizes, long])
    }
    save_file(tensors, path, metadata={"pad": "x" * pad})
    refused = sl.backends(path).refused
    for backend in BACKENDS:
        if backend not in refused:
            with sl.open(path) as checkpoint:
                assert_same(checkpoint.load(source=backend), tensors)


def test_direct_reads_leave_the_page_cache_alone(large: Path, backend: str) -> None:
    sl.evict(large)
    with sl.open(large) as checkpoint:
        loaded = checkpoint.load(source=backend)
        stats = checkpoint.stats
    resident_bytes = sl.residency(large).resident_bytes
    size = large.stat().st_size
    assert torch.equal(loaded["w"], torch.arange(16 << 20, dtype=torch.int32))
    if backend in DIRECT:
        # Opening reads the header, and the kernel a little more behind it.
        assert resident_bytes < MIB
        assert stats.bytes_by_tier == {"remote": 0, "dram": 0, "ssd": size}
    else:
        assert resident_bytes == size


def mapped(address: int) -> bool:
    ranges = (line.split(" ")[0] for line in Path("/proc/self/maps").read_text().splitlines())
    bounds = ((int(part, 16) for part in item.split("-")) for item in ranges)
    return any(begin <= address < end for begin, end in bounds)


def flags_of(address: int) -> list[str]:
    """What was advised for the mapping around an address (`VmFlags`, proc_pid_smaps(5))."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, value = line.partition(":")
        if "-" in key.split(" ")[0]:
            begin, end = (int(part, 16) for part in line.split(" ")[0].split("-"))
            inside = begin <= address < end
        elif inside and key == "VmFlags":
            return value.split()
    raise AssertionError(f"{address:#x} is not mapped")


def test_what_was_read_goes_with_its_last_tensor(sharded: tuple[Path, dict]) -> None:
    with sl.open(sharded[0]) as checkpoint:
        tensors = checkpoint.load(source="pread")
        info = {name: checkpoint.info(name) for name in tensors}
    file = info["norm.weight"].file
    shard = {name: tensors.pop(name) for name in info if info[name].file == file}
    start = shard["norm.weight"].data_ptr() - info["norm.weight"].offset_bytes
    others = [tensor.data_ptr() for tensor in tensors.values()]
    assert start % HUGE_PAGE_BYTES == 0
    assert "hg" in flags_of(start)
    last = shard.popitem()[1]
    shard.clear()
    assert mapped(start)
    assert last.sum() == last.sum()
    del last
    assert not mapped(start)
    assert all(mapped(address) for address in others)


def test_writing_to_what_was_read_changes_no_other_load(decoder: tuple[Path, dict]) -> None:
    path, tensors = decoder
    with sl.open(path) as checkpoint:
        first = checkpoint.load(source="pread")
        for tensor in first.values():
            tensor.zero_()
        assert_same(checkpoint.load(source="pread"), tensors)
        assert_same(checkpoint.load(), tensors)


def test_a_module_may_be_loaded_so(disk: Path, backend: str) -> None:
    path = disk / "model.safetensors"
    weights = {"weight": torch.randn(3, 5), "bias": torch.randn(3)}
    save_file(weights, path)
    module = torch.nn.Linear(5, 3, device="meta")
    with sl.open(path) as checkpoint:
        checkpoint.load_into(module, source=backend)
    assert_same(dict(module.state_dict()), weights)


def test_the_default_is_the_page_cache(decoder: tuple[Path, dict]) -> None:
    with sl.open(decoder[0]) as checkpoint:
        assert checkpoint.stats.source is None
        checkpoint.load()
        assert checkpoint.stats.source == "populate"
        assert checkpoint.stats.copied_bytes == 0
    assert sl.backends(decoder[0]).host == "populate"


def test_an_unknown_source_is_a_typed_error(decoder: tuple[Path, dict]) -> None:
    with (
        sl.open(decoder[0]) as checkpoint,
        pytest.raises(errors.BackendUnknownError, match='no source "Direct"; ask for') as caught,
    ):
        checkpoint.load(source="Direct")  # type: ignore[arg-type]
    assert caught.value.file == str(decoder[0])


def test_a_file_that_is_truncated_meanwhile_is_an_error(large: Path, backend: str) -> None:
    def truncate(done: int, total: int) -> None:
        if done < total:
            os.truncate(large, 20 * MIB + 77)

    native = _native.Checkpoint(large, None)
    if backend == "populate":
        with sl.open(large) as checkpoint, pytest.raises(errors.FileChangedError):
            checkpoint.populate(truncate, threads=1)
        return
    with pytest.raises(errors.FileChangedError, match=f"has {20 * MIB + 77} now"):
        native.read(backend, truncate, 1)
    with pytest.raises(errors.FileChangedError):
        native.read(backend, None, None)
    with pytest.raises(errors.FileChangedError):
        native.choose(backend if backend in DIRECT else "populate", False)


def test_ctrl_c_stops_a_load(large: Path, backend: str) -> None:
    seen: list[int] = []

    def interrupt(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with sl.open(large) as checkpoint:
        with pytest.raises(KeyboardInterrupt):
            checkpoint.load(source=backend, progress=interrupt)
        assert len(seen) == 1
        assert len(checkpoint.load(source=backend)) == 1  # and it can be done again


def test_what_the_callback_raises_ends_it(large: Path, backend: str) -> None:
    error = RuntimeError("enough")

    def stop(done: int, total: int) -> None:
        raise error

    with sl.open(large) as checkpoint, pytest.raises(RuntimeError) as caught:
        checkpoint.load(source=backend, progress=stop)
    assert caught.value is error


def test_the_gil_is_released(large: Path, backend: str) -> None:
    """The callback of one load waits for another thread's load, which needs the GIL to begin."""
    with sl.open(large) as checkpoint:
        other = threading.Thread(target=lambda: checkpoint.load(source=backend))

        def wait(done: int, total: int) -> None:
            if done == total and not other.ident:
                other.start()
                other.join()

        checkpoint.load(source=backend, progress=wait)
        assert other.ident is not None


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory on a tmpfs, where the kernel may refuse O_DIRECT."""
    root = Path("/dev/shm")
    if not os.access(root, os.W_OK):
        pytest.skip("no /dev/shm")
    with tempfile.TemporaryDirectory(dir=root, prefix="loader-test-") as directory:
        yield Path(directory)


def test_a_tmpfs_serves_or_says_why_not(memory: Path) -> None:
    path = memory / "model.safetensors"
    tensors = {"a": torch.arange(3 * MIB, dtype=torch.int32), "b": torch.ones(7)}
    save_file(tensors, path)
    refused = sl.backends(path).refused
    assert "pread" not in refused
    for backend in BACKENDS:
        with sl.open(path) as checkpoint:
            if backend in refused:
                with pytest.raises(errors.BackendRefusedError, match=backend):
                    checkpoint.load(source=backend)
            else:
                assert_same(checkpoint.load(source=backend), tensors)
    with sl.open(path) as checkpoint:
        assert_same(checkpoint.load(), tensors)


def sums(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    return {
        name: int(tensor.view(torch.uint8).to(torch.int64).sum())
        for name, tensor in tensors.items()
    }


@needs_filter
def test_without_io_uring_direct_reads_take_threads(decoder: tuple[Path, dict]) -> None:
    path, tensors = decoder
    found = forbid.load(path, "direct", "io_uring_setup")
    assert found["source"] == "direct_pread"
    assert found["sums"] == sums(tensors)
    reason = "io_uring_setup: Operation not permitted (os error 1)"
    assert found["refused_sources"] == {"io_uring": reason}
    assert found["refused"] == {"io_uring": reason}
    assert found["host"] == "populate"


@needs_filter
def test_what_is_forbidden_and_asked_for_is_a_typed_error(decoder: tuple[Path, dict]) -> None:
    found = forbid.load(decoder[0], "io_uring", "io_uring_setup")
    assert found["code"] == "backend_refused"
    assert "(io_uring: io_uring_setup: Operation not permitted" in found["message"]
    assert 'ask for source="auto"' in found["message"]


@needs_filter
def test_without_populating_a_load_reads(decoder: tuple[Path, dict]) -> None:
    path, tensors = decoder
    found = forbid.load(path, "auto", "madvise", "io_uring_setup")
    assert found["source"] == "pread"
    assert found["sums"] == sums(tensors)
    assert found["refused_sources"].keys() == {"populate"}
    assert "MADV_POPULATE_READ: Operation not permitted" in found["refused_sources"]["populate"]
    assert found["host"] == "pread"
    assert found["refused"].keys() == {"populate", "io_uring"}


def test_a_file_on_its_way_is_waited_for(large: Path, backend: str) -> None:
    """A complete file is no special case; one on its way has its chunks waited for."""
    with sl.open_arriving(large) as checkpoint:
        loaded = checkpoint.load(source=backend)
    assert torch.equal(loaded["w"], torch.arange(16 << 20, dtype=torch.int32))


def test_a_device_reads_past_the_page_cache_what_is_not_in_it(large: Path) -> None:
    refused = sl.backends(large).refused
    if "direct_pread" in refused:
        pytest.skip(f"O_DIRECT is refused here: {refused['direct_pread']}")
    sl.prefetch(large)
    assert sl.backends(large).device == "populate"
    sl.evict(large)
    assert sl.backends(large).device in DIRECT
    assert sl.backends(large).host == "populate"
