"""The child process of a conversion: builds its walls, then reads what they are for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from stoker_loader.conversion import from_gguf, from_pickle, sandbox
from stoker_loader.conversion.job import Job, Message, Outcome, Progressed, encode
from stoker_loader.conversion.landlock import forbid_writes
from stoker_loader.conversion.system_calls import forbid_system_calls
from stoker_loader.errors import (
    ConversionFailedError,
    ConversionLimitError,
    LoaderError,
    PickleUnsafeError,
    StorageError,
)
from stoker_loader.page_cache import Progress

NO_MEMORY = ("not enough memory", "allocate memory", "unable to mmap")


class Reader(Protocol):
    """What knows a format: `from_pickle` and `from_gguf`."""

    def get_ready(self) -> None:
        """Import all that reading needs, before anything is forbidden."""

    def rewrite(self, job: Job, advance: Progress) -> Outcome:
        """Read the job's files and write its output; return what only the reader knows."""


def main() -> int:
    """Do the job on standard input; messages go to the descriptor that is the first argument."""
    report = int(sys.argv[1])
    job = Job.decode(sys.stdin.buffer.read())

    def tell(message: Message) -> None:
        left = encode(message)
        while left:
            left = left[os.write(report, left) :]

    try:
        tell(_do(job, lambda done, total: tell(Progressed(done, total))))
    except LoaderError as error:
        tell(error)
    except sandbox.WallTouchedError as error:
        tell(_stopped(job, error))
    except (MemoryError, RuntimeError, OSError) as error:
        tell(_classified(job, error))
    return 0


def _do(job: Job, advance: Progress) -> Outcome:
    reader: Reader = from_gguf if job.kind == "gguf" else from_pickle
    walls = build_walls(job, reader.get_ready)
    outcome = reader.rewrite(job, advance)
    return replace(outcome, walls=(*walls, *outcome.walls))


def build_walls(job: Job, get_ready: Callable[[], None]) -> tuple[str, ...]:
    """Put all walls around this process, the same for every format; return those that hold.

    `get_ready` imports what reading needs, and makes no thread. Nothing of a file may be looked at
    before this returns.
    """
    walls = []
    # The order matters: no threads before namespaces, no privileges after, no domain before those
    # are given up, and the limits count from what torch has mapped.
    if sandbox.leave_the_world(job.output_folder):
        walls.append("namespaces")
    if sandbox.give_up_privileges(job.parent):
        walls.append("privileges")
    if forbid_writes(job.output_folder):
        walls.append("landlock")
    get_ready()
    sandbox.limit(job.limits)
    walls.append("limits")
    if forbid_system_calls():
        walls.append("system calls")
    sandbox.forbid_effects(job.output_folder)
    return (*walls, "audit hook")


def _stopped(job: Job, error: BaseException) -> LoaderError:
    kind = PickleUnsafeError if job.kind == "pickle" else ConversionFailedError
    return kind(
        f"{job.files[0]}: reading it tried what no weights need ({error}) and was stopped; do not"
        " use it",
        file=job.files[0],
    )


def _classified(job: Job, error: Exception) -> LoaderError:
    file = job.files[0]
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return ConversionLimitError(
            f"{file}: reading it needs more memory than the {job.limits.address_space_bytes} bytes"
            " that a file of its length may take; do not use it unless you know why",
            file=file,
        )
    if isinstance(error, OSError) and error.errno is not None:
        return StorageError(
            f"{error.filename or file}: converting failed: {error.strerror}",
            file=str(error.filename or file),
            errno=error.errno,
        )
    return ConversionFailedError(f"{file}: cannot be converted: {error}", file=file)


if __name__ == "__main__":
    sys.exit(main())
