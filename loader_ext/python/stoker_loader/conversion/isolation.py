"""Runs the reading of a format in a child process and listens to it, for a bounded time."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stoker_loader.conversion.job import Job, Outcome, Progressed, decode, printable
from stoker_loader.conversion.storage import storage_errors
from stoker_loader.errors import ConversionFailedError, ConversionLimitError, LoaderError
from stoker_loader.page_cache import Progress

WATCH_SECONDS = 0.1  # the caller is asked so often whether to go on
STALL_SECONDS = 900.0  # between two messages: a legacy pickle or a GGUF model is read in one go
EXIT_SECONDS = 60.0
MAX_MESSAGE_BYTES = 32 << 20
READ_BYTES = 1 << 16
LOG_TAIL_BYTES = 2000
KILLED_BY_LIMIT = (-signal.SIGKILL, -signal.SIGXCPU, -signal.SIGXFSZ)
# All of the environment that a child gets: no tokens, no keys, no proxies.
INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT")


def run(job: Job, folder: Path, advance: Progress) -> Outcome:
    """Run a job to its end and return what it did.

    What the child prints goes to a log in `folder`, of which an unexpected end tells the tail. The
    child is gone when this returns, and dies with this process. `advance` is called at least every
    0.1 s, and what it raises ends the child. Raises that, what the child reports,
    ConversionLimitError, ConversionFailedError, StorageError.
    """
    log = folder / "log"
    with storage_errors(folder):
        child, report = _start(job, folder, log)
    outcome: Outcome | None = None
    heard = Progressed(0, 0)
    try:
        _tell(child, job)
        for line in _lines(report, job):
            match heard if line is None else _decoded(line, job):
                case Progressed() as heard:
                    advance(heard.done_bytes, heard.total_bytes)
                case Outcome() as outcome:
                    pass
                case LoaderError() as error:
                    raise error
        code = _ended(child, lambda: advance(heard.done_bytes, heard.total_bytes))
        if code is None:
            raise _failed(job, "did not end", log)
    finally:
        os.close(report)
        child.kill()
        child.wait()
    if code in KILLED_BY_LIMIT:
        raise ConversionLimitError(
            f"{job.files[0]}: reading it needed more than {job.limits.cpu_seconds} s of processor"
            " time, or more memory than there is; try it on a larger machine where you trust it",
            file=job.files[0],
        )
    if code != 0 or outcome is None:
        raise _failed(job, f"ended with code {code}", log)
    if job.output_folder is not None:
        _refuse_odd_files(Path(job.output_folder), job)
    return outcome


def _start(job: Job, folder: Path, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The child, and the end of the pipe that its messages come from."""
    report, told = os.pipe()
    try:
        with log.open("wb") as output:
            child = subprocess.Popen(  # noqa: S603 - this interpreter, a module of this package
                [sys.executable, "-P", "-m", "stoker_loader.conversion.child", str(told)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=_environment(folder),
                cwd="/",
                pass_fds=(told,) if job.output_fd is None else (told, job.output_fd),
                start_new_session=True,
            )
    except BaseException:
        os.close(report)
        raise
    finally:
        os.close(told)
    return child, report


def _tell(child: subprocess.Popen[bytes], job: Job) -> None:
    assert child.stdin is not None
    try:
        with child.stdin as stdin:
            stdin.write(job.encode())
    except BrokenPipeError:
        pass  # it died before it read: its exit code and its log say why


def _ended(child: subprocess.Popen[bytes], go_on: Callable[[], object]) -> int | None:
    """The exit code of a child that has said all; None if it does not end."""
    until = time.monotonic() + EXIT_SECONDS
    while time.monotonic() < until:
        try:
            return child.wait(WATCH_SECONDS)
        except subprocess.TimeoutExpired:
            go_on()
    return None


def _lines(report: int, job: Job) -> Iterator[bytes | None]:
    """The child's messages until it closes its end; None while nothing is heard."""
    pending = b""
    heard_at = time.monotonic()
    heard = select.poll()  # select(2) knows no descriptor from 1024 on
    heard.register(report, select.POLLIN)
    while True:
        if not heard.poll(1000 * WATCH_SECONDS):
            if time.monotonic() - heard_at > STALL_SECONDS:
                raise ConversionLimitError(
                    f"{job.files[0]}: nothing was heard of its reader for {STALL_SECONDS:.0f} s;"
                    " check the disk that it lies on",
                    file=job.files[0],
                )
            yield None
            continue
        heard_at = time.monotonic()
        piece = os.read(report, READ_BYTES)
        if not piece:
            return
        *lines, pending = (pending + piece).split(b"\n")
        if len(pending) > MAX_MESSAGE_BYTES:
            raise ConversionFailedError(
                f"{job.files[0]}: its reader sends messages without end", file=job.files[0]
            )
        yield from lines


def _decoded(line: bytes, job: Job) -> Outcome | Progressed | LoaderError:
    try:
        return decode(line)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConversionFailedError(
            f"{job.files[0]}: its reader sent what is no message", file=job.files[0]
        ) from error


def _refuse_odd_files(folder: Path, job: Job) -> None:
    """What a child left is trusted as little as what it said: a link could lead anywhere."""
    with storage_errors(folder):
        for entry in os.scandir(folder):
            found = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise ConversionFailedError(
                    f"{job.files[0]}: its reader made {entry.name!r}, which is no plain file; do"
                    " not use it",
                    file=job.files[0],
                )


def _failed(job: Job, what: str, log: Path) -> ConversionFailedError:
    tail = printable(log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip())
    return ConversionFailedError(
        f"{job.files[0]}: its reader {what}; it said: {tail or 'nothing'}", file=job.files[0]
    )


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return kept | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder),  # or importing it tries to make one
        # A pool of threads would be forbidden as processes are.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_DEACTIVATE_ASYNC_LOAD": "1",
        "TQDM_DISABLE": "1",
    }
