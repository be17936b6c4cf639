"""A line to a server that resets connections in the middle of what comes back."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field

PIECE_BYTES = 64 << 10
RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time (socket(7))


@dataclass
class BrokenLine:
    """Passes bytes on both ways; the first `times` connections on which the server says so much are
    reset after `reset_after_bytes` of that, and `on_reset` is called."""

    server: tuple[str, int]
    reset_after_bytes: int
    times: int
    on_reset: Callable[[], object] = lambda: None
    resets: int = 0
    passed_bytes: int = 0  # of what the server said
    address: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def carry(self, client: socket.socket) -> None:
        """One connection, from its beginning to its end."""
        with closing(client), ExitStack() as closing_server:
            try:
                server = closing_server.enter_context(socket.create_connection(self.server))
            except OSError:
                return  # it is down, and so is the line
            upwards = threading.Thread(target=_pump, args=(client, server, None))
            upwards.start()
            passed_bytes = _pump(server, client, self.reset_after_bytes)
            with self._lock:
                breaks = passed_bytes >= self.reset_after_bytes and self.resets < self.times
                self.resets += breaks
            if breaks:
                self.on_reset()
            else:
                passed_bytes += _pump(server, client, None)
            with self._lock:
                self.passed_bytes += passed_bytes
            if breaks:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            _end(server)
            # What is closed while another thread reads it stays open until that one returns.
            if breaks:
                _end(client, socket.SHUT_RD)
            upwards.join()


def _pump(source: socket.socket, sink: socket.socket, limit: int | None) -> int:
    """Passes on what comes until it ends, or so many bytes; how many there were."""
    passed = 0
    try:
        while limit is None or passed < limit:
            wanted = PIECE_BYTES if limit is None else min(PIECE_BYTES, limit - passed)
            if not (data := source.recv(wanted)):
                break
            sink.sendall(data)
            passed += len(data)
    except OSError:
        pass  # the other side went away, which is an end like any other
    if limit is None:
        _end(sink)
    return passed


def _end(one: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    with suppress(OSError):  # it may have ended already
        one.shutdown(how)


@contextmanager
def broken_line(
    address: str,
    reset_after_bytes: int,
    times: int,
    on_reset: Callable[[], object] = lambda: None,
) -> Iterator[BrokenLine]:
    """A line to `address` ("host:port") on a free loopback port while the context is open."""
    host, _, port = address.rpartition(":")
    line = BrokenLine((host, int(port)), reset_after_bytes, times, on_reset)
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as carriers:
        line.address = f"127.0.0.1:{listener.getsockname()[1]}"

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return  # nobody listens any more
                carrier = threading.Thread(target=line.carry, args=(client,))
                carrier.start()
                carriers.callback(carrier.join, 30)

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield line
        finally:
            _end(listener)
            acceptor.join(30)
