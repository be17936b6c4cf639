"""A real MinIO server, on loopback unless told otherwise, in a folder of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / ".cache" / "bin" / "minio"
START_TIMEOUT_S = 60
KEPT_LINES = 200
STOP_TIMEOUT_S = 20


def executable() -> Path | None:
    """The server on PATH, else the one that `make minio` built."""
    found = shutil.which("minio")
    return Path(found) if found else BUILT if BUILT.exists() else None


class _Said:
    """Reads what a server prints, so that it never waits for us to."""

    def __init__(self, output: IO[str] | None) -> None:
        assert output is not None
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.listening = threading.Event()  # or it has ended
        threading.Thread(target=self._read, args=(output,), daemon=True).start()

    def _read(self, output: IO[str]) -> None:
        with output:
            for line in output:
                self.lines.append(line)
                if line.startswith("API:"):
                    self.listening.set()
        self.listening.set()


@dataclass
class Minio:
    """A server that may be stopped and started again over the same folder and address."""

    folder: Path
    address: str
    console: str
    user: str = "stoker-test"
    password: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    extra: dict[str, str] = field(default_factory=dict)  # environment of the server
    before: tuple[str, ...] = ()  # what its command begins with
    _process: subprocess.Popen[str] | None = None
    _said: _Said | None = None

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}"

    @property
    def environment(self) -> Mapping[str, str]:
        """What finds it, and lets in."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.user,
            "AWS_SECRET_ACCESS_KEY": self.password,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def start(self) -> None:
        """Returns when it answers."""
        program = executable()
        assert program is not None
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [
                *self.before,
                program,
                "server",
                str(self.folder / "data"),
                f"--address={self.address}",
                f"--console-address={self.console}",
            ],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "MINIO_ROOT_USER": self.user,
                "MINIO_ROOT_PASSWORD": self.password,
                "MINIO_UPDATE": "off",
                **self.extra,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._said = _Said(self._process.stdout)
        if not self._said.listening.wait(START_TIMEOUT_S) or self._process.poll() is not None:
            self.stop()
            raise RuntimeError("minio did not start: " + "".join(self._said.lines))

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Ends it; by default as a crash would."""
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.wait(STOP_TIMEOUT_S)
        self._process = None


@contextmanager
def running(
    folder: Path, *, host: str = "127.0.0.1", before: tuple[str, ...] = (), **extra: str
) -> Iterator[Minio]:
    """A server with an empty folder, until the end. `before` its command may come words that put it
    elsewhere, where it then listens on `host`."""
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    address, console = (f"{host}:{port.getsockname()[1]}" for port in ports)
    for port in ports:
        port.close()
    server = Minio(folder, address, console, extra=extra, before=before)
    server.start()
    try:
        yield server
    finally:
        server.stop()
