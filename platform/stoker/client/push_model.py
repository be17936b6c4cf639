"""`stoker push`: a folder, a file with what it needs, or GGUF becomes a checkpoint."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from stoker.checkpoints.files import check_name
from stoker.client.http import Json, Platform
from stoker.client.progress import Report
from stoker.client.push import CHECKPOINT, push
from stoker.errors import BadRequest
from stoker.local_files import GGUF, PART, conversion, model_files

MAGIC = b"GGUF"
MAX_NAME_CHARS = 128
SCRATCH = "/var/tmp"  # noqa: S108 - on a disk, where /tmp may be memory; TMPDIR names another
# What the loader's stages are called beside those of the upload, one of which is `layout` too.
STAGES = {"read": "converting", "layout": "aligning"}
ENDING = (signal.SIGTERM, signal.SIGHUP)
SAYS_NOTHING = "model"  # the stem of most files of weights
_ODD = re.compile(r"[^A-Za-z0-9._-]+")


def push_model(
    platform: Platform,
    path: Path,
    name: str,
    *,
    report: Report,
    note: Callable[[str], None],
) -> Json:
    """Brings what is at `path` to the store under `name`, and returns the artifact.

    GGUF is converted in a folder below TMPDIR, or /var/tmp, that is gone afterwards; call this on
    the main thread, which hears signals. Raises BadRequest, PayloadTooLarge, and what the platform
    refuses with.
    """
    check_name(name)
    if not path.is_file() or path.suffix.lower() != GGUF:
        files = model_files(path)
        return push(platform, files, kind=CHECKPOINT, name=name, report=report)
    _check_gguf(path)
    platform.ready()  # or minutes of conversion could be in vain
    with _interrupted_by(ENDING), _scratch() as scratch:
        note(f"converting {path} in {scratch}")
        folder = _converted(path, scratch / "model", report)
        files = model_files(folder)
        return push(platform, files, kind=CHECKPOINT, name=name, report=report)


def default_name(path: Path) -> str:
    """A checkpoint's name from that of its file or folder.

    What is called `model`, as most weights are, has the name of its folder. Raises BadRequest.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - `.` has a name, and links keep theirs
    words = path.name
    if path.is_file():
        stem = Path(words.removesuffix(".index.json")).stem
        part = PART.fullmatch(stem)
        words = part["stem"] if part else stem
        if words == SAYS_NOTHING:
            words = path.parent.name
    name = _ODD.sub("-", words).strip("-._")[:MAX_NAME_CHARS]
    if not name:
        raise BadRequest(f"{path} makes no name; give one behind it", param="name")
    return name


def _check_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}", param="path") from error
    if magic != MAGIC:
        raise BadRequest(f"{path} is not GGUF, whatever its name says; get it again", param="path")


def _converted(path: Path, folder: Path, report: Report) -> Path:
    # Here, because nothing but GGUF needs the loader.
    from stoker_loader import convert
    from stoker_loader.errors import LoaderError, MissingPackageError, StorageError

    def progress(stage: str, bytes_done: int, bytes_total: int) -> None:
        report(STAGES[stage], bytes_done, bytes_total)

    try:
        convert(path, folder, progress=progress)
    except MissingPackageError as error:
        command, made = conversion(path)
        raise BadRequest(
            f"{path} is GGUF: {error.message}; or, where these packages are, run `{command}`, and"
            f" push {made}",
            param="path",
        ) from error
    except StorageError as error:
        raise BadRequest(
            f"{error.message}; TMPDIR may name a folder with more room for the conversion",
            details={"reason": error.code},
        ) from error
    except LoaderError as error:
        raise BadRequest(error.message, param="path", details={"reason": error.code}) from error
    return folder


@contextmanager
def _scratch() -> Iterator[Path]:
    """An empty folder that is gone afterwards, also after an interrupt."""
    root = os.environ.get("TMPDIR") or SCRATCH
    try:
        made = tempfile.TemporaryDirectory(prefix="stoker-push-", dir=root)
    except OSError as error:
        raise BadRequest(
            f"cannot make a folder in {root}: {error.strerror}; TMPDIR may name another place"
        ) from error
    with made as folder:
        yield Path(folder)


@contextmanager
def _interrupted_by(numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """These signals, such as a closed terminal's, end the work as Ctrl-C does: cleaned up."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # once is enough, and cleaning up takes a moment
        raise KeyboardInterrupt

    # Whoever ignores one, as `nohup` does, goes on ignoring it.
    before = {
        number: handler
        for number in numbers
        if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)
    }
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
