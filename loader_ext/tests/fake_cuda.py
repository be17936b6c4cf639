"""Python's hand on the stand-in for the NVIDIA driver (`loader_ext/fake_cuda`)."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

WORKSPACE = Path(__file__).parents[1]
SCHEDULES = {"eager": 0, "lazy": 1, "random": 2}


def build() -> Path:
    """The shared object, built if it is not there."""
    command = ["cargo", "build", "--quiet", "-p", "stoker-fake-cuda", "--message-format=json"]
    done = subprocess.run(command, cwd=WORKSPACE, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    (path,) = (
        name
        for message in messages
        for name in message.get("filenames", ())
        if name.endswith("libstoker_fake_cuda.so")
    )
    return Path(path)


@dataclass(frozen=True, slots=True)
class Living:
    """What the library's callers have not given back."""

    contexts: int
    streams: int
    events: int
    allocations: int
    pinned: int


class StandIn:
    """One machine: the file is a copy, so the linker loads it as a library of its own."""

    def __init__(
        self, built: Path, directory: Path, devices: int, schedule: str, seed: int
    ) -> None:
        self.path = directory / "libcuda.so.1"
        shutil.copy(built, self.path)
        self._library = ctypes.CDLL(str(self.path))
        self._library.fake_cuda_misuse.restype = ctypes.c_uint64
        self._library.fake_cuda_calls.restype = ctypes.c_uint64
        self._library.fake_cuda_forget.restype = ctypes.c_bool
        self._library.fake_cuda_configure(
            ctypes.c_size_t(devices), SCHEDULES[schedule], ctypes.c_uint64(seed)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._library.fake_cuda_forget(), "copies are still queued"

    def unify(self) -> None:
        """From now on memory of the host passes for memory of any device."""
        self._library.fake_cuda_unify()

    def fail_call(self, symbol: str, nth: int, status: int) -> None:
        """The n-th call of a function from now on fails."""
        self._library.fake_cuda_fail_call(symbol.encode(), ctypes.c_uint64(nth), status)

    def calls(self, symbol: str) -> int:
        """Calls of a function so far."""
        return int(self._library.fake_cuda_calls(symbol.encode()))

    def allocate(self, device: int, size_bytes: int) -> int:
        """Memory of a device, by a context that the caller keeps."""
        context, address = ctypes.c_void_p(), ctypes.c_uint64()
        assert self._library.cuInit(0) == 0
        assert self._library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
        assert self._library.cuCtxSetCurrent(context) == 0
        size = ctypes.c_size_t(size_bytes)
        assert self._library.cuMemAlloc_v2(ctypes.byref(address), size) == 0
        return address.value

    def read(self, address: int, size_bytes: int) -> bytearray:
        """What device memory holds now."""
        found = bytearray(size_bytes)
        place = (ctypes.c_char * size_bytes).from_buffer(found)
        status = self._library.cuMemcpyDtoH_v2(
            place, ctypes.c_uint64(address), ctypes.c_size_t(size_bytes)
        )
        assert status == 0
        return found

    def living(self) -> Living:
        """What is alive now."""
        counts = (ctypes.c_uint64 * 5)()
        self._library.fake_cuda_living(counts)
        return Living(*counts)

    def misuse(self) -> tuple[int, str]:
        """How often the library was misused, and how for the first time."""
        text = ctypes.create_string_buffer(200)
        count = self._library.fake_cuda_misuse(text, ctypes.c_size_t(200))
        return int(count), text.value.decode()
