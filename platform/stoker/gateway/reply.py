"""An instance's answer as it comes: newline-delimited events out of pieces of bytes."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import ValidationError

from stoker.errors import InstanceLost, StokerError
from stoker.gateway.connection import Connection, ConnectionBroken
from stoker.gateway.exchange import Exchange
from stoker.gateway.faults import error_of
from stoker.scheduler.lease import Lease

E = TypeVar("E")

MAX_LINE_BYTES = 64 << 20  # of one event


class Reply(Generic[E]):
    """An answer under way: events in batches, as they arrived together."""

    def __init__(self, lease: Lease, exchange: Exchange[E], connection: Connection) -> None:
        self._lease = lease
        self._exchange = exchange
        self._connection = connection
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
            chunk = await self._connection.read()
        except ConnectionBroken as error:
            raise InstanceLost(
                f"instance {self._lease.instance_id} was lost: {error}",
                details={"instance": self._lease.instance_id},
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
