"""Starts the peers: Transformers in fresh processes, and a bare relay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
# No peer may lose time by asking a model hub whether its local files are the newest.
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
STOP_TIMEOUT_S = 30.0


def _python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def first_token_s(checkpoint: Path, prompt: str) -> tuple[float, str]:
    """Seconds from nothing (no process) to the first token of a fresh one, and that token."""
    command = _python("tests.bench.peer", "first", str(checkpoint), prompt)
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
    if not line:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}")
    return seconds, str(json.loads(line)["text"])


class Decoder:
    """A resident Transformers model that decodes on request."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.threads = int(self._read()["threads"])

    def decode_s(self, tokens: int) -> float:
        """Seconds from the first of `tokens` tokens to the last."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{tokens}\n")
        self._process.stdin.flush()
        return self._read()["decode_s"]

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the Transformers peer exited with {self._process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer


@contextmanager
def decoder(checkpoint: Path, prompt: str) -> Iterator[Decoder]:
    """A `Decoder`, ready when the context opens and gone when it ends."""
    with subprocess.Popen(
        _python("tests.bench.peer", "serve", str(checkpoint), prompt),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield Decoder(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def relay(socket: Path) -> Iterator[str]:
    """The address of a bare Starlette + httpx relay in front of an instance's Unix socket."""
    with subprocess.Popen(
        _python("tests.bench.relay", str(socket)), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the relay exited with {process.wait()}")
            yield line.strip()
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
