"""What is said of a process that a mapped file ends."""

from __future__ import annotations

from stoker_loader import _native


def explain_bus_errors() -> None:
    """Let a SIGBUS name the file and the byte on standard error before it ends the process.

    A page that its file no longer has (it was truncated while it was mapped), or that its disk
    cannot read, cannot become an exception: whoever reads it cannot go on. So this changes nothing
    but that the process does not end silently. It installs a handler for the whole process, once,
    which then leaves the signal to whoever handled it before (`faulthandler` then shows where).
    Raises StorageError.
    """
    _native.explain_bus_errors()
