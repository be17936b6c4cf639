#!/usr/bin/env python3
"""Runs the native loader's tests under AddressSanitizer, and its pure parts under Miri.

Both need a nightly toolchain of Rust; Miri also its components `miri` and `rust-src`. What is not
there is skipped, with its reason. AddressSanitizer sees every access of the core's tests to memory
that is not theirs, those through the stand-in for the NVIDIA driver included; Miri sees undefined
behaviour of any kind, but knows no mapped files. The first build takes about ten minutes on two
cores, and later ones one; nothing of it is part of `make test`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WORKSPACE = Path(__file__).resolve().parents[1] / "loader_ext"
PACKAGE = "stoker-loader-core"
# The parsers and the decisions: no system calls but those of the tests' own clock.
PURE = (
    "header::",
    "sidecar::",
    "index::",
    "dtype::",
    "names::",
    "fetch::ledger::",
    "layout::plan::",
    "parallel::plan::",
)
# Pads by megabytes, of which an interpreter has to write each byte.
SLOW = "a_large_file_begins_on_a_huge_page"
# Of each property; a search for new cases is `make fuzz`.
SANITIZED_CASES, INTERPRETED_CASES = "32", "2"


def target_folder(name: str) -> str:
    """Apart from the usual builds, whose flags are others."""
    base = Path(os.environ.get("CARGO_TARGET_DIR", WORKSPACE / "target"))
    return str(base / f"check-{name}")


def missing(command: Sequence[str]) -> str | None:
    """Why a tool cannot be used, or None if it can."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"{command[0]} is not installed"
    lines = done.stderr.strip().splitlines() or [""]
    return None if done.returncode == 0 else lines[0].removeprefix("error: ")


def nightly_host() -> str:
    command = ["rustc", "+nightly", "-vV"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    host = re.search(r"^host: (.+)$", version, re.MULTILINE)
    assert host is not None, "rustc names its host"
    return host[1]


def sanitize() -> bool:
    """The core's tests with AddressSanitizer; whether they passed."""
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
    command = ["cargo", "+nightly", "rustc", "--quiet", "--package", PACKAGE, "--lib"]
    command += ["--profile", "test", "--target", nightly_host(), "--message-format", "json"]
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
        subprocess.run(tests, cwd=WORKSPACE / "core", env=environment, check=False).returncode == 0
    )


def interpret() -> bool:
    """The tests of the pure parts in Miri; whether they passed."""
    environment = {
        **os.environ,
        "CARGO_TARGET_DIR": target_folder("miri"),
        "MIRIFLAGS": "-Zmiri-disable-isolation",  # the clock, and proptest's working directory
        "PROPTEST_CASES": INTERPRETED_CASES,
    }
    command = ["cargo", "+nightly", "miri", "test", "--quiet", "--package", PACKAGE, "--lib"]
    command += ["--", *PURE, "--skip", SLOW]
    return subprocess.run(command, cwd=WORKSPACE, env=environment, check=False).returncode == 0


def main() -> int:
    passed = True
    for name, probe, check in (
        ("AddressSanitizer", ["cargo", "+nightly", "--version"], sanitize),
        ("Miri", ["cargo", "+nightly", "miri", "--version"], interpret),
    ):
        if reason := missing(probe):
            print(f"{name}: skipped: {reason}", flush=True)
            continue
        print(f"{name}:", flush=True)
        passed = check() and passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
