"""The surface of `stoker_loader` for event loops: nothing blocks, and a cancelled task stops."""

from stoker_loader.aio.checkpoint import Checkpoint, load_file, open_arriving
from stoker_loader.aio.checkpoint import open_checkpoint as open  # noqa: A004 - what users type
from stoker_loader.aio.files import (
    convert,
    digest,
    evict,
    fetch,
    layout,
    pin,
    prefetch,
    residency,
    verify,
    wait_complete,
)

__all__ = [
    "Checkpoint",
    "convert",
    "digest",
    "evict",
    "fetch",
    "layout",
    "load_file",
    "open",
    "open_arriving",
    "pin",
    "prefetch",
    "residency",
    "verify",
    "wait_complete",
]
