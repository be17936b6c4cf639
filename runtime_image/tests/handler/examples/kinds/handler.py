"""A handler whose payload names what it does: `{"do": name, ...}`."""

import asyncio
import sys
import threading
from pathlib import Path

import neighbour
import torch


class Handler:
    def __init__(self):
        self.context = None

    def setup(self, context):
        self.context = context

    def predict(self, payload):
        return getattr(self, payload["do"])(payload)

    def facts(self, payload):
        return {
            "options": self.context.options,
            "source": self.context.source_path.name,
            "colour_at_import": neighbour.COLOUR_AT_IMPORT,
            "module": type(self).__module__,
            "thread": threading.current_thread().name,
        }

    def give(self, payload):
        return payload["value"]

    def count(self, payload):
        yield from range(payload["to"])

    async def give_async(self, payload):
        await asyncio.sleep(0)
        return payload["value"]

    async def count_async(self, payload):
        for number in range(payload["to"]):
            await asyncio.sleep(0)
            yield number

    def fail(self, payload):
        raise ValueError("the payload is wrong: " + payload["secret"])

    async def fail_async(self, payload):
        raise LookupError("nothing there")

    def fail_late(self, payload):
        yield 1
        raise RuntimeError("broke in the middle")

    def leave(self, payload):
        sys.exit(7)

    async def leave_async(self, payload):
        sys.exit(7)

    def stop_iteration(self, payload):
        raise StopIteration("odd")

    def tensor(self, payload):
        return {"scores": torch.ones(2)}

    def array(self, payload):
        return torch.arange(3).numpy()

    def say(self, payload):
        print(payload["text"])

    def forever(self, payload):
        """Yields until its reader leaves, then says so on the pipe at `path`."""
        try:
            while True:
                yield "x" * 1000
        finally:
            _tell(payload["path"], "closed")

    async def forever_async(self, payload):
        try:
            yield 0
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            _tell(payload["path"], "cancelled")
            raise

    async def wait_async(self, payload):
        try:
            _tell(payload["started"], "started")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            _tell(payload["path"], "cancelled")
            raise

    def meet(self, payload):
        """Says that it began, then waits for a line: two of them can only run side by side."""
        _tell(payload["started"], "started")
        return Path(payload["go"]).read_text()


def _tell(path, text):
    Path(path).write_text(text)
