"""How bytes of files are brought in: the ways there are, and those that work here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from stoker_loader import _native

Backend: TypeAlias = Literal["populate", "io_uring", "direct_pread", "pread"]
"""Pages of the page cache, mapped; `O_DIRECT` by io_uring; `O_DIRECT` by threads; plain reads."""

SourceName: TypeAlias = Literal["auto", "direct"] | Backend
"""What a load is asked for: the best way here, the best one past the page cache, or this one."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The back end of a load, and why those that would have been better were refused."""

    backend: Backend
    refused: Mapping[Backend, str]

    @property
    def is_direct(self) -> bool:
        """Whether it reads past the page cache, whatever that holds."""
        return self.backend in ("io_uring", "direct_pread")


@dataclass(frozen=True, slots=True)
class Backends:
    """What a load of a checkpoint takes now, to the host and to a CUDA device; and why each back
    end that cannot read it is refused (by the kernel, a sandbox or the file system)."""

    host: Backend
    device: Backend
    refused: Mapping[Backend, str]


def backends(path: str | os.PathLike[str]) -> Backends:
    """Try every back end on the checkpoint itself: a first block of a file on each file system.

    Raises what `open` raises, FileChangedError, StorageError.
    """
    native = _native.Checkpoint(path, None)
    return Backends(
        host=choose(native, "auto", to_device=False).backend,
        device=choose(native, "auto", to_device=True).backend,
        refused={name: reason for name, reason in native.attempt() if reason is not None},
    )


def choose(native: _native.Checkpoint, source: SourceName, *, to_device: bool) -> Choice:
    """The best back end that works here for what was asked for.

    Raises BackendUnknownError, BackendRefusedError, FileChangedError.
    """
    backend, refused = native.choose(source, to_device)
    return Choice(backend, dict(refused))
