"""Connections to instances: kept alive between requests, one for each that is under way."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import TypeVar

from stoker.domain import InstanceId
from stoker.errors import InstanceLost
from stoker.gateway.connection import Connection, ConnectionBroken, connect
from stoker.gateway.exchange import Exchange
from stoker.gateway.faults import error_of_response
from stoker.gateway.reply import Reply
from stoker.scheduler.lease import Lease

E = TypeVar("E")

MAX_PEERS = 256  # instances talked to lately; the longest unused is let go of first
KEEPALIVE_S = 4.0  # below the 5 s after which a worker closes an idle connection: never a race
MAX_ERROR_BYTES = 64 << 10  # of what an instance says instead of a stream

_OK = 200


class Unreachable(InstanceLost):
    """Nothing was sent: the instance's socket takes no connection."""


class _Peer:
    """The connections to one instance. There are never more than it has leases, which
    `scale.hard_limit` bounds."""

    def __init__(self) -> None:
        self.streams = 0
        self._idle: deque[Connection] = deque()  # longest unused first
        self._closed = False

    def take(self) -> Connection | None:
        """An idle connection that the instance is not about to close."""
        while self._idle:
            connection = self._idle.pop()
            if _fresh(connection):
                return connection
            connection.close()
        return None

    def give_back(self, connection: Connection) -> None:
        """Keeps it for the next request, if it can carry one."""
        while self._idle and not _fresh(self._idle[0]):
            self._idle.popleft().close()
        if connection.reusable and not self._closed:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Closes what is idle now, and what is given back later."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


class Instances:
    """The pool of connections. `running` says which instances there are, so that connections to
    those that are gone are closed; it is asked only when a new instance is met."""

    def __init__(
        self, running: Callable[[], Collection[InstanceId]], limit: int = MAX_PEERS
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
        peer = self._peer(lease.instance_id)
        peer.streams += 1
        try:
            connection = peer.take() or await _connected(lease)
            try:
                status = await _posted(connection, lease, exchange)
                if status != _OK:
                    raise error_of_response(status, await _rest(connection, lease))
                yield Reply(lease, exchange, connection)
            finally:
                peer.give_back(connection)
        finally:
            peer.streams -= 1

    def forget(self, instance: InstanceId) -> None:
        """Closes the connections to an instance that is gone, unless streams still end on it."""
        peer = self._peers.get(instance)
        if peer is not None and peer.streams == 0:
            del self._peers[instance]
            peer.close()

    def close(self) -> None:
        """Closes every connection, those in use as soon as they are given back."""
        while self._peers:
            self._peers.popitem()[1].close()

    def _peer(self, instance: InstanceId) -> _Peer:
        peer = self._peers.get(instance)
        if peer is None:
            self._sweep()
            peer = self._peers[instance] = _Peer()
        else:
            self._peers.move_to_end(instance)
        return peer

    def _sweep(self) -> None:
        """Makes room for one more."""
        running = self._running()
        for instance in [known for known in self._peers if known not in running]:
            self.forget(instance)
        for instance in list(self._peers)[: max(0, len(self._peers) + 1 - self._limit)]:
            self.forget(instance)


def _fresh(connection: Connection) -> bool:
    idle_s = asyncio.get_running_loop().time() - connection.idle_since
    return connection.reusable and idle_s < KEEPALIVE_S


async def _connected(lease: Lease) -> Connection:
    try:
        return await connect(lease.socket)
    except (OSError, TimeoutError) as error:
        raise Unreachable(_lost(lease, error)) from error


async def _posted(connection: Connection, lease: Lease, exchange: Exchange[E]) -> int:
    try:
        return await connection.post(exchange.path, exchange.body())
    except ConnectionBroken as error:
        raise InstanceLost(_lost(lease, error)) from error


async def _rest(connection: Connection, lease: Lease) -> bytes:
    """An answer that is an error, up to MAX_ERROR_BYTES."""
    rest = bytearray()
    try:
        while len(rest) < MAX_ERROR_BYTES and (piece := await connection.read()):
            rest += piece
    except ConnectionBroken as error:
        raise InstanceLost(_lost(lease, error)) from error
    return bytes(rest)


def _lost(lease: Lease, error: Exception) -> str:
    reason = str(error) or type(error).__name__
    return f"instance {lease.instance_id} was lost: {reason}"
