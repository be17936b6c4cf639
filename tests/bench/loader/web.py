"""nginx over one folder at the end of a link; and curl, which reads that and keeps nothing."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.loader.network import Link
from tests.bench.loader.processes import MEASURE_TIMEOUT_S, MeasureFailedError

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
STREAMS = (1, 2, 4, 8)  # ranged GETs at once, each by a process of its own

_CONFIGURATION = """
daemon off; pid {run}/pid; error_log {run}/error.log; worker_processes auto; user root;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; tcp_nopush on; sendfile_max_chunk 2m; etag on;
  client_body_temp_path {run}/a; proxy_temp_path {run}/b; fastcgi_temp_path {run}/c;
  uwsgi_temp_path {run}/d; scgi_temp_path {run}/e;
  server {{ listen {address}:{port} reuseport; root {root}; }}
}}
"""


class NoServerError(Exception):
    """nginx or curl is not there, or does not start; the message says why."""


@contextmanager
def serving(root: Path, link: Link) -> Iterator[str]:
    """nginx over the files of `root` (absolute); the URL of it. Raises NoServerError."""
    if not shutil.which("nginx") or not shutil.which("curl"):
        raise NoServerError("nginx and curl are needed")
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="stoker-bench-nginx-") as run:
        configuration = Path(run) / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(run=run, root=root, address=link.address, port=port)
        )
        server = subprocess.Popen(
            [*link.at_server, "nginx", "-p", run, "-c", str(configuration)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        url = f"http://{link.address}:{port}"
        try:
            _await_answer(link, url, server)
            yield url
        finally:
            server.terminate()
            try:
                server.communicate(timeout=STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.communicate()


def raw_bytes_per_s(link: Link, url: str, size_bytes: int, streams: int) -> float:
    """The whole of `url` once, in as many ranges at a time, to nowhere. Raises
    MeasureFailedError."""
    began = time.perf_counter()
    part_bytes = -(-size_bytes // streams)
    readers = [
        subprocess.Popen(
            [
                *link.at_client,
                *("curl", "--silent", "--show-error", "--fail", "--output", "/dev/null"),
                *("--range", f"{start}-{min(start + part_bytes, size_bytes) - 1}", url),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for start in range(0, size_bytes, part_bytes)
    ]
    for reader in readers:
        _, errors = reader.communicate(timeout=MEASURE_TIMEOUT_S)
        if reader.returncode:
            raise MeasureFailedError(f"curl: {errors.strip()}")
    return size_bytes / (time.perf_counter() - began)


def _await_answer(link: Link, url: str, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    probe = [*link.at_client, "curl", "--silent", "--output", "/dev/null", "--head", url]
    while subprocess.run(probe, check=False).returncode:
        if server.poll() is not None or time.monotonic() > deadline:
            _, errors = server.communicate() if server.poll() is not None else ("", "no answer")
            raise NoServerError(f"nginx: {errors.strip()}")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
