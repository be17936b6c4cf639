"""A conversion from beginning to end: find, read, lay out, publish."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from stoker_loader.alignment import layout
from stoker_loader.conversion import from_gguf, from_safetensors
from stoker_loader.conversion.companions import (
    link_companions,
    read_config,
    ties_word_embeddings,
)
from stoker_loader.conversion.isolation import run
from stoker_loader.conversion.job import Job, Outcome
from stoker_loader.conversion.limits import gguf_limits, pickle_limits
from stoker_loader.conversion.sources import Source, find_source
from stoker_loader.conversion.staging import publish, staging
from stoker_loader.conversion.storage import storage_errors
from stoker_loader.conversion.tensor_file import create
from stoker_loader.converting import ConvertDtype, ConvertProgress, ConvertReport, Stage
from stoker_loader.errors import (
    CheckpointNotFoundError,
    MissingPackageError,
    UnsupportedDtypeError,
)
from stoker_loader.page_cache import Progress

TORCH_DTYPES: dict[str, str] = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def run_steps(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    dtype: ConvertDtype | None,
    progress: ConvertProgress | None,
) -> ConvertReport:
    """What `stoker_loader.convert` promises."""
    if dtype is not None and dtype not in TORCH_DTYPES:
        raise UnsupportedDtypeError(f"dtype {dtype!r}: choose one of {', '.join(TORCH_DTYPES)}")
    if not os.fspath(source):  # which would be taken for the working directory
        raise CheckpointNotFoundError("the source's path is empty; check the path", file="")
    target = Path(os.path.abspath(os.fspath(destination)))  # noqa: PTH100 - not through links
    with storage_errors(Path(source)):
        found = find_source(Path(os.path.abspath(os.fspath(source))))  # noqa: PTH100
    with staging(target) as folder:
        model, outcome, skipped = _read(found, folder, TORCH_DTYPES.get(dtype or ""), progress)
        report = layout(model, folder / "laid", _of_stage("layout", progress))
        publish(folder / "laid", target)
    return ConvertReport(
        source_format=found.format,
        layout=report,
        walls=outcome.walls,
        tied=outcome.tied,
        skipped_files=tuple(sorted({*skipped, *report.skipped})),
        skipped_entries=outcome.skipped_entries,
    )


def _read(
    source: Source, folder: Path, dtype: str | None, progress: ConvertProgress | None
) -> tuple[Path, Outcome, tuple[str, ...]]:
    """The source as safetensors: where, what its reader did, and the files that it left out."""
    if source.format == "safetensors" and dtype is None:
        return source.path, Outcome(), ()
    advance = _of_stage("read", progress) or _ignore
    model = folder / "model"
    with storage_errors(model):
        model.mkdir()
    used = frozenset(file.name for file in source.weights)
    match source.format:
        case "safetensors":
            _require("torch")
            used = from_safetensors.cast(source.path, model, str(dtype), advance)
            outcome = Outcome()
        case "pickle":
            _require("torch")
            outcome = _read_pickles(source, model, dtype, advance)
        case "gguf":
            _require(*from_gguf.PACKAGES)
            outcome = _unpack_gguf(source, model, dtype, advance)
    skipped: tuple[str, ...] = ()
    if source.path.is_dir():
        with storage_errors(model):
            skipped = link_companions(source.path, model, used, dtype)
    return model, outcome, skipped


def _read_pickles(source: Source, model: Path, dtype: str | None, advance: Progress) -> Outcome:
    with create(model / "model.safetensors") as output:
        job = Job(
            kind="pickle",
            files=tuple(str(file) for file in source.weights),
            dtype=dtype,
            limits=pickle_limits(source.weights_bytes),
            parent=os.getpid(),
            output_fd=output,
            tie_word_embeddings=ties_word_embeddings(read_config(source.path)),
            tensors=source.tensors,
        )
        return run(job, model.parent, advance)


def _unpack_gguf(source: Source, model: Path, dtype: str | None, advance: Progress) -> Outcome:
    size_bytes = source.weights_bytes
    job = Job(
        kind="gguf",
        files=tuple(str(file) for file in source.weights),
        dtype=dtype,
        limits=gguf_limits(size_bytes),
        parent=os.getpid(),
        output_folder=str(model),
        read_tokenizer=not (source.path / "tokenizer.json").is_file(),
    )
    return run(job, model.parent, advance)


def _of_stage(stage: Stage, progress: ConvertProgress | None) -> Progress | None:
    if progress is None:
        return None
    return lambda done_bytes, total_bytes: progress(stage, done_bytes, total_bytes)


def _ignore(_done_bytes: int, _total_bytes: int) -> None:
    """Nobody asked for progress."""


def _require(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingPackageError(
            f"converting this needs {', '.join(missing)}; install with: pip install"
            f" {' '.join(missing)}"
        )
