"""The seam between an agent and what isolates its workers: a process now, a container later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stoker.node.logs import LogBuffer


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker ended."""

    code: int  # negative: the signal that killed it

    def __str__(self) -> str:
        return f"killed by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"


class Worker(Protocol):
    """A worker that listens on `socket`; it dies with its agent, whatever kills that."""

    @property
    def id(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def socket(self) -> Path: ...
    @property
    def log(self) -> LogBuffer: ...

    def promote(self) -> None:
        """Gives it the CPU priority of an instance: a request waits for it now."""
        ...

    async def wait(self) -> Exit:
        """Returns when it has ended and all it wrote is in its log. Any number may wait."""
        ...

    async def stop(self, grace_s: float) -> Exit:
        """Asks it to finish, and ends it and all its descendants after `grace_s`."""
        ...


class Driver(Protocol):
    """Makes workers."""

    @property
    def name(self) -> str: ...

    async def spawn(self, worker_id: str, *, background: bool) -> Worker:
        """Returns a worker that is blank: it listens and has made its first forward run.

        With `background` it yields to whoever serves, until it is promoted.

        Raises `StartupFailed`, with the tail of its log, if it ends before that or takes longer
        than a named bound. Cancelling ends the process.
        """
        ...

    def hurry(self) -> None:
        """Promotes the workers that are being spawned: a request waits for one of them now."""
        ...
