"""A file system in which a file's bytes can be read up to a place, and fail with EIO behind it.

It speaks the kernel's own protocol (<linux/fuse.h>, version 7.31) on /dev/fuse, so that reads,
read-ahead and page faults fail as they do on a disk with a bad sector. It runs as a process of its
own: whoever waits for a page must not be who brings it. `python failing_disk.py FOLDER FILE BYTE`
serves FILE as FOLDER/FILE's name until it is unmounted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT_NODE, FILE_NODE = 1, 2
MAX_REQUEST_BYTES = (128 << 10) + 4096
PAGE_BYTES = 4096
IN_HEADER = struct.Struct("<IIQQIIII")
OUT_HEADER = struct.Struct("<IiQ")
ATTRIBUTES = struct.Struct("<6Q10I")
INIT_REPLY = struct.Struct("<4I2H2I2H8I")
LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH = 1, 2, 3, 14, 15, 18, 25
INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = 26, 27, 28, 29, 36, 42
SILENT = {FORGET, BATCH_FORGET, INTERRUPT}
EMPTY = {RELEASE, RELEASEDIR, FLUSH, READDIR}


class Server:
    """Answers the kernel's requests for one file."""

    def __init__(self, device: int, source: Path, good_bytes: int) -> None:
        self.device = device
        self.name = source.name.encode()
        self.file = os.open(source, os.O_RDONLY)
        self.size_bytes = os.fstat(self.file).st_size
        self.good_bytes = good_bytes

    def serve(self) -> None:
        """Answers until it is unmounted."""
        while True:
            try:
                request = os.read(self.device, MAX_REQUEST_BYTES)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                raise
            _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
            if opcode in SILENT:
                continue
            try:
                status, body = 0, self.answer(opcode, node, request[IN_HEADER.size :])
            except OSError as error:
                status, body = -(error.errno or errno.EIO), b""
            os.write(
                self.device, OUT_HEADER.pack(OUT_HEADER.size + len(body), status, unique) + body
            )

    def answer(self, opcode: int, node: int, body: bytes) -> bytes:
        if opcode == INIT:
            minor, read_ahead_bytes = 31, struct.unpack_from("<3I", body)[2]
            pages = (128 << 10) // PAGE_BYTES
            return INIT_REPLY.pack(
                7, minor, read_ahead_bytes, 0, 8, 6, PAGE_BYTES, 1, pages, *[0] * 9
            )
        if opcode == LOOKUP:
            if body.rstrip(b"\0") != self.name:
                raise OSError(errno.ENOENT, "there is one file alone")
            return struct.pack("<4Q2I", FILE_NODE, 0, 60, 60, 0, 0) + self.attributes(FILE_NODE)
        if opcode == GETATTR:
            return struct.pack("<Q2I", 60, 0, 0) + self.attributes(node)
        if opcode in (OPEN, OPENDIR):
            return struct.pack("<Q2I", 0, 0, 0)
        if opcode == READ:
            _, offset, length = struct.unpack_from("<2QI", body)
            if min(offset + length, self.size_bytes) > self.good_bytes:
                raise OSError(errno.EIO, "bad sector")
            return os.pread(self.file, length, offset)
        if opcode in EMPTY:
            return b""
        raise OSError(errno.ENOSYS, "not needed")

    def attributes(self, node: int) -> bytes:
        mode = stat.S_IFDIR | 0o755 if node == ROOT_NODE else stat.S_IFREG | 0o444
        size = 0 if node == ROOT_NODE else self.size_bytes
        times = [0] * 6
        owner = [os.getuid(), os.getgid()]
        return ATTRIBUTES.pack(
            node, size, -(-size // 512), *times[:3], *times[3:], mode, 1, *owner, 0, PAGE_BYTES, 0
        )


def mount(kind: str, folder: Path, options: str) -> None:
    """mount(2). Raises OSError, EPERM without the right to."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = (kind.encode(), os.fsencode(folder), kind.encode(), 0, options.encode())
    if libc.mount(*words) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount {kind}")


def unmount(folder: Path) -> None:
    """umount2(2), also of what is in use still. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(folder), 2) != 0:  # MNT_DETACH
        raise OSError(ctypes.get_errno(), "cannot unmount")


@contextmanager
def failing_disk(folder: Path, source: Path, good_bytes: int) -> Iterator[Path]:
    """The path of a copy of `source` that cannot be read behind `good_bytes`.

    Raises PermissionError where nothing can be mounted.
    """
    command = [sys.executable, __file__, str(folder), str(source), str(good_bytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = server.stdout.readline().strip()
        if said != "mounted":
            raise PermissionError(said or "the server ended")
        try:
            yield folder / source.name
        finally:
            unmount(folder)
            # It would serve on as long as a mapping is left, which a test that fails keeps.
            server.kill()


def main() -> None:
    folder, source, good_bytes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        mount("fuse", folder, options)
    except OSError as error:
        print(error, flush=True)
        return
    print("mounted", flush=True)
    Server(device, source, good_bytes).serve()


if __name__ == "__main__":
    main()
