"""Turns what user code raised into words: which exception, and where in the user's own files."""

from __future__ import annotations

import traceback
from pathlib import Path

from stoker_runtime.errors import HandlerFailed, HandlerSetupFailed

MAX_TRACEBACK_LINES = 20
MAX_MESSAGE_CHARS = 2000


def setup_fault(error: BaseException, source_path: Path, doing: str) -> HandlerSetupFailed:
    """The fault for an exception that came out of importing or setting up a handler."""
    return HandlerSetupFailed(
        f"{doing} raised {describe(error)}",
        details={"exception": type(error).__name__, "traceback": user_lines(error, source_path)},
    )


def predict_fault(error: BaseException, source_path: Path) -> HandlerFailed:
    """The fault for an exception that came out of `predict`."""
    return HandlerFailed(
        describe(error),
        details={"exception": type(error).__name__, "traceback": user_lines(error, source_path)},
    )


def describe(error: BaseException) -> str:
    """The exception's type and message, cut to a bound."""
    text = str(error)
    if len(text) > MAX_MESSAGE_CHARS:
        text = text[:MAX_MESSAGE_CHARS] + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def user_lines(error: BaseException, source_path: Path) -> list[str]:
    """Where it was raised, innermost last: the frames in the user's folder, else all of them."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        frames.append(traceback.FrameSummary(error.filename, error.lineno, "<module>"))
    root = source_path.resolve()
    own = [f for f in frames if Path(f.filename).is_relative_to(root)]
    return [_line(frame, root) for frame in (own or frames)][-MAX_TRACEBACK_LINES:]


def _line(frame: traceback.FrameSummary, root: Path) -> str:
    path = Path(frame.filename)
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    return f"{shown}:{frame.lineno} in {frame.name}: {frame.line}"
