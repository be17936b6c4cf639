"""Loading to devices, on a stand-in for the NVIDIA driver. What needs a real one is in `gpu/`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import stoker_loader as sl
from fake_cuda import Living, StandIn, build
from stoker_loader import _native, devices, errors
from stoker_loader.images import ImageViews
from stoker_loader.tensors import Record

NOTHING = Living(0, 0, 0, 0, 0)
RING = (4, 64 << 10)  # small, so that 64 MiB go round it a thousand times
Machines = Callable[..., StandIn]


@pytest.fixture(scope="session")
def built() -> Path:
    return build()


@pytest.fixture
def machine(built: Path, tmp_path: Path) -> Iterator[Machines]:
    with ExitStack() as stack:

        def make(count: int = 1, schedule: str = "lazy", seed: int = 0) -> StandIn:
            return stack.enter_context(StandIn(built, tmp_path, count, schedule, seed))

        yield make


def whole(path: Path, *addresses: int) -> list[tuple[int, int, int, list[tuple[int, int]]]]:
    return [(0, 0, path.stat().st_size, list(enumerate(addresses)))]


@pytest.mark.parametrize("schedule", ["eager", "lazy", "random"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_device_gets_the_file(
    machine: Machines, large: Path, count: int, schedule: str
) -> None:
    stand_in = machine(count, schedule, seed=count)
    size_bytes = large.stat().st_size
    addresses = [stand_in.allocate(device, size_bytes) for device in range(count)]
    before = stand_in.living()
    seen: list[int] = []
    copied = _native.copy_to_devices(
        _native.Checkpoint(large, None),
        list(range(count)),
        whole(large, *addresses),
        lambda done, _: seen.append(done),
        2,
        stand_in.path,
    )
    assert copied == size_bytes == seen[-1]
    assert seen == sorted(seen)
    content = large.read_bytes()
    assert all(stand_in.read(address, size_bytes) == content for address in addresses)
    assert stand_in.calls("cuStreamCreate") == 2 * count
    assert stand_in.living() == before
    assert stand_in.misuse() == (0, "")


def test_a_cold_file_is_in_the_page_cache_afterwards(machine: Machines, large: Path) -> None:
    stand_in = machine(schedule="random")
    address = stand_in.allocate(0, large.stat().st_size)
    sl.evict(large)
    native = _native.Checkpoint(large, None)
    _native.copy_to_devices(native, [0], whole(large, address), None, None, stand_in.path, RING)
    assert stand_in.read(address, large.stat().st_size) == large.read_bytes()
    residency = sl.residency(large)
    assert residency.resident_bytes == residency.checkpoint_bytes
    assert stand_in.calls("cuMemHostAlloc") == RING[0]


@pytest.mark.parametrize("backend", ["io_uring", "direct_pread", "pread"])
@pytest.mark.parametrize("schedule", ["lazy", "random"])
def test_slots_are_filled_by_any_back_end(
    machine: Machines, large: Path, backend: str, schedule: str
) -> None:
    reason = sl.backends(large).refused.get(backend)  # type: ignore[call-overload]
    if reason is not None:
        pytest.skip(f"refused here: {reason}")
    stand_in = machine(1, schedule, seed=5)
    size_bytes = large.stat().st_size
    address = stand_in.allocate(0, size_bytes)
    odd = stand_in.allocate(0, size_bytes)
    sl.evict(large)
    native = _native.Checkpoint(large, None)
    transfers = [
        (0, 0, size_bytes, [(0, address)]),
        (0, 100, size_bytes - 333, [(0, odd)]),  # no block of the file lies on one of a slot
    ]
    arguments = (native, [0], transfers, None, None, stand_in.path, RING, backend)
    assert _native.copy_to_devices(*arguments) == 2 * size_bytes - 333
    resident_bytes = sl.residency(large).resident_bytes
    content = large.read_bytes()
    assert stand_in.read(address, size_bytes) == content
    assert stand_in.read(odd, size_bytes - 333) == content[100 : size_bytes - 233]
    assert stand_in.misuse() == (0, "")
    if backend == "pread":
        assert resident_bytes == size_bytes
    else:
        assert resident_bytes < 1 << 20


def test_what_the_callback_raises_stops_the_copies(machine: Machines, large: Path) -> None:
    stand_in = machine()
    address = stand_in.allocate(0, large.stat().st_size)
    error = RuntimeError("enough")

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise error

    native = _native.Checkpoint(large, None)
    with pytest.raises(RuntimeError) as caught:
        _native.copy_to_devices(native, [0], whole(large, address), stop, 2, stand_in.path, RING)
    assert caught.value is error
    living = stand_in.living()
    assert (living.streams, living.events, living.pinned) == (0, 0, 0)
    assert stand_in.misuse() == (0, "")


def test_a_failed_call_is_named(machine: Machines, large: Path) -> None:
    stand_in = machine()
    address = stand_in.allocate(0, large.stat().st_size)
    stand_in.fail_call("cuMemcpyHtoDAsync_v2", 3, 700)
    native = _native.Checkpoint(large, None)
    with pytest.raises(errors.DriverCallError, match="CUDA_ERROR_ILLEGAL_ADDRESS") as caught:
        _native.copy_to_devices(native, [0], whole(large, address), None, 2, stand_in.path)
    assert (caught.value.call, caught.value.status) == ("cuMemcpyHtoDAsync_v2", 700)
    assert caught.value.file == str(stand_in.path)


def test_a_machine_without_a_driver_says_so(disk: Path, large: Path) -> None:
    native = _native.Checkpoint(large, None)
    with pytest.raises(errors.DriverMissingError, match="load to the CPU"):
        _native.copy_to_devices(native, [0], [], None, None, disk / "libcuda.so.1")


def test_a_device_that_is_not_there(machine: Machines, large: Path) -> None:
    native = _native.Checkpoint(large, None)
    with pytest.raises(errors.DeviceUnknownError, match="shows 2 devices, none is cuda:2"):
        _native.copy_to_devices(native, [2], [], None, None, machine(2).path)


def test_an_address_of_the_host_is_refused(machine: Machines, large: Path) -> None:
    stand_in = machine()
    target = torch.zeros(large.stat().st_size, dtype=torch.uint8)
    native = _native.Checkpoint(large, None)
    transfers = whole(large, target.data_ptr())
    with pytest.raises(errors.DeviceAddressError, match="not memory of cuda:0"):
        _native.copy_to_devices(native, [0], transfers, None, None, stand_in.path)
    assert stand_in.living() == NOTHING


def test_a_file_that_was_truncated_since_is_an_error(machine: Machines, large: Path) -> None:
    stand_in = machine()
    transfers = whole(large, stand_in.allocate(0, large.stat().st_size))
    native = _native.Checkpoint(large, None)
    native.map()
    with large.open("r+b") as file:
        file.truncate(20 << 20)
    with pytest.raises(errors.FileChangedError):
        _native.copy_to_devices(native, [0], transfers, None, None, stand_in.path)
    assert stand_in.misuse() == (0, "")


@pytest.mark.parametrize(
    ("ordinals", "transfer", "ring"),
    [
        ([], (0, 0, 1, []), None),
        ([0], (1, 0, 1, [(0, 0)]), None),
        ([0], (0, 0, 1 << 40, [(0, 0)]), None),
        ([0], (0, 2**64 - 1, 2, [(0, 0)]), None),
        ([0], (0, 0, 1, [(1, 0)]), None),
        ([0], (0, 0, 1, [(0, 0)]), (0, 4096)),
        ([0], (0, 0, 1, [(0, 0)]), (1, 5000)),
    ],
)
def test_what_makes_no_sense_is_refused(
    large: Path,
    ordinals: list[int],
    transfer: tuple[int, int, int, list[tuple[int, int]]],
    ring: tuple[int, int] | None,
) -> None:
    native = _native.Checkpoint(large, None)
    with pytest.raises(ValueError, match=r"at least one device|a transfer leaves"):
        _native.copy_to_devices(native, ordinals, [transfer], None, None, None, ring)


def test_the_gil_is_released(machine: Machines, large: Path) -> None:
    """The callback of one load waits for another thread's load, which needs the GIL to begin."""
    stand_in = machine()
    size_bytes = large.stat().st_size
    transfers = [whole(large, stand_in.allocate(0, size_bytes)) for _ in range(2)]
    native = _native.Checkpoint(large, None)
    other = threading.Thread(
        target=_native.copy_to_devices,
        args=(native, [0], transfers[1], None, None, stand_in.path),
    )

    def wait(done: int, total: int) -> None:
        if done == total:
            other.start()
            other.join()

    _native.copy_to_devices(native, [0], transfers[0], wait, None, stand_in.path)
    assert stand_in.misuse() == (0, "")


def load(stand_in: StandIn, path: Path, count: int) -> list[dict[str, torch.Tensor]]:
    """What `load_replicas` does, with memory of the host in the place of the devices'."""
    stand_in.unify()
    native = _native.Checkpoint(path, None)
    headers = native.headers()
    records = [Record(*found) for name in headers.names() if (found := headers.record(name))]
    files = native.shards()
    leads = devices.lead_bytes(len(files), records)
    host = devices.allocate(files, leads, torch.device("cpu")).images
    replicas = [
        devices.Replica(number, tuple(torch.empty_like(image) for image in host))
        for number in range(count)
    ]
    devices.fill(native, files, leads, replicas, library=stand_in.path, ring=RING)
    views = [ImageViews(r.images, leads) for r in replicas]
    return [{record.name: view.tensor(record) for record in records} for view in views]


@pytest.mark.parametrize("name", ["decoder", "sharded"])
def test_views_of_images_are_the_tensors(
    machine: Machines, request: pytest.FixtureRequest, name: str
) -> None:
    path, tensors = request.getfixturevalue(name)
    stand_in = machine(2, "random", seed=3)
    for loaded in load(stand_in, path, 2):
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)
        assert all(loaded[key].dtype == tensors[key].dtype for key in tensors)
    assert stand_in.living() == NOTHING
    assert stand_in.misuse() == (0, "")


DTYPES = [torch.uint8, torch.bfloat16, torch.float32, torch.float64]


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.sampled_from(DTYPES), st.integers(0, 300)), min_size=1, max_size=12
    ),
    pad=st.integers(0, 40),
)
def test_any_file_is_shifted_and_still_right(
    built: Path, tmp_path_factory: pytest.TempPathFactory, shapes: list, pad: int
) -> None:
    directory = tmp_path_factory.mktemp("shifted")
    path = directory / "model.safetensors"
    tensors = {
        f"t{number}": torch.arange(size).to(dtype) for number, (dtype, size) in enumerate(shapes)
    }
    save_file(tensors, path, metadata={"pad": "x" * pad})
    with StandIn(built, directory, 1, "lazy", pad) as stand_in:
        (loaded,) = load(stand_in, path, 1)
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
        assert stand_in.misuse() == (0, "")


def test_the_lead_puts_most_bytes_on_the_boundary() -> None:
    def record(shard: int, offset_bytes: int, size_bytes: int) -> Record:
        return Record("w", "U8", (size_bytes,), shard, offset_bytes, size_bytes)

    records = [record(0, 1000, 5), record(0, 1005, 512), record(0, 1517, 512), record(1, 512, 7)]
    leads = devices.lead_bytes(3, records)
    assert leads == [256 - 1005 % 256, 0, 0]


def test_cuda_without_cuda_is_a_typed_error(decoder: tuple[Path, dict]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with sl.open(decoder[0]) as checkpoint:
        for call in (
            lambda: checkpoint.load("cuda:0"),
            lambda: checkpoint.load_replicas(["cuda:0", "cuda:1"]),
            lambda: checkpoint.load_into(torch.nn.Linear(1, 1, device="meta"), device="cuda"),
        ):
            with pytest.raises(errors.DeviceUnavailableError, match="sees 0 CUDA devices"):
                call()
        with pytest.raises(errors.DeviceUnavailableError, match="cpu"):
            checkpoint.load_replicas(["cpu"])
