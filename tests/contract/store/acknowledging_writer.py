"""Run by test_sqlite.py in a process of its own, and killed there: writes without end, and says
the number of each write on stdout once the store has acknowledged it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from stoker.store.base import Put
from stoker.store.sqlite import SqliteStore

WRITERS = 4


async def main(path: Path, first: int) -> None:
    store = await SqliteStore.open(path)

    async def write(number: int) -> None:
        while True:
            value = str(number).encode() * 50
            await store.commit([], [Put(f"n/{number}", value), Put(f"twin/{number}", value)])
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
            number += WRITERS

    async with asyncio.TaskGroup() as group:
        for writer in range(WRITERS):
            group.create_task(write(first + writer))


asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
