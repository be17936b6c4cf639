#!/usr/bin/env python3
"""Runs the native loader's tests under AddressSanitizer, and its pure parts under Miri.

Both need a nightly toolchain of Rust; Miri also its components `miri` and `rust-src`. Every
toolchain that rustup has is tried, the nightly ones first; where none will do, the check is
skipped, and it says what is missing and how to get it. AddressSanitizer sees every access of the
core's and the kernels' tests to memory that is not theirs, those through the stand-in for the
NVIDIA driver included; Miri sees undefined behaviour of any kind, and races, but knows no mapped
files. The first build takes about ten minutes on two cores, and later ones one; nothing of it is
part of `make test`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

WORKSPACE = Path(__file__).resolve().parents[1] / "loader_ext"
PACKAGE = "stoker-loader-core"
# What AddressSanitizer watches: the packages with `unsafe` and tests, and where those run.
SANITIZED = {PACKAGE: "core", "stoker-kernels": "kernels"}
# The parsers, the decisions, and the threads that share work: no files and no mappings, and no
# system calls but those for the tests' own clock and threads.
PURE = (
    "arrival::tests::a_head_with_the_magic_never_overflows",
    "arrival::tests::no_bytes_make_the_parser_panic",
    "device::numa::tests::lists_are_the_kernels",
    "dtype::",
    "error::",
    "faults::maps::tests::lines_that_are_none_are_stepped_over",
    "faults::words::",
    "fetch::ledger::",
    "header::",
    "index::",
    "layout::plan::",
    "names::tests::the_first_name_that_is_there_twice",
    "parallel::plan::",
    "pieces::",
    "sidecar::",
    "source::backend::",
    "source::blocks::",
)
# Megabytes of padding, and some thousand parses: many minutes of an interpreter.
SLOW = ("a_large_file_begins_on_a_huge_page", "every_flipped_bit_and_every_truncation_is_seen")
# Of each property; a search for new cases is `make fuzz`.
SANITIZED_CASES, INTERPRETED_CASES = "32", "2"
GET_NIGHTLY = "rustup toolchain install nightly --component miri --component rust-src"


def target_folder(name: str) -> str:
    """Apart from the usual builds, whose flags are others."""
    base = Path(os.environ.get("CARGO_TARGET_DIR", WORKSPACE / "target"))
    return str(base / f"check-{name}")


def toolchains() -> list[str]:
    """The toolchains that rustup has, the nightly ones first; none without rustup."""
    try:
        listed = subprocess.run(
            ["rustup", "toolchain", "list"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return []
    # "no installed toolchains" is how it says that there are none.
    names = [line.split()[0] for line in listed.stdout.splitlines() if not line.startswith("no ")]
    return sorted(names, key=lambda name: not name.startswith("nightly"))


def refusal(command: Sequence[str]) -> str | None:
    """Why a command does not work here, or None if it does."""
    done = subprocess.run(command, cwd=WORKSPACE, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
    said = next((line for line in lines if "error" in line), lines[0])
    return None if done.returncode == 0 else said.strip().removeprefix("error: ")


def first_that_works(names: Sequence[str], probe: Sequence[str]) -> tuple[str | None, list[str]]:
    """The first toolchain with which the probe works, and why those before it do not."""
    refusals: list[str] = []
    for name in names:
        why = refusal([probe[0], f"+{name}", *probe[1:]])
        if why is None:
            return name, refusals
        refusals.append(f"  {name}: {why}")
    return None, refusals


def host(toolchain: str) -> str:
    command = ["rustc", f"+{toolchain}", "-vV"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    named = re.search(r"^host: (.+)$", version, re.MULTILINE)
    assert named is not None, "rustc names its host"
    return named[1]


def sanitize(toolchain: str) -> bool:
    """The tests of core and kernels with AddressSanitizer; whether they passed."""
    return all(sanitize_package(toolchain, *each) for each in SANITIZED.items())


def sanitize_package(toolchain: str, package: str, folder: str) -> bool:
    environment = {
        **os.environ,
        "CARGO_TARGET_DIR": target_folder("address"),
        "CARGO_PROFILE_DEV_DEBUG": "line-tables-only",
        "RUSTFLAGS": "-Zsanitizer=address",
        "PROPTEST_CASES": SANITIZED_CASES,
        # What a lost device may read still is left behind on purpose (`Pinned::abandon`).
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    # With --target, build scripts and macros are left alone. The stand-in for the driver, a shared
    # library, takes the sanitizer's functions from the program that loads it.
    command = ["cargo", f"+{toolchain}", "rustc", "--quiet", "--package", package, "--lib"]
    command += ["--profile", "test", "--target", host(toolchain), "--message-format", "json"]
    command += ["--", "-Clink-arg=-Wl,--export-dynamic"]
    built = subprocess.run(
        command, cwd=WORKSPACE, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if built.returncode != 0:
        return False
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    (binary,) = [message["executable"] for message in messages if message.get("executable")]
    tests = [binary, "--quiet"]
    return (
        subprocess.run(tests, cwd=WORKSPACE / folder, env=environment, check=False).returncode == 0
    )


def interpret(toolchain: str) -> bool:
    """The tests of the pure parts in Miri; whether they passed."""
    environment = {
        **os.environ,
        "CARGO_TARGET_DIR": target_folder("miri"),
        "MIRIFLAGS": "-Zmiri-disable-isolation",  # the clock, and proptest's working directory
        "PROPTEST_CASES": INTERPRETED_CASES,
    }
    command = ["cargo", f"+{toolchain}", "miri", "test", "--quiet", "--package", PACKAGE, "--lib"]
    command += ["--", *PURE, *(word for name in SLOW for word in ("--skip", name))]
    return subprocess.run(command, cwd=WORKSPACE, env=environment, check=False).returncode == 0


CHECKS: tuple[tuple[str, Sequence[str], Callable[[str], bool]], ...] = (
    ("AddressSanitizer", ("rustc", "-Zhelp"), sanitize),
    ("Miri", ("cargo", "miri", "setup"), interpret),
)


def main() -> int:
    names = toolchains()
    passed = True
    for check, probe, run in CHECKS:
        found, refusals = first_that_works(names, probe)
        if found is None:
            why = [*refusals, "  get one: " + GET_NIGHTLY] if names else ["  there is no rustup"]
            print(f"{check}: skipped, no toolchain has it:", *why, sep="\n", flush=True)
            continue
        print(f"{check}, by {found}:", flush=True)
        passed = run(found) and passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
