"""Run by test_crash.py: commits uploads, each in a process that dies by SIGKILL at one step.

Reads lines of JSON, [home, upload id, name, step], and answers each with [exit status, steps]:
a negative status is the signal that ended the process. Processes are forked from this one, which
has all modules loaded and no threads.

A step is anything that the commit does to the file system through Python (its audit events), a
report of progress from native code, or an acknowledged write of the store. A commit that ends
before its last step says how many it took. The step "catalog" has no number: it is where the
folder is on the shelf and the catalog is about to be told.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Literal

from stoker.checkpoints.directory import DirectoryStore
from stoker.checkpoints.registry import Registry
from stoker.domain import Artifact
from stoker.store.base import Store
from stoker.store.catalog import Catalog
from stoker.store.sqlite import SqliteStore

EVENTS = frozenset(
    {"open", "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.utime"}
)


class Steps:
    def __init__(self, last: int | Literal["catalog"]) -> None:
        self.taken = 0
        self.armed = False
        self._last = last

    def take(self) -> None:
        if self.armed:
            self.taken += 1
            if self.taken == self._last:
                os.kill(os.getpid(), signal.SIGKILL)

    def reach_catalog(self) -> None:
        if self._last == "catalog":
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in EVENTS:
            self.take()


class WatchedCatalog(Catalog):
    def __init__(self, store: Store, steps: Steps) -> None:
        super().__init__(store)
        self._steps = steps

    async def put_artifact(self, artifact: Artifact) -> Artifact:
        self._steps.reach_catalog()
        return await super().put_artifact(artifact)


async def main(home: Path, upload_id: str, name: str | None, steps: Steps) -> None:
    store = await SqliteStore.open(home / "stoker.db")
    registry = Registry(home, WatchedCatalog(store, steps), DirectoryStore(home / "checkpoints"))
    steps.armed = True
    await registry.commit(upload_id, name, lambda *_: steps.take())
    steps.take()
    steps.armed = False
    await store.close()


def in_a_process(
    home: str, upload_id: str, name: str | None, step: int | Literal["catalog"]
) -> tuple[int, int]:
    """The exit status and the number of steps of a commit."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        steps = Steps(step)
        sys.addaudithook(steps.audit)
        asyncio.run(main(Path(home), upload_id, name, steps))
        os.write(writer, b"%d" % steps.taken)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        taken = int(pipe.read() or b"0")
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), taken


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(in_a_process(*json.loads(line))), flush=True)
