"""`python -m stoker_loader convert SOURCE DESTINATION`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from stoker_loader.converting import ConvertProgress, ConvertReport, Stage, convert
from stoker_loader.errors import LoaderError

DONE, FAILED, STOPPED = 0, 1, 130  # argparse itself ends with 2
STEP_PERCENT = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, and return the exit code: 0 done, 1 failed, 2 wrong usage, 130 stopped."""
    options = _parser().parse_args(arguments)
    progress = _progress_line() if sys.stderr.isatty() else None
    try:
        report = convert(
            options.source, options.destination, dtype=options.dtype, progress=progress
        )
    except LoaderError as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was left behind\n")
        return STOPPED
    sys.stdout.write(_summary(options.destination, report))
    return DONE


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
