"""Every broken input is one class and one message; the tables of both languages agree."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import stoker_loader as sl
from stoker_loader import _native, errors

PACKAGE = Path(__file__).parents[1]


def tensor(dtype: str = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


W = {"w": tensor()}
BROKEN = [
    ([1], b"", "HeaderStartError", "begins with byte 0x5b instead of '{'"),
    ("{", b"", "HeaderJsonError", "the header is not valid: EOF"),
    (b'{"\xff":1}', b"", "HeaderEncodingError", "not UTF-8 (corrupt) (at byte 10)"),
    ({"w": 1}, b"", "HeaderJsonError", "invalid type"),
    ('{"w":%s,"w":%s}' % ((json.dumps(W["w"]),) * 2), b"1234", "DuplicateNameError",
     "tensor \"w\": the name appears twice in the header (at byte 8)"),
    ({"__metadata__": {"a": 1}}, b"", "MetadataError", '"a" does not'),
    ({"w": tensor("F128")}, b"1234", "UnknownDtypeError", 'tensor "w": unknown dtype "F128"'),
    ({"w": tensor(shape=[-1])}, b"1234", "BadShapeError", "not -1"),
    ({"w": tensor(shape=[2**40, 2**40])}, b"1234", "SizeOverflowError", "within 64 bits"),
    ({"w": tensor(shape=[5])}, b"1234", "SizeMismatchError",
     "shape and dtype need 5 bytes, data_offsets give 4"),
    ({"w": tensor(offsets=[-4, 0])}, b"1234", "BadOffsetError", "not -4"),
    ({"w": tensor(offsets=[4, 0])}, b"1234", "OffsetsReversedError", "[4, 0] are reversed"),
    (W, b"123", "DataTruncatedError",
     "data_offsets end at 4 but only 3 bytes of data are there (truncated?)"),
    ({"v": tensor(), "w": tensor(offsets=[2, 6])}, b"123456", "OverlapError",
     'tensor "w": overlaps with tensor "v"'),
    ({"v": tensor(), "w": tensor(offsets=[5, 9])}, b"123456789", "HoleError",
     'tensor "w": 1 bytes before it belong to no tensor'),
    (W, b"123456", "TrailingBytesError", "2 bytes behind the last tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "data", "name", "words"), BROKEN, ids=lambda v: str(v)[:24])
def test_a_broken_header(
    write_file: Callable[..., Path], header: object, data: bytes, name: str, words: str
) -> None:
    path = write_file(header, data)
    with pytest.raises(errors.HeaderError) as caught:
        sl.open(path)
    assert type(caught.value).__name__ == name
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.file == str(path)
    assert caught.value.offset is not None
    if 'tensor "' in str(caught.value):
        assert caught.value.tensor == "w"


RAW = [
    (b"", "FileTooShortError", "is 0 bytes long"),
    (b"1234567", "FileTooShortError", "is 7 bytes long"),
    ((2**63).to_bytes(8, "little") + b"{}", "HeaderTooLongError", "9223372036854775808 bytes"),
    ((100).to_bytes(8, "little") + b"{}", "HeaderTruncatedError", "100 bytes but is only 10"),
]


@pytest.mark.parametrize(("content", "name", "words"), RAW)
def test_a_file_that_is_too_short(disk: Path, content: bytes, name: str, words: str) -> None:
    path = disk / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(errors.HeaderError, match=words) as caught:
        sl.open(disk)
    assert type(caught.value).__name__ == name
    assert (caught.value.file, caught.value.offset) == (str(path), 0)


def test_every_truncation_of_a_real_file_is_a_typed_error(decoder: tuple[Path, dict]) -> None:
    path = decoder[0] / "model.safetensors"
    content = path.read_bytes()
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    for length in (0, 7, 8, 9, header_bytes - 1, header_bytes, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(errors.HeaderError):
            sl.open(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_under_any_name(disk: Path, legacy: bool) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = disk / name
        torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(errors.PickleRefusedError, match="convert it to safetensors"):
            sl.open(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "m.pt", "m.pth", "m.ckpt"])
def test_a_directory_of_pickles(disk: Path, name: str) -> None:
    (disk / name).write_bytes(b"any")
    with pytest.raises(errors.PickleRefusedError, match="nothing but pickles") as caught:
        sl.open(disk)
    assert caught.value.file == str(disk)


def test_nothing_there(disk: Path) -> None:
    with pytest.raises(errors.NoSafetensorsError):
        sl.open(disk)
    with pytest.raises(errors.CheckpointNotFoundError, match="check the path"):
        sl.open(disk / "gone")


def test_an_index_without_its_shard(sharded: tuple[Path, dict]) -> None:
    (sharded[0] / "model-1.safetensors").unlink()
    with pytest.raises(errors.ShardMissingError, match=r'"model-1.safetensors"') as caught:
        sl.open(sharded[0])
    assert caught.value.file == str(sharded[0] / "model.safetensors.index.json")


def test_an_index_with_a_tensor_that_is_not_there(sharded: tuple[Path, dict]) -> None:
    path = sharded[0] / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["ghost"] = "model-0.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(errors.IndexMismatchError, match='tensor "ghost"') as caught:
        sl.open(sharded[0])
    assert caught.value.tensor == "ghost"


def test_a_name_in_two_shards(sharded: tuple[Path, dict]) -> None:
    directory = sharded[0]
    (directory / "model.safetensors.index.json").unlink()
    copy = (directory / "model-0.safetensors").read_bytes()
    (directory / "model-9.safetensors").write_bytes(copy)
    with pytest.raises(errors.ShardDuplicateError, match=r'"model-0\.safetensors" holds'):
        sl.open(directory)


def test_a_path_that_may_not_be_read_keeps_its_errno(disk: Path) -> None:
    path = disk / ("x" * 300)
    with pytest.raises(errors.StorageError) as caught:
        sl.open(path)
    assert caught.value.errno == 36  # ENAMETOOLONG
    assert caught.value.code == "io_error"


def leaves() -> list[type[errors.LoaderError]]:
    found = []
    pending: list[type[errors.LoaderError]] = [errors.LoaderError]
    while pending:
        cls = pending.pop()
        below = cls.__subclasses__()
        pending.extend(below)
        if not below:
            found.append(cls)
    return found


def test_each_native_error_is_one_class_with_the_same_code_and_words() -> None:
    classes = {cls.__name__: cls for cls in leaves()}
    table = _native.error_table()
    for code, name, meaning in table:
        assert classes[name].code == code
        assert classes[name].__doc__ == meaning
    python_only = classes.keys() - {name for _, name, _ in table}
    assert python_only == {
        "AdapterInvalidError",
        "AdapterMismatchError",
        "AdapterNameError",
        "AdapterUnsupportedError",
        "CheckpointClosedError",
        "ConversionBusyError",
        "ConversionFailedError",
        "ConversionLimitError",
        "DeviceUnavailableError",
        "EntryRefusedError",
        "MissingPackageError",
        "PartsMismatchError",
        "ModuleMismatchError",
        "PickleInvalidError",
        "PickleUnsafeError",
        "SourceFormatError",
        "UnknownTensorError",
        "UnsupportedDtypeError",
    }
    codes = [cls.code for cls in classes.values()]
    assert len(set(codes)) == len(codes)


def test_the_readmes_table_is_the_tree() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \| (.+) \|$", (PACKAGE / "README.md").read_text(), re.MULTILINE
    )
    wanted = {(cls.code, cls.__name__, (cls.__doc__ or "").splitlines()[0]) for cls in leaves()}
    assert set(rows) == wanted


def test_the_docstring_draws_every_leaf() -> None:
    assert all(cls.__name__ in (errors.__doc__ or "") for cls in leaves())
