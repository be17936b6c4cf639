#!/usr/bin/env python3
"""Searches inputs of the loader's parsers for one that breaks a promise, with libFuzzer.

Builds `loader_ext/fuzz` with the instrumentation that cargo-fuzz uses, by plain cargo, and runs
each target so many times from its seeds and from what earlier runs found (in `.cache/fuzz`). An
input that breaks a promise is written there too, and the command fails. How often each target was
run since the folder was made is in `.cache/fuzz/runs.json`, which `--publish` copies to `docs`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FUZZ = ROOT / "loader_ext" / "fuzz"
CACHE = ROOT / ".cache" / "fuzz"
PUBLISHED = ROOT / "docs" / "loader-fuzzing.json"
TARGETS = tuple(sorted(path.stem for path in (FUZZ / "fuzz_targets").glob("*.rs")))
DICTIONARIES = {"header": "json.dict", "index": "json.dict", "sidecar": "json.dict"}
MAX_INPUT_BYTES = 2048
# What cargo-fuzz 0.13 passes, without a sanitizer: what is fuzzed is free of unsafe code, or
# reaches it (`arrival`) in ways that the checks themselves look at.
INSTRUMENTATION = (
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
)


def build() -> Path:
    """Builds all targets; returns the folder that they are in."""
    version = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    host = re.search(r"^host: (.+)$", version, re.MULTILINE)
    if host is None:
        raise SystemExit("rustc -vV names no host")
    # With --target, build scripts and macros are not instrumented.
    command = ["cargo", "build", "--quiet", "--release", "--target", host[1]]
    target = Path(os.environ.get("CARGO_TARGET_DIR", FUZZ / "target"))
    environment = {**os.environ, "RUSTFLAGS": " ".join(INSTRUMENTATION)}
    subprocess.run(command, cwd=FUZZ, env=environment, check=True)
    return target / host[1] / "release"


def run(binary: Path, runs: int) -> int:
    """Runs a target; returns how often its check was executed."""
    found, artifacts = CACHE / "corpus" / binary.name, CACHE / "broken"
    found.mkdir(parents=True, exist_ok=True)
    artifacts.mkdir(exist_ok=True)
    command = [
        str(binary),
        f"-runs={runs}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-artifact_prefix={artifacts / binary.name}-",
        "-print_final_stats=1",
        "-verbosity=0",
        str(found),
        str(FUZZ / "corpus" / binary.name),
    ]
    if binary.name in DICTIONARIES:
        command.insert(1, f"-dict={FUZZ / DICTIONARIES[binary.name]}")
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        environment = {**os.environ, "TMPDIR": scratch}
        done = subprocess.run(
            command, env=environment, stderr=subprocess.PIPE, text=True, check=False
        )
    executed = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    if done.returncode != 0 or executed is None:
        sys.stderr.write(done.stderr)
        raise SystemExit(f"{binary.name}: an input breaks a promise; it is in {artifacts}")
    return int(executed[1])


def count(target: str, executions: int) -> dict[str, int]:
    """Adds to the executions of a target, and returns those of all."""
    path = CACHE / "runs.json"
    counts: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    counts[target] = counts.get(target, 0) + executions
    path.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="of each target")
    parser.add_argument("--publish", action="store_true", help="copy the counts to docs")
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(TARGETS))
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    binaries = build()
    for target in arguments.targets or TARGETS:
        executions = run(binaries / target, arguments.runs)
        counts = count(target, executions)
        print(f"{target}: {executions} executions, {counts[target]} in all", flush=True)
    if arguments.publish:
        shutil.copy(CACHE / "runs.json", PUBLISHED)


if __name__ == "__main__":
    main()
