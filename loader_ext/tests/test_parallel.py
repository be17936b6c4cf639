"""Ranks of a tensor-parallel group: their parts are slices of the whole, and all they read."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import stoker_loader as sl
from stoker_loader.backends import SourceName
from stoker_loader.errors import (
    BackendRefusedError,
    BackendUnknownError,
    PlanInvalidError,
    SplitMismatchError,
    TensorUnplannedError,
)
from stoker_loader.plans import columns, rows

Tensors = dict[str, torch.Tensor]

QUERY_HEADS, KEY_HEADS, HEAD = 8, 2, 8
HIDDEN, INNER, VOCABULARY = QUERY_HEADS * HEAD, 96, 128
LLAMA = sl.llama_plan(QUERY_HEADS, KEY_HEADS)
HUGE_PAGE_BYTES = 2 << 20


def llama(dtype: torch.dtype = torch.bfloat16) -> Tensors:
    generator = torch.Generator().manual_seed(5)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    keys = KEY_HEADS * HEAD
    tensors = {
        "model.embed_tokens.weight": weight(VOCABULARY, HIDDEN),
        "lm_head.weight": weight(VOCABULARY, HIDDEN),
        "model.norm.weight": weight(HIDDEN),
    }
    for layer in range(2):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        tensors |= {
            attention + "q_proj.weight": weight(HIDDEN, HIDDEN),
            attention + "q_proj.bias": weight(HIDDEN),
            attention + "k_proj.weight": weight(keys, HIDDEN),
            attention + "v_proj.weight": weight(keys, HIDDEN),
            attention + "o_proj.weight": weight(HIDDEN, HIDDEN),
            mlp + "gate_proj.weight": weight(INNER, HIDDEN),
            mlp + "up_proj.weight": weight(INNER, HIDDEN),
            mlp + "down_proj.weight": weight(HIDDEN, INNER),
            f"model.layers.{layer}.input_layernorm.weight": weight(HIDDEN),
        }
    return tensors


def part_of(name: str, tensor: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    """What a rank must get, by slicing the whole: written without the plan."""
    if "norm" in name:
        return tensor
    if "o_proj" in name or "down_proj" in name:
        return tensor.chunk(ranks, dim=1)[rank]
    if "k_proj" in name or "v_proj" in name:
        shared = max(ranks // KEY_HEADS, 1)  # ranks that have the same head
        return tensor.chunk(ranks // shared)[rank // shared]
    return tensor.chunk(ranks)[rank]


def mappings(path: Path) -> list[tuple[int, int]]:
    """`(begin, end)` of each mapping of a file, from /proc/self/maps."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(path.resolve()))]
    return [(int(begin, 16), int(end, 16)) for begin, end in spans]


@pytest.fixture(params=["file", "shards", "laid out"])
def model(request: pytest.FixtureRequest, disk: Path) -> tuple[Path, Tensors]:
    directory, tensors = disk / "llama", llama()
    directory.mkdir()
    if request.param == "shards":
        names = list(tensors)
        for number in range(3):
            shard = {name: tensors[name] for name in names[number::3]}
            save_file(shard, directory / f"model-{number}.safetensors")
    else:
        save_file(tensors, directory / "model.safetensors")
    if request.param == "laid out":
        sl.layout(directory, disk / "laid")
        directory = disk / "laid"
    return directory, tensors


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_each_rank_has_its_slices_of_the_whole(model: tuple[Path, Tensors], ranks: int) -> None:
    directory, _ = model
    whole = sl.load_file(directory) if directory.is_file() else sl.open(directory).load()
    for rank in range(ranks):
        with sl.open(directory) as checkpoint:
            parts = checkpoint.load_shard(LLAMA, rank, ranks)
            packed_bytes = checkpoint.stats.copied_bytes
        gc.collect()  # the tensors alone keep their memory
        assert list(parts) == list(whole)
        for name, tensor in whole.items():
            wanted = part_of(name, tensor, rank, ranks)
            assert parts[name].is_contiguous()
            assert torch.equal(parts[name], wanted), name
        strided = [name for name in parts if "o_proj" in name or "down_proj" in name]
        wanted_bytes = sum(parts[name].nbytes for name in strided) if ranks > 1 else 0
        assert packed_bytes == wanted_bytes


@pytest.mark.parametrize("source", ["populate", "io_uring", "direct_pread", "direct", "pread"])
def test_every_source_gives_a_rank_its_slices(
    model: tuple[Path, Tensors], source: SourceName
) -> None:
    directory, tensors = model
    sl.evict(directory)
    with sl.open(directory) as checkpoint:
        for rank in range(2):
            try:
                parts = checkpoint.load_shard(LLAMA, rank, 2, source=source)
            except BackendRefusedError as error:
                pytest.skip(str(error))
            assert parts.keys() == tensors.keys()
            for name, tensor in tensors.items():
                assert torch.equal(parts[name], part_of(name, tensor, rank, 2)), name
        stats = checkpoint.stats
        assert stats.source == source or source == "direct"
        part_bytes = 2 * sum(tensor.nbytes for tensor in parts.values())
        assert stats.copied_bytes == part_bytes or source == "populate"
        if stats.source in ("io_uring", "direct_pread"):
            assert stats.bytes_by_tier["dram"] == 0


def test_past_the_page_cache_a_rank_leaves_nothing_in_it(disk: Path) -> None:
    whole = torch.arange(8 << 20, dtype=torch.int32).reshape(1024, -1)
    path = disk / "w.safetensors"
    save_file({"w": whole}, path)
    sl.evict(path)
    with sl.open(path) as checkpoint:
        try:
            part = checkpoint.load_shard(sl.Plan((("w", columns()),)), 1, 2, source="direct")
        except BackendRefusedError as error:
            pytest.skip(str(error))
        assert torch.equal(part["w"], whole.chunk(2, dim=1)[1])
    assert sl.residency(path).resident_bytes < 1 << 20
    assert not mappings(path)


def test_a_source_that_cannot_be_had_is_a_typed_error(disk: Path) -> None:
    path = disk / "w.safetensors"
    save_file({"w": torch.ones(8, 8)}, path)
    plan = sl.Plan((("w", rows()),))
    with sl.open(path) as checkpoint, pytest.raises(BackendUnknownError):
        checkpoint.load_shard(plan, 0, 2, source="fast")  # type: ignore[arg-type]
    with sl.open(path, verify=sl.digest(path)) as checkpoint:
        with pytest.raises(BackendRefusedError, match="compared with their digests"):
            checkpoint.load_shard(plan, 0, 2, source="pread")
        assert checkpoint.load_shard(plan, 0, 2)["w"].shape == (4, 8)


def test_rows_are_views_of_the_mapping(model: tuple[Path, Tensors]) -> None:
    with sl.open(model[0]) as checkpoint:
        parts = checkpoint.load_shard(LLAMA, 1, 2)
        info = checkpoint.info("model.layers.1.mlp.up_proj.weight")
        files = [model[0] / checkpoint.info(name).file for name in checkpoint.names]
    ranges = [span for file in set(files) for span in mappings(file)]

    def is_mapped(name: str) -> bool:
        return any(begin <= parts[name].data_ptr() < end for begin, end in ranges)

    assert is_mapped(info.name)
    offset = info.offset_bytes + info.size_bytes // 2
    assert parts[info.name].data_ptr() % HUGE_PAGE_BYTES == offset % HUGE_PAGE_BYTES
    assert not is_mapped("model.layers.1.mlp.down_proj.weight")
    parts[info.name].zero_()  # copies its page, as in a whole load
    assert sl.open(model[0]).tensor(info.name).any()


def test_fused_weights_are_split_part_by_part(disk: Path) -> None:
    keys = KEY_HEADS * HEAD
    sizes = (HIDDEN, keys, keys)
    tensors = {
        "l.qkv_proj.weight": torch.randn(sum(sizes), 6),
        "l.qkv_proj.bias": torch.randn(sum(sizes)),
        "l.gate_up_proj.weight": torch.randn(2 * INNER, 6),
    }
    path = disk / "fused.safetensors"
    save_file(tensors, path)
    for rank in range(4):
        with sl.open(path) as checkpoint:
            parts = checkpoint.load_shard(LLAMA, rank, 4)
        for name in ("l.qkv_proj.weight", "l.qkv_proj.bias"):
            q, k, v = tensors[name].split(sizes)
            mine = (q.chunk(4)[rank], k.chunk(2)[rank // 2], v.chunk(2)[rank // 2])
            assert torch.equal(parts[name], torch.cat(mine))
        gate, up = tensors["l.gate_up_proj.weight"].chunk(2)
        mine = (gate.chunk(4)[rank], up.chunk(4)[rank])
        assert torch.equal(parts["l.gate_up_proj.weight"], torch.cat(mine))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16, torch.bool, torch.complex64])
def test_every_kind_of_dtype(disk: Path, dtype: torch.dtype) -> None:
    raw = torch.randint(0, 2, (6 * 4 * dtype.itemsize,), dtype=torch.uint8)
    whole = raw.view(dtype).view(6, 4)
    path = disk / "x.safetensors"
    save_file({"rows": whole.clone(), "columns": whole.clone()}, path)
    plan = sl.Plan((("rows", rows()), ("columns", columns())))
    with sl.open(path) as checkpoint:
        parts = checkpoint.load_shard(plan, 1, 2)
    assert parts["rows"].dtype == parts["columns"].dtype == dtype
    for found, wanted in ((parts["rows"], whole[3:]), (parts["columns"], whole[:, 2:])):
        assert torch.equal(found.view(torch.uint8), wanted.contiguous().view(torch.uint8))


def test_only_a_ranks_own_pages_come_in(disk: Path) -> None:
    path = disk / "wide.safetensors"
    tensors = {f"l.{n}.up_proj.weight": torch.full((64, 1 << 18), n) for n in range(2)}
    save_file({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, path)
    size = path.stat().st_size
    parts: Tensors = {}
    for rank in range(4):
        parts.clear()  # mapped pages stay
        assert sl.evict(path).resident_bytes == 0
        last = (0, 0)

        def progress(done: int, total: int) -> None:
            nonlocal last
            last = (done, total)

        with sl.open(path) as checkpoint:
            parts = checkpoint.load_shard(LLAMA, rank, 4, progress=progress)
        needed = sum(part.nbytes for part in parts.values())
        assert needed == 8 << 20
        # Whole folios, and what the kernel reads behind the header.
        edges = 4 * HUGE_PAGE_BYTES
        assert needed <= sl.residency(path).resident_bytes <= needed + edges < size
        assert last[0] == last[1]
        assert needed <= last[0] <= needed + (1 << 20)
        assert all((part == n).all() for n, part in enumerate(parts.values()))


def test_what_does_not_divide_is_named_before_anything_is_read(disk: Path) -> None:
    path = disk / "odd.safetensors"
    save_file({"l.up_proj.weight": torch.zeros(7, 1 << 20)}, path)
    sl.evict(path)
    with sl.open(path) as checkpoint:
        with pytest.raises(SplitMismatchError, match=r"7 does not divide by 2 ranks") as caught:
            checkpoint.load_shard(LLAMA, 0, 2)
        assert (caught.value.tensor, caught.value.file) == ("l.up_proj.weight", str(path))
        with pytest.raises(TensorUnplannedError, match="no rule of the plan") as unplanned:
            checkpoint.load_shard(sl.Plan((("other", None),)), 0, 2)
        assert unplanned.value.tensor == "l.up_proj.weight"
        with pytest.raises(PlanInvalidError, match="there is no rank 2 of 2"):
            checkpoint.load_shard(LLAMA, 2, 2)
        with pytest.raises(PlanInvalidError, match=r'"\*" splits dimension 2, not 0 or 1'):
            checkpoint.load_shard(sl.Plan((("*", sl.Split(2)),)), 0, 2)
    assert sl.residency(path).resident_bytes < 1 << 20


def test_what_the_callback_raises_ends_it(model: tuple[Path, Tensors]) -> None:
    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with sl.open(model[0]) as checkpoint, pytest.raises(InterruptedError):
        checkpoint.load_shard(LLAMA, 0, 2, progress=stop)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3)),
    dimension=st.integers(0, 1),
    parts=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    ranks=st.integers(1, 4),
)
def test_the_parts_of_all_ranks_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    dimension: int,
    parts: list[int],
    ranks: int,
) -> None:
    path = tmp_path_factory.mktemp("plan") / "x.safetensors"
    whole = torch.arange(shape[0] * shape[1] * shape[2], dtype=torch.int16).view(shape)
    save_file({"w": whole}, path)
    plan = sl.Plan((("w", sl.Split(dimension, tuple(parts))),))
    unit, rest = divmod(shape[dimension], sum(parts))
    sizes = [unit * part for part in parts]
    with sl.open(path) as checkpoint:
        if rest or any(size % ranks for size in sizes):
            with pytest.raises(SplitMismatchError):
                checkpoint.load_shard(plan, 0, ranks)
            return
        found = [checkpoint.load_shard(plan, rank, ranks)["w"] for rank in range(ranks)]
    pieces = [tensor.split([size // ranks for size in sizes], dimension) for tensor in found]
    again = [piece[part] for part in range(len(parts)) for piece in pieces]
    assert torch.equal(torch.cat(again, dimension), whole)
