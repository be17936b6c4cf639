"""`python -m stoker_loader convert SOURCE DESTINATION`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from stoker_loader.converting import ConvertProgress, ConvertReport, Stage, convert
from stoker_loader.errors import LoaderError

DONE, FAILED = 0, 1  # argparse itself ends with 2
STOPPED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = 128  # and the signal's number, as shells have it
STEP_PERCENT = 1


class _Stopped(KeyboardInterrupt):
    """One of `STOPPED_BY` came."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, and return the exit code: 0 done, 1 failed, 2 wrong usage.

    SIGINT, SIGTERM and SIGHUP stop it, and 128 and the signal's number is returned.
    """
    options = _parser().parse_args(arguments)
    progress = _progress_line() if sys.stderr.isatty() else None
    try:
        with _stopped_by_signals():
            report = convert(
                options.source, options.destination, dtype=options.dtype, progress=progress
            )
    except LoaderError as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    except _Stopped as stopped:
        there = os.path.lexists(options.destination)  # it came when all but tidying up was done
        with suppress(OSError):  # a terminal that is gone
            is_made = "is there" if there else "was not made"
            sys.stderr.write(f"stopped; {options.destination} {is_made}\n")
        return STOPPED + stopped.number
    sys.stdout.write(_summary(options.destination, report))
    return DONE


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """The first signal raises _Stopped; a second SIGINT or SIGTERM ends the process where it is."""
    # Whoever ignores one, as `nohup` does, goes on ignoring it.
    before = {
        number: handler
        for number in STOPPED_BY
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in before:
            # A terminal that is closed may send two of these, which nobody meant.
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)
        raise _Stopped(number)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stoker_loader", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "convert",
        help="write a checkpoint of another format as aligned safetensors",
        description="Write safetensors, GGUF or pickled weights as aligned safetensors. Pickles"
        " are read in a process that may do nothing else; nothing in them runs.",
    )
    command.add_argument("source", metavar="SOURCE", help="a checkpoint's directory, or a file")
    command.add_argument("destination", metavar="DESTINATION", help="a directory that is not there")
    command.add_argument("--dtype", choices=("bf16", "f16", "f32"), help="cast the weights")
    return parser


def _progress_line() -> ConvertProgress:
    """Writes a line per stage, and writes it again when another percent is done."""
    shown: list[tuple[Stage, int]] = []

    def show(stage: Stage, done_bytes: int, total_bytes: int) -> None:
        percent = 100 * done_bytes // max(total_bytes, 1) // STEP_PERCENT * STEP_PERCENT
        if shown[-1:] == [(stage, percent)]:
            return
        shown[:] = [(stage, percent)]
        end = "\n" if done_bytes == total_bytes else ""
        sys.stderr.write(f"\r{stage:<7}{percent:3} % of {total_bytes / 1e6:.0f} MB{end}")
        sys.stderr.flush()

    return show


def _summary(destination: str, report: ConvertReport) -> str:
    laid = report.layout
    lines = [
        f"{destination}: {laid.tensors} tensors, {laid.checkpoint_bytes} bytes, {laid.digest.root}"
    ]
    # Quoted, because names out of a file nobody vouches for could steer the terminal.
    lines += [f"left out, as it is {kept!r}: {name!r}" for name, kept in report.tied.items()]
    lines += [f"left out, as it is no tensor: {name!r}" for name in report.skipped_entries]
    lines += [f"left out, as it is no part of it: {name!r}" for name in report.skipped_files]
    if report.walls and "namespaces" not in report.walls:
        lines.append("note: no namespaces are allowed here; these walls held: ")
        lines[-1] += ", ".join(report.walls)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
