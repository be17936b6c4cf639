"""Reads pickles of tensors, in a child behind its walls, and writes one safetensors file."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

from stoker_loader.conversion.job import Job, Outcome
from stoker_loader.conversion.sources import is_archive
from stoker_loader.conversion.state_dict import (
    Weights,
    drop_tied_head,
    select,
    without_prefixes,
)
from stoker_loader.conversion.tensor_file import plan, write
from stoker_loader.errors import (
    ConversionLimitError,
    IndexMismatchError,
    MissingPackageError,
    PickleInvalidError,
    PickleUnsafeError,
    ShardDuplicateError,
)
from stoker_loader.page_cache import Progress

# Before it, `weights_only=True` could be made to run code (CVE-2025-32434).
SAFE_TORCH = (2, 6)
GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
MAX_REASON_CHARACTERS = 300


def get_ready() -> None:
    """Import all that reading needs, before anything is forbidden. Raises MissingPackageError."""
    import torch

    torch.set_num_threads(1)
    found = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if found < SAFE_TORCH:
        raise MissingPackageError(
            f"torch {torch.__version__} reads pickles unsafely; install torch>=2.6"
        )


def rewrite(job: Job, advance: Progress) -> Outcome:
    """Write the tensors of all the job's files to its descriptor.

    Raises PickleUnsafeError, PickleInvalidError, EntryRefusedError, ShardDuplicateError,
    IndexMismatchError, ConversionLimitError.
    """
    import torch

    weights = Weights({}, ())
    for file in job.files:
        weights = _merged(weights, select(_load(file), file), file)
    for name in job.tensors:
        if name not in weights.tensors:
            raise IndexMismatchError(
                f"{job.files[0]}: tensor {name!r}: the index names it, and neither this shard nor"
                " another holds it; fetch index and shards again",
                file=job.files[0],
                tensor=name,
            )
    named = without_prefixes(weights.tensors)
    tensors, tied = drop_tied_head(named, tie_word_embeddings=job.tie_word_embeddings)
    dtype = getattr(torch, job.dtype) if job.dtype else None
    # As `safetensors.torch.save_model` notes what it dropped.
    planned = plan(tensors, {"format": "pt"} | tied, dtype=dtype, file=job.files[0])
    if planned.file_bytes > job.limits.output_bytes:
        raise ConversionLimitError(
            f"{job.files[0]}: its tensors need {planned.file_bytes} bytes, more than the"
            f" {job.limits.output_bytes} that files of this length may become; save contiguous"
            " tensors where you trust it",
            file=job.files[0],
        )
    assert job.output_fd is not None
    write(job.output_fd, planned, advance)
    return Outcome(("weights_only",), tied, weights.skipped)


def _load(file: str) -> object:
    import torch

    with Path(file).open("rb") as opened:
        archive = is_archive(opened.read(4))
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=archive)
    except (MemoryError, OSError):
        raise
    except pickle.UnpicklingError as error:
        raise _refused(file, str(error)) from error
    except RuntimeError as error:
        if "allocate memory" in str(error) or "mmap" in str(error):
            raise
        raise _invalid(file, error) from error
    except Exception as error:  # whatever the bytes make of the unpickler
        raise _invalid(file, error) from error


def _merged(weights: Weights, more: Weights, file: str) -> Weights:
    for name in more.tensors:
        if name in weights.tensors:
            raise ShardDuplicateError(
                f"{file}: tensor {name!r}: another shard holds a tensor of the same name",
                file=file,
                tensor=name,
            )
    return Weights(weights.tensors | more.tensors, weights.skipped + more.skipped)


def _refused(file: str, words: str) -> PickleUnsafeError | PickleInvalidError:
    """torch says in one class what is dangerous and what is broken; its words tell them apart."""
    asked = GLOBAL.search(words)
    if asked is None and "nsupported" not in words:
        return _invalid(file, words.split("\n")[-1])
    return PickleUnsafeError(
        f"{file}: asks for {asked[1] if asked else 'what no tensor needs'}, which could run code,"
        " so nothing of it was read; get the weights as safetensors, or save the model's"
        " state_dict alone where you trust the file",
        file=file,
    )


def _invalid(file: str, reason: object) -> PickleInvalidError:
    words = json.dumps(str(reason).split("\n")[0][:MAX_REASON_CHARACTERS])
    return PickleInvalidError(
        f"{file}: is no pickle of tensors that torch can read (corrupt or truncated?): {words};"
        " fetch it again",
        file=file,
    )
