"""What is loaded: as large as it says, readable by everyone, touched on every page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tests.bench.loader import shapes
from tests.bench.loader.safetensors_file import read_bits, write_random
from tests.bench.loader.touch import PAGE_BYTES, spans, touch

import stoker_loader


@pytest.mark.parametrize(
    ("model", "tensors", "gigabytes"),
    [
        (shapes.SMOLLM2_135M, 272, 0.269),
        (shapes.LLAMA_1B, 201, 2.34),
        (shapes.LLAMA_3B, 237, 6.81),
        (shapes.EXPERTS, 18_867, 0.077),
    ],
    ids=["smollm2", "llama_1b", "llama_3b", "experts"],
)
def test_checkpoints_have_the_size_that_is_said_of_them(
    model: shapes.Llama, tensors: int, gigabytes: float
) -> None:
    found = model.shapes()
    assert len(found) == tensors
    assert list(found) == sorted(found)
    size_bytes = sum(2 * math.prod(shape) for shape in found.values())
    assert size_bytes / 1e9 == pytest.approx(gigabytes, rel=0.03)


def test_a_written_file_is_safetensors_of_finite_numbers(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    wanted = {"a": (3, 5), "b": (1000, 70), "c": ()}
    write_random(path, wanted, seed=1)
    with stoker_loader.open(path) as checkpoint:
        tensors = checkpoint.load()
        bits = {name: checkpoint.numpy(name) for name in checkpoint.names}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == wanted
    assert all(tensor.isfinite().all() and tensor.abs().max() < 2 for tensor in tensors.values())
    for name, found in read_bits(path):
        np.testing.assert_array_equal(found, bits[name])


def test_touching_reads_a_byte_of_every_page_and_the_last() -> None:
    pages = 5
    memory = np.zeros(pages * PAGE_BYTES + 100, dtype=np.uint8)
    where = spans([memory])
    assert touch(where) == 0
    for place, first in [(0, 0), (3 * PAGE_BYTES, 0), (memory.size - 1, 0), (PAGE_BYTES + 7, 7)]:
        memory[place] = 9
        assert touch(where, first) == 9
        memory[place] = 0
    # Whatever the order of the tensors.
    memory[0], memory[PAGE_BYTES] = 3, 5
    halves = [memory[PAGE_BYTES:], memory[:PAGE_BYTES]]
    assert touch(spans(halves)) == touch(spans(reversed(halves))) == 3 ^ 5
    assert touch(spans([np.empty(0, dtype=np.uint8)])) == 0
