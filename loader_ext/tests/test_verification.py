"""Verification on the way in: every chunk before any tensor of it, by whatever path it comes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import stoker_loader as sl
from fake_cuda import StandIn, build
from stoker_loader import _native, errors
from stoker_loader.backends import SourceName
from stoker_loader.plans import columns
from support.object_store import ObjectStore, served

CHUNK = 8 << 20
LENGTH = 3 << 20  # of each tensor: int32, so they end in the middle of chunks
PLAN = sl.Plan((("*", columns()),))


@pytest.fixture
def laid(disk: Path) -> Path:
    """A laid-out checkpoint of 48 MiB in four tensors: `t0` to `t3`, in this order."""
    source = disk / "source.safetensors"
    matrix = torch.arange(LENGTH, dtype=torch.int32).reshape(1024, -1)
    save_file({f"t{n}": matrix + n for n in range(4)}, source)
    sl.layout(source, disk / "laid")
    return disk / "laid"


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def equal(tensors: dict[str, torch.Tensor]) -> bool:
    matrix = torch.arange(LENGTH, dtype=torch.int32).reshape(1024, -1)
    return all(torch.equal(tensors[f"t{n}"], matrix + n) for n in range(4))


def test_right_bytes_are_compared_once_and_given_out(laid: Path) -> None:
    sl.evict(laid)
    size = (laid / "model.safetensors").stat().st_size
    with sl.open(laid, verify=True) as checkpoint:
        assert checkpoint.stats.verified_bytes == 0
        tensors = checkpoint.load()
        assert equal(tensors)
        assert checkpoint.stats.verified_bytes == size
        assert checkpoint.stats.verify_ms > 0
        tensors["t0"].zero_()  # a copy of the page, which is not what was verified
        assert checkpoint.tensor("t0").sum() == 0
        checkpoint.load_shard(PLAN, 0, 2)
    assert checkpoint.stats.verified_bytes == size, "after closing too"
    with sl.open(laid) as checkpoint:
        checkpoint.load()
        assert checkpoint.stats.verified_bytes == 0


def test_only_the_chunks_of_a_tensor_are_compared_for_it(laid: Path) -> None:
    sl.evict(laid)
    with sl.open(laid, verify=True) as checkpoint:
        info = checkpoint.info("t2")
        assert checkpoint.numpy("t2")[0, 0] == 2
        first, last = info.offset_bytes // CHUNK, (info.offset_bytes + info.size_bytes - 1) // CHUNK
        assert checkpoint.stats.verified_bytes == (last - first + 1) * CHUNK
        resident = sl.residency(laid / "model.safetensors").resident_bytes
        assert resident < info.size_bytes + 3 * CHUNK


Ask = Callable[[sl.Checkpoint], object]
WAYS: dict[str, Ask] = {
    "load": lambda checkpoint: checkpoint.load(),
    "tensor": lambda checkpoint: checkpoint.tensor("t1"),
    "numpy": lambda checkpoint: checkpoint.numpy("t1"),
    "fused": lambda checkpoint: checkpoint.fused(["t0", "t1"]),
    "wait": lambda checkpoint: checkpoint.wait(["t1"]),
    "populate": lambda checkpoint: checkpoint.populate(threads=2),
    "load_shard": lambda checkpoint: checkpoint.load_shard(PLAN, 1, 2),
    "load_into": lambda checkpoint: checkpoint.load_into(torch.nn.Module()),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("cold", [True, False])
def test_no_way_leads_to_a_wrong_byte(laid: Path, name: str, cold: bool) -> None:
    with sl.open(laid) as checkpoint:
        info = checkpoint.info("t1")
    place = info.offset_bytes + info.size_bytes // 2
    flip(laid / "model.safetensors", place)
    if cold:
        sl.evict(laid)
    with sl.open(laid, verify=True) as checkpoint:
        for _ in range(2):
            with pytest.raises(errors.ChunkMismatchError) as raised:
                WAYS[name](checkpoint)
        error = raised.value
        assert error.file == str(laid / "model.safetensors")
        assert error.offset == place // CHUNK * CHUNK
        assert "t1" in error.tensors
        assert f"chunk {place // CHUNK}" in str(error)
        assert checkpoint.numpy("t3")[0, 0] == 3, "what is right can be had"


def test_a_device_gets_no_wrong_byte(laid: Path, tmp_path: Path) -> None:
    weights = laid / "model.safetensors"
    size = weights.stat().st_size
    with StandIn(build(), tmp_path, 1, "lazy", 0) as stand_in:
        place = (0, stand_in.allocate(0, size))

        def copy() -> None:
            with sl.open(laid, verify=True) as checkpoint:
                native = checkpoint._native
                assert native is not None
                transfers = [(0, 0, size, [place])]
                _native.copy_to_devices(native, [0], transfers, None, 2, stand_in.path)

        copy()
        assert stand_in.read(place[1], size) == weights.read_bytes()
        flip(weights, 3 * CHUNK)
        with pytest.raises(errors.ChunkMismatchError):
            copy()


def test_known_digests_vouch_for_any_checkpoint(sharded: tuple[Path, dict]) -> None:
    directory, tensors = sharded
    with pytest.raises(errors.DigestsMissingError, match="no sidecar") as missing:
        sl.open(directory, verify=True)
    assert missing.value.file == str(directory / "model-0.safetensors")
    known = sl.digest(directory)
    with sl.open(directory, verify=known) as checkpoint:
        loaded = checkpoint.load()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
        assert checkpoint.stats.verified_bytes == checkpoint.stats.checkpoint_bytes
    single = directory / "model-1.safetensors"
    assert sl.load_file(single, verify=sl.digest(single)).keys() < tensors.keys()
    (by_file,) = sl.digest(single).files
    renamed = single.rename(directory / "other.safetensors")
    assert sl.load_file(renamed, verify=by_file)
    flip(renamed, renamed.stat().st_size - 1)
    with pytest.raises(errors.ChunkMismatchError):
        sl.load_file(renamed, verify=by_file)
    renamed.rename(single)
    with sl.open(directory, verify=known) as checkpoint, pytest.raises(errors.ChunkMismatchError):
        checkpoint.load()


def test_a_digest_that_contradicts_itself_vouches_for_nothing(laid: Path) -> None:
    weights = laid / "model.safetensors"
    for path in (laid, weights):
        known = sl.digest(path)
        with sl.open(path, verify=known) as checkpoint:
            checkpoint.load()
        other = sl.Digest("blake3:" + "0" * 64, known.files)
        with pytest.raises(errors.RootMismatchError) as refused:
            sl.open(path, verify=other)
        assert refused.value.file == str(path)


def test_a_header_is_among_the_bytes_that_digests_vouch_for(laid: Path) -> None:
    known = sl.digest(laid)
    weights = laid / "model.safetensors"
    content = weights.read_bytes()
    assert content.count(b'"t1"') == 1
    weights.write_bytes(content.replace(b'"t1"', b'"t9"'))
    with sl.open(laid, verify=known) as checkpoint:
        assert "t9" in checkpoint.names  # a header may be looked at; what it names may not be used
        for name, ask in (*WAYS.items(), ("t9", lambda checkpoint: checkpoint.tensor("t9"))):
            unnamed = name in ("tensor", "numpy", "fused", "wait")
            with pytest.raises(errors.UnknownTensorError if unnamed else errors.ChunkMismatchError):
                ask(checkpoint)
        assert checkpoint.stats.verified_bytes == 0, "and nothing behind it was compared in vain"
    # The sidecar is not of this header any more, so nothing is known of the file.
    with pytest.raises(errors.DigestsMissingError):
        sl.open(laid, verify=True)


def test_nothing_is_promised_that_is_not_compared(laid: Path) -> None:
    with pytest.raises(ValueError, match="give the digest to `fetch`"):
        sl.Checkpoint(laid, 60.0, verify=sl.digest(laid))


def test_digests_of_other_files_are_refused(laid: Path, sharded: tuple[Path, object]) -> None:
    known = sl.digest(laid)
    (weights,) = (file for file in known.files if file.name == "model.safetensors")
    longer = sl.FileDigest(weights.name, weights.size_bytes + 1, weights.chunks)
    fewer = sl.FileDigest(weights.name, weights.size_bytes, weights.chunks[:-1])
    nonsense = sl.FileDigest(weights.name, weights.size_bytes, ("x",) * len(weights.chunks))
    for verify, error in (
        (longer, errors.LengthMismatchError),
        (fewer, errors.DigestInvalidError),
        (nonsense, errors.DigestInvalidError),
        (sl.Digest(known.root, known.files[:0]), errors.RootMismatchError),
        (sl.digest(sharded[0]), errors.FileUnexpectedError),
    ):
        with pytest.raises(error):
            sl.open(laid, verify=verify)


def test_a_sidecar_that_came_first_verifies_the_fetch(laid: Path, disk: Path) -> None:
    body = (laid / "model.safetensors").read_bytes()
    expected = sl.sidecar_digest(laid / "model.stx")
    assert (expected,) == sl.digest(laid / "model.safetensors").files
    with served(ObjectStore(body)) as store:
        fetched = sl.fetch(store.url, disk / "right", expected=expected)
    assert fetched.digest.chunks == expected.chunks
    place = 2 * CHUNK + 9
    wrong = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
    with served(ObjectStore(wrong)) as store, pytest.raises(errors.ChunkMismatchError) as raised:
        sl.fetch(store.url, disk / "wrong", expected=expected)
    assert raised.value.offset == 2 * CHUNK
    assert raised.value.tensors == ()
    assert not (disk / "wrong").exists()
    flip(laid / "model.stx", 70)
    with pytest.raises(errors.SidecarInvalidError):
        sl.sidecar_digest(laid / "model.stx")
    with pytest.raises(errors.CheckpointNotFoundError):
        sl.sidecar_digest(laid / "none.stx")


def test_numbers_of_verification_are_right_for_odd_tensors(disk: Path) -> None:
    path = disk / "odd.safetensors"
    save_file({"b": torch.arange(7, dtype=torch.int8), "e": torch.empty(0)}, path)
    with sl.open(path, verify=sl.digest(path)) as checkpoint:
        assert checkpoint.numpy("e").size == 0
        assert np.array_equal(checkpoint.numpy("b"), np.arange(7, dtype=np.int8))
        assert checkpoint.stats.verified_bytes == path.stat().st_size


@pytest.mark.parametrize("source", ["direct", "io_uring", "direct_pread", "pread"])
def test_bytes_that_would_pass_the_digests_by_are_not_read(laid: Path, source: SourceName) -> None:
    with sl.open(laid, verify=True) as checkpoint:
        with pytest.raises(errors.BackendRefusedError, match="compared with their digests"):
            checkpoint.load(source=source)
        assert equal(checkpoint.load())
        assert checkpoint.stats.source == "populate"
