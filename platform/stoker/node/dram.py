"""The DRAM tier of a node: copies whose pages are locked in the page cache, within a budget.

Without a budget nothing is locked: then the kernel alone decides what stays of what was read.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from stoker.domain import Digest, Tier
from stoker.node.counters import Counters
from stoker.node.eviction import Valued, evict, used, worth
from stoker_loader import Pin, aio
from stoker_loader.errors import LoaderError

# Until a disk's rate is known: what decides between copies is how often they are used, and the
# rate is the same for all.
ASSUMED_DISK_BYTES_PER_S = 1e9
ASK_S = 0.02
CAP_IPC_LOCK = 14  # capabilities(7): no limit of locked memory counts

Files = frozenset[tuple[str, int]]  # names and inodes

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Copy:
    """One artifact; only the event loop touches it."""

    worth: Valued[Digest]
    users: int = 0  # instances that map it
    pin: Pin | None = None  # its locked pages
    files: Files = frozenset()  # that those are of


class Dram:
    """Locks the pages of copies that are used, those that are worth their bytes, and `budget_bytes`
    of them at most."""

    def __init__(self, budget_bytes: int, counters: Counters) -> None:
        self.budget_bytes = budget_bytes
        self._copies: dict[Digest, _Copy] = {}
        self._pinned: frozenset[Digest] = frozenset()
        self._uses = 0
        self._counters = counters
        self._turn = asyncio.Lock()  # locking reads what is not resident: one at a time
        self._locking: Digest | None = None

    @contextmanager
    def using(self, digest: Digest) -> Iterator[None]:
        """While an instance maps the copy, it is not given up."""
        copy = self._copy(digest)
        copy.users += 1
        try:
            yield
        finally:
            copy.users -= 1

    def pin(self, digests: frozenset[Digest]) -> None:
        """From now on these are never given up, and no others for being pinned."""
        self._pinned = digests

    async def take(self, digest: Digest, path: Path, *, is_use: bool = True) -> bool:
        """Locks a whole copy (that was just used) if there is room or what is worth less can go;
        whether it is locked now."""
        if not self.budget_bytes:
            return False
        async with self._turn:
            self._locking = digest
            try:
                return await self._take(self._copy(digest), path, is_use)
            except (LoaderError, OSError) as error:  # its files went, or it may not
                log.warning("not locked", checkpoint=digest, error=str(error))
                return False
            finally:
                self._locking = None

    async def fill(self, digest: Digest, path: Path) -> None:
        """Locks a whole copy, or at least brings its pages in."""
        if await self.take(digest, path, is_use=False):
            return
        try:
            await aio.prefetch(path)
        except LoaderError as error:
            log.info("not brought to memory", checkpoint=digest, error=error.message)

    async def release(self, digest: Digest) -> None:
        """Lets the pages of a copy go, since its files do."""
        if self._locking == digest:
            async with self._turn:
                await self._unlock(self._copy(digest))
        elif digest in self._copies:
            await self._unlock(self._copies[digest])

    async def prune(self) -> None:
        """Lets the pages of files go that somebody has removed, or put others in their place."""
        for digest, copy in list(self._copies.items()):
            if copy.pin is not None and digest != self._locking:
                files = await asyncio.to_thread(_files, Path(copy.pin.path))
                if files != copy.files:
                    await self._unlock(copy)

    def locked_bytes(self, digest: Digest) -> int:
        copy = self._copies.get(digest)
        return copy.pin.pinned_bytes if copy is not None and copy.pin is not None else 0

    async def close(self) -> None:
        """Lets all pages go."""
        for digest in list(self._copies):
            await self.release(digest)

    async def _take(self, copy: _Copy, path: Path, is_use: bool) -> bool:
        size_bytes = (await aio.residency(path)).checkpoint_bytes
        files = await asyncio.to_thread(_files, path)
        reload_s = ASK_S + size_bytes / ASSUMED_DISK_BYTES_PER_S
        copy.worth = replace(copy.worth, size_bytes=size_bytes, reload_s=reload_s)
        if is_use:
            self._uses += 1
            copy.worth = used(copy.worth, self._uses)
        if copy.pin is not None and copy.files != files:
            await self._unlock(copy)
        if copy.pin is not None:
            return True
        if not await self._make_room(copy):
            log.info("no room to lock", checkpoint=copy.worth.key, bytes=size_bytes)
            return False
        copy.files = files
        copy.pin = await aio.pin(path)
        return True

    async def _make_room(self, copy: _Copy) -> bool:
        taken_bytes = sum(map(self.locked_bytes, self._copies))
        needed_bytes = taken_bytes + copy.worth.size_bytes - self.budget_bytes
        if needed_bytes <= 0:
            return True
        candidates = [
            one.worth
            for digest, one in self._copies.items()
            if one.pin is not None
            and not one.users
            and digest not in self._pinned
            and (copy.worth.key in self._pinned or worth(one.worth) < worth(copy.worth))
        ]
        if sum(one.size_bytes for one in candidates) < needed_bytes:
            return False
        for victim in evict(candidates, needed_bytes):
            await self._unlock(self._copies[victim])
            self._counters.evicted(Tier.DRAM, "budget")
            log.info("unlocked", checkpoint=victim)
        return True

    async def _unlock(self, copy: _Copy) -> None:
        pin, copy.pin = copy.pin, None
        if pin is not None:
            await asyncio.to_thread(pin.close)  # as long as unmapping takes

    def _copy(self, digest: Digest) -> _Copy:
        if digest not in self._copies:
            self._copies[digest] = _Copy(Valued(digest, size_bytes=0, reload_s=ASK_S))
        return self._copies[digest]


def _files(folder: Path) -> Files:
    """What tells files of a folder from others that came in their place."""
    try:
        return frozenset(
            (path.name, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()
        )
    except FileNotFoundError:  # somebody removes them just now
        return frozenset()


def lockable_bytes(budget_bytes: int) -> int:
    """How much of a budget this process may lock; raises its own limit as far as it may."""
    if _is_capable():
        return budget_bytes
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    return budget_bytes if hard == resource.RLIM_INFINITY else min(budget_bytes, hard)


def _is_capable() -> bool:
    """Whether this process has CAP_IPC_LOCK; of a user namespace's own the kernel takes none."""
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", str(2**32 - 1)]:
        return False
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(line for line in lines if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> CAP_IPC_LOCK & 1)
