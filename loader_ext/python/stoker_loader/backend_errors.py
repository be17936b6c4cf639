"""The branch of the error tree for ways of reading files."""

from __future__ import annotations

from stoker_loader.error_base import LoaderError


class BackendError(LoaderError):
    """A file cannot be read in the way that was asked for."""


class BackendUnknownError(BackendError):
    """There is no way of this name to read a file."""

    code = "backend_unknown"


class BackendRefusedError(BackendError):
    """The machine, its sandbox or the file system refuses the way of reading that was asked for."""

    code = "backend_refused"
