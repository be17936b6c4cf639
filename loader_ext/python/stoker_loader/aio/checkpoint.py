"""An open checkpoint whose methods do not block: each as its namesake in `stoker_loader`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from stoker_loader import checkpoint as blocking
from stoker_loader import opening
from stoker_loader.aio.threads import in_thread
from stoker_loader.backends import SourceName
from stoker_loader.identity import Verify
from stoker_loader.modules import Assigned, assign
from stoker_loader.opening import PATIENCE_S, FileBackend
from stoker_loader.page_cache import Progress
from stoker_loader.plans import Plan
from stoker_loader.records import LoadStats, TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import torch

T = TypeVar("T")


class Checkpoint:
    """The tensors of a checkpoint, for an event loop; `blocking` is the same one without it.

    Close it, or use `async with await aio.open(path) as checkpoint`.
    """

    def __init__(self, blocking: blocking.Checkpoint) -> None:
        self.blocking = blocking

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forbid new loads. Tensors that were given out stay valid."""
        self.blocking.close()

    @property
    def path(self) -> str:
        """What was opened."""
        return self.blocking.path

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names in the order of the files."""
        return self.blocking.names

    @property
    def metadata(self) -> dict[str, str]:
        """The free strings of the headers; raises CheckpointClosedError."""
        return self.blocking.metadata

    @property
    def stats(self) -> LoadStats:
        """What the load has cost so far."""
        return self.blocking.stats

    def info(self, name: str) -> TensorInfo:
        """What the header says of a tensor; raises UnknownTensorError."""
        return self.blocking.info(name)

    async def wait(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Return when the bytes of these tensors may be used."""
        wanted = tuple(names)
        await in_thread(lambda watch: self.blocking.wait(wanted, watch), progress)

    async def populate(self, progress: Progress | None = None, threads: int | None = None) -> None:
        """Bring all pages into the page cache and map them."""
        await in_thread(lambda watch: self.blocking.populate(watch, threads), progress)

    async def load(
        self,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
        source: SourceName = "auto",
    ) -> dict[str, torch.Tensor]:
        """Give all tensors."""
        return await in_thread(lambda watch: self.blocking.load(device, watch, source), progress)

    async def load_replicas(
        self,
        targets: Sequence[str | torch.device],
        progress: Progress | None = None,
        source: SourceName = "auto",
    ) -> list[dict[str, torch.Tensor]]:
        """Give all tensors on each of several CUDA devices."""
        return await in_thread(
            lambda watch: self.blocking.load_replicas(targets, watch, source), progress
        )

    async def load_shard(
        self,
        plan: Plan,
        rank: int,
        world_size: int,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
        source: SourceName = "auto",
    ) -> dict[str, torch.Tensor]:
        """Give what one rank of a tensor-parallel group needs of each tensor."""
        return await in_thread(
            lambda watch: self.blocking.load_shard(plan, rank, world_size, device, watch, source),
            progress,
        )

    async def load_into(
        self,
        module: torch.nn.Module,
        strict: bool = True,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
        source: SourceName = "auto",
    ) -> Assigned:
        """Load, and assign to a module: in the loop, so a cancelled load leaves it as it was."""
        tensors = await self.load(device, progress, source)
        return assign(module, tensors, strict=strict, file=self.path)

    async def tensor(self, name: str) -> torch.Tensor:
        """One tensor as a view, when its bytes may be used."""
        return await self._when_there([name], lambda: self.blocking.tensor(name))

    async def fused(self, names: Sequence[str]) -> torch.Tensor | None:
        """The tensors as one view along dimension 0, or None if they do not lie so."""
        return await self._when_there(names, lambda: self.blocking.fused(names))

    async def numpy(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor as an array over the mapping, without torch."""
        return await self._when_there([name], lambda: self.blocking.numpy(name))

    async def _when_there(self, names: Iterable[str], call: Callable[[], T]) -> T:
        """What a call returns that maps, imports, and may read; the wait before it can be ended."""

        def wait_and_call(watch: Progress) -> T:
            self.blocking.wait(names, watch)
            return call()

        return await in_thread(wait_and_call)


async def open_checkpoint(path: str | os.PathLike[str], *, verify: Verify = False) -> Checkpoint:
    """Open a safetensors file, or a directory with one or with shards; reads headers only."""
    opened = await in_thread(
        lambda _: opening.open_checkpoint(path, verify=verify), discard=blocking.Checkpoint.close
    )
    return Checkpoint(opened)


async def open_arriving(
    path: str | os.PathLike[str],
    *,
    patience_s: float = PATIENCE_S,
    progress: Progress | None = None,
) -> Checkpoint:
    """Open a checkpoint whose files may still be on their way by `fetch`, here or elsewhere."""
    opened = await in_thread(
        lambda watch: opening.open_arriving(path, patience_s=patience_s, progress=watch),
        progress,
        discard=blocking.Checkpoint.close,
    )
    return Checkpoint(opened)


async def load_file(
    filename: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    *,
    backend: FileBackend = "mmap",
    verify: Verify = False,
) -> dict[str, torch.Tensor]:
    """Load all tensors, as `safetensors.torch.load_file` does, but as views of a mapping."""
    source = opening.source_of(backend, filename)
    async with await open_checkpoint(filename, verify=verify) as checkpoint:
        return await checkpoint.load(opening.device_of(device), source=source)
