"""Connections to instances: one keep-alive HTTP client a Unix socket, and their line streams.

This hop is part of every warm answer, so its client is aiohttp, whose parser is compiled: a
third of the CPU time that httpx takes for it (ARCHITECTURE.md, decisions).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import aiohttp
from pydantic import ValidationError

from stoker.domain import InstanceId
from stoker.errors import InstanceLost, StokerError
from stoker.gateway.exchange import Exchange
from stoker.gateway.faults import error_of, error_of_response
from stoker.scheduler.lease import Lease

E = TypeVar("E")

MAX_CLIENTS = 256  # instances talked to lately; the longest unused is closed first
MAX_CONNECTIONS = 1024  # to one instance: above any `scale.hard_limit`
CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 3600.0  # between two pieces of an answer: a handler may compute for long
KEEPALIVE_S = 4.0  # below the 5 s after which a worker closes an idle connection: never a race
MAX_LINE_BYTES = 64 << 20  # of one event

_ORIGIN = "http://instance"
_HEADERS = {"content-type": "application/json"}
_OMITTED_HEADERS = ("accept", "accept-encoding", "user-agent")
_TIMEOUT = aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S)
_OK = 200


class Unreachable(InstanceLost):
    """Nothing was sent: the instance's socket takes no connection."""


@dataclass(slots=True)
class _Peer:
    client: aiohttp.ClientSession
    streams: int = 0


class Instances:
    """The pool of clients. `running` says which instances there are, so that clients of those
    that are gone are closed; it is asked only when a new instance is met."""

    def __init__(
        self, running: Callable[[], Collection[InstanceId]], limit: int = MAX_CLIENTS
    ) -> None:
        self._running = running
        self._limit = limit
        self._peers: OrderedDict[InstanceId, _Peer] = OrderedDict()  # longest unused first

    def __len__(self) -> int:
        return len(self._peers)

    @asynccontextmanager
    async def open(self, lease: Lease, exchange: Exchange[E]) -> AsyncIterator[Reply[E]]:
        """Sends the exchange; yields its reply once the instance accepted it. Leaving the
        context early closes the connection, and with that cancels the instance's work.

        Raises Unreachable, InstanceLost, and what the instance answered instead of a stream.
        """
        peer = await self._peer(lease)
        peer.streams += 1
        try:
            try:
                response = await peer.client.post(_ORIGIN + exchange.path, data=exchange.body())
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                raise Unreachable(_lost(lease, error)) from error
            except aiohttp.ClientError as error:
                raise InstanceLost(_lost(lease, error)) from error
            async with response:
                if response.status != _OK:
                    raise error_of_response(response.status, await _read(lease, response))
                yield Reply(lease, exchange, response)
        finally:
            peer.streams -= 1

    async def forget(self, instance: InstanceId) -> None:
        """Closes the client of an instance that is gone, unless streams still end on it."""
        peer = self._peers.get(instance)
        if peer is not None and peer.streams == 0:
            del self._peers[instance]
            await peer.client.close()

    async def aclose(self) -> None:
        """Closes every client."""
        async with AsyncExitStack() as closing:
            while self._peers:
                closing.push_async_callback(self._peers.popitem()[1].client.close)

    async def _peer(self, lease: Lease) -> _Peer:
        peer = self._peers.get(lease.instance_id)
        if peer is None:
            peer = self._peers[lease.instance_id] = _Peer(_client(lease))
            peer.streams += 1  # not to be closed by the sweep
            try:
                await self._sweep()
            finally:
                peer.streams -= 1
        else:
            self._peers.move_to_end(lease.instance_id)
        return peer

    async def _sweep(self) -> None:
        running = self._running()
        for instance in [known for known in self._peers if known not in running]:
            await self.forget(instance)
        for instance in list(self._peers)[: max(0, len(self._peers) - self._limit)]:
            await self.forget(instance)


class Reply(Generic[E]):
    """An answer under way: events in batches, as they arrived together."""

    def __init__(
        self, lease: Lease, exchange: Exchange[E], response: aiohttp.ClientResponse
    ) -> None:
        self._lease = lease
        self._exchange = exchange
        self._content = response.content
        self._pieces: list[bytes] = []  # of a line that is not complete
        self._pieces_bytes = 0
        self._fault: StokerError | None = None  # to raise once what came before it is read
        self._ended = False

    async def read(self) -> list[E]:
        """The next batch; empty when the answer is complete. The connection is then read to its
        end, so that it can be used again.

        Raises InstanceLost when the stream breaks off, and the error that an event carries.
        """
        while True:
            if self._fault is not None:
                raise self._fault
            lines = await self._lines()
            if lines is None:
                if self._ended:
                    return []
                raise InstanceLost(
                    f"instance {self._lease.instance_id} broke off its answer",
                    details={"instance": self._lease.instance_id},
                )
            batch = [] if self._ended else self._events(lines)
            if batch:
                return batch

    def _events(self, lines: list[bytes]) -> list[E]:
        batch: list[E] = []
        for line in lines:
            event = self._decode(line)
            self._ended = self._exchange.ends(event)
            fault = self._exchange.fault(event)
            if fault is not None:
                self._fault = error_of(fault)
                break
            batch.append(event)
        return batch

    def _decode(self, line: bytes) -> E:
        try:
            return self._exchange.decode(line)
        except ValidationError as error:
            # Not chained: a validation error quotes its input, and that may be a user's.
            raise InstanceLost(
                f"instance {self._lease.instance_id} sent what is no event of "
                f"{self._exchange.path} ({error.error_count()} errors in {len(line)} bytes)",
                details={"instance": self._lease.instance_id},
            ) from None

    async def _lines(self) -> list[bytes] | None:
        """Complete lines of the next chunk (often one, maybe none); None at the end."""
        try:
            chunk = await self._content.readany()
        except aiohttp.ClientError as error:
            raise InstanceLost(
                _lost(self._lease, error), details={"instance": self._lease.instance_id}
            ) from error
        if not chunk:
            rest, self._pieces = b"".join(self._pieces), []
            return [rest] if rest else None
        head, found, tail = chunk.rpartition(b"\n")
        if not found:
            self._pieces.append(tail)
            self._pieces_bytes += len(tail)
            if self._pieces_bytes > MAX_LINE_BYTES:
                raise InstanceLost(
                    f"instance {self._lease.instance_id} sent a line of more than "
                    f"{MAX_LINE_BYTES} bytes"
                )
            return []
        whole = b"".join([*self._pieces, head])
        self._pieces, self._pieces_bytes = [tail] if tail else [], len(tail)
        return [line for line in whole.split(b"\n") if line]


async def _read(lease: Lease, response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.read()
    except aiohttp.ClientError as error:
        raise InstanceLost(_lost(lease, error)) from error


def _client(lease: Lease) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(
            str(lease.socket), limit=MAX_CONNECTIONS, keepalive_timeout=KEEPALIVE_S
        ),
        timeout=_TIMEOUT,
        headers=_HEADERS,
        skip_auto_headers=_OMITTED_HEADERS,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def _lost(lease: Lease, error: aiohttp.ClientError) -> str:
    reason = str(error) or type(error).__name__
    return f"instance {lease.instance_id} was lost: {reason}"
