"""What the package does where neither torch nor safetensors is: run by `test_without_torch`.

`python -I without_torch.py DIRECTORY`: prints `done` if all of it held. With `--blocked` torch and
safetensors cannot be imported even where they are installed.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

ABSENT = ("torch", "safetensors", "transformers")


class Absent(MetaPathFinder):
    """Makes some packages as good as not installed."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


if "--blocked" in sys.argv:
    sys.meta_path.insert(0, Absent())

import numpy as np  # noqa: E402

import stoker_loader as sl  # noqa: E402
from stoker_loader import errors  # noqa: E402

ROWS = np.arange(3 << 20, dtype=np.float32).reshape(1024, -1)
SMALL = np.arange(5, dtype=np.int64)


def write(path: Path) -> None:
    """A safetensors file, by the format alone."""
    header, data = {}, b""
    for name, dtype, array in (("rows", "F32", ROWS), ("small", "I64", SMALL)):
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": offsets}
        data += array.tobytes()
    header["half"] = {"dtype": "BF16", "shape": [2], "data_offsets": [len(data), len(data) + 4]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data + b"\x80\x3f\x00\x40")


class Ranges(BaseHTTPRequestHandler):
    """Serves `body` by ranges."""

    protocol_version = "HTTP/1.1"
    body = b""

    def do_GET(self) -> None:
        first, last = map(int, self.headers["range"].removeprefix("bytes=").split("-"))
        span = self.body[first : last + 1]
        self.send_response(206)
        self.send_header("content-range", f"bytes {first}-{first + len(span) - 1}/{len(self.body)}")
        self.send_header("content-length", str(len(span)))
        self.send_header("etag", '"one"')
        self.end_headers()
        self.wfile.write(span)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Nobody reads it."""


def main(directory: Path) -> None:
    source, laid = directory / "source.safetensors", directory / "laid"
    write(source)
    report = sl.layout(source, laid)
    sl.verify(laid, report.digest)
    with sl.open(laid, verify=True) as checkpoint:
        checkpoint.populate()
        assert np.array_equal(checkpoint.numpy("rows"), ROWS)
        assert np.array_equal(checkpoint.numpy("small"), SMALL)
        assert checkpoint.numpy("half").tolist() == [0x3F80, 0x4000]  # the bits of 1 and 2
        assert checkpoint.stats.verified_bytes == checkpoint.stats.checkpoint_bytes
        native = checkpoint._native
        assert native is not None
        buffer = memoryview(native.buffer(0))
        info = checkpoint.info("rows")
        raw = buffer[info.offset_bytes : info.offset_bytes + info.size_bytes]
        assert raw == ROWS.tobytes()
        for ask in (checkpoint.load, lambda: checkpoint.tensor("small")):
            try:
                ask()
            except ModuleNotFoundError as error:
                assert error.name == "torch"  # noqa: PT017 - pytest is not here either
            else:
                raise AssertionError("torch was there")

    Ranges.body = (laid / "model.safetensors").read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fetched = sl.fetch(
            f"http://127.0.0.1:{server.server_port}/w",
            directory / "fetched.safetensors",
            expected=sl.sidecar_digest(laid / "model.stx"),
        )
        server.shutdown()
    sl.verify(directory / "fetched.safetensors", sl.digest(laid / "model.safetensors").root)
    assert sum(fetched.stats.bytes_by_source) == len(Ranges.body)

    assert sl.prefetch(laid) == sl.residency(laid).checkpoint_bytes
    sl.evict(laid)
    try:
        sl.open(directory / "gone")
    except errors.CheckpointNotFoundError:
        pass
    else:
        raise AssertionError("nothing was there")
    assert sys.modules.keys().isdisjoint(ABSENT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    print("done")
