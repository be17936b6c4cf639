"""Brings an artifact to a cache, in processes that a test kills: `killed_agent.py FOLDER`.

Reads the artifact's location as a line of JSON, then forks a process for each further line, which
holds the artifact until all of it is there. Says the process's id, and later its exit status. A
fork costs milliseconds, where a new interpreter would take most of a second.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from pydantic import TypeAdapter

from stoker.checkpoints.store import Signed
from stoker.domain import Digest
from stoker.node.cache import NodeCache
from stoker.node.counters import Counters

LOCATION = TypeAdapter(Signed)


class Located:
    """A store that has been asked before."""

    def __init__(self, location: Signed) -> None:
        self._location = location

    async def locate(self, digest: Digest) -> Signed:
        assert digest == self._location.content.artifact.digest
        return self._location


async def hold(root: Path, location: Signed) -> None:
    async with asyncio.TaskGroup() as tasks:
        cache = NodeCache(
            root, Located(location), budget_bytes=None, counters=Counters(), tasks=tasks
        )
        await cache.open()
        async with cache.hold(location.content.artifact.digest) as held:
            if held.kept is not None:
                await held.kept


def main() -> None:
    root = Path(sys.argv[1])
    location = LOCATION.validate_json(sys.stdin.readline())
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # of its log
            asyncio.run(hold(root, location))
            os._exit(0)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
