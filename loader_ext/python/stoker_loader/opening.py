"""The ways to open a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from stoker_loader import _native
from stoker_loader.backends import SourceName
from stoker_loader.checkpoint import Checkpoint
from stoker_loader.errors import BackendUnknownError
from stoker_loader.identity import Verify
from stoker_loader.page_cache import Progress

if TYPE_CHECKING:
    import torch

FileBackend = Literal["mmap", "pread"]
SOURCES: Mapping[str, SourceName] = {"mmap": "auto", "pread": "pread"}
PATIENCE_S = 60.0  # above the longest silence that a fetch itself bears with


def open_checkpoint(path: str | os.PathLike[str], *, verify: Verify = False) -> Checkpoint:
    """Open a safetensors file, or a directory with one or with shards; reads headers only.

    With `verify` each chunk of 8 MiB is compared as it is brought in, by the thread that brought
    it, and before a tensor in it is given out: with the digests of the sidecar (True), or with
    those given, and then sidecars are not read. Raises LoaderErrors of every rule that a file
    breaks; DigestsMissingError, FileUnexpectedError, LengthMismatchError where digests are not
    those of these files; ChunkMismatchError later, by whatever brings wrong bytes in.
    """
    return Checkpoint(path, verify=verify)


def open_arriving(
    path: str | os.PathLike[str],
    *,
    patience_s: float = PATIENCE_S,
    progress: Progress | None = None,
) -> Checkpoint:
    """Open a checkpoint whose files may still be on their way by `fetch`, here or elsewhere.

    Waits for headers and index, and later with each tensor for its bytes alone; `load` and
    `populate` bring in what has arrived while the rest is coming. Nothing is ever seen that was
    not verified. `progress` is called with zeros while this waits, and may stop it. Raises what
    `open` raises, and here or later FetchAbandonedError when the fetch ended before the file was
    complete, WaitTimeoutError when nothing at all arrived for `patience_s`.
    """
    return Checkpoint(path, patience_s, progress=progress)


def wait_complete(
    path: str | os.PathLike[str],
    *,
    patience_s: float = PATIENCE_S,
    progress: Progress | None = None,
) -> None:
    """Return when every safetensors file of a checkpoint on its way stands complete at its name.

    For readers that cannot begin before, such as libraries that open the files themselves. Raises
    and reports as `open_arriving`.
    """
    patience = timedelta(seconds=patience_s)
    _native.Checkpoint(path, patience, False, None, progress).settle(progress)


def load_file(
    filename: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    *,
    backend: FileBackend = "mmap",
    verify: Verify = False,
) -> dict[str, torch.Tensor]:
    """Load all tensors, as `safetensors.torch.load_file` does, but as views of a mapping.

    `backend` has that function's names: "mmap" leaves the choice to `load`, "pread" reads into
    memory of this process. Raises what `open` and `load` raise, BackendUnknownError.
    """
    source = source_of(backend, filename)
    with open_checkpoint(filename, verify=verify) as checkpoint:
        return checkpoint.load(device_of(device), source=source)


def device_of(device: str | int | torch.device) -> str | torch.device:
    """A device that may be a number: that of a GPU, as `safetensors.torch` has it."""
    return f"cuda:{device}" if isinstance(device, int) else device


def source_of(backend: FileBackend, filename: str | os.PathLike[str]) -> SourceName:
    """What `load` calls a back end of `load_file`. Raises BackendUnknownError."""
    if backend not in SOURCES:
        raise BackendUnknownError(
            f"{os.fspath(filename)}: no back end {backend!r}; choose one of {', '.join(SOURCES)}",
            file=os.fspath(filename),
        )
    return SOURCES[backend]
