"""The page cache as a tier that stays: files whose pages are locked in memory."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from stoker_loader import _native
from stoker_loader.page_cache import Progress


class Pin:
    """Files that stay in the page cache until `close`, the end of a `with`, or of the process.

    The lock belongs to this process alone: its children do not inherit it, and several pins of
    one file hold it until the last of them goes. What is loaded meanwhile, by any process, maps
    the same pages.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        progress: Progress | None = None,
        threads: int | None = None,
    ) -> None:
        """As `pin`."""
        self.path = os.fspath(path)
        self._native = _native.Pin(path, progress, threads)

    @property
    def pinned_bytes(self) -> int:
        """The bytes of the files that are held; 0 when it is closed."""
        return self._native.pinned_bytes

    def close(self) -> None:
        """Let the pages go; they stay in the page cache until something else needs the room."""
        self._native.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Pin({self.path!r}, pinned_bytes={self.pinned_bytes})"


def pin(
    path: str | os.PathLike[str],
    progress: Progress | None = None,
    threads: int | None = None,
) -> Pin:
    """Bring a file, or every file under a directory, into the page cache and keep it there.

    All is pinned or nothing. Whether the process may lock so much (`RLIMIT_MEMLOCK`, or the
    capability CAP_IPC_LOCK) is known before anything is read; only Linux's `mlock2` is used, and
    pages stay huge. `progress` as for `prefetch`. Raises PinRefusedError, CheckpointNotFoundError,
    FileChangedError, StorageError.
    """
    return Pin(path, progress, threads)


def unpin(pinned: Pin) -> None:
    """Let go what `pin` holds; the second time does nothing."""
    pinned.close()
