"""An open checkpoint: headers first, then pages, then tensors over them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from stoker_loader import _native, devices
from stoker_loader.backends import Choice, SourceName, choose
from stoker_loader.errors import CheckpointClosedError, UnknownTensorError
from stoker_loader.identity import Verify, known_to_native
from stoker_loader.modules import Assigned, assign
from stoker_loader.page_cache import Progress
from stoker_loader.plans import Plan
from stoker_loader.records import LoadStats, TensorInfo, dominating_tier, split_by_tier
from stoker_loader.tensors import Copied, Record, TorchViews, adjacent, is_aligned, numpy_view

if TYPE_CHECKING:
    import numpy as np
    import torch

_LOG = logging.getLogger("stoker_loader")
_STAGES = ("open", "residency", "map", "populate", "copy", "attach")


class Checkpoint:
    """The tensors of a safetensors file or directory. Opening reads headers only.

    Closing forbids new loads, and ends those that wait for bytes on their way; tensors that were
    given out keep the mapping alive, and it goes with the last of them. The files must stay as they
    are: reading a page that a file no longer has (someone truncated it) kills the process with
    SIGBUS. Methods may be called from any thread.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        patience_s: float | None = None,
        *,
        verify: Verify = False,
        progress: Progress | None = None,
    ) -> None:
        """Open and check all headers; raises the errors of every rule that a file breaks.

        With `patience_s` files may be on their way (see `open_arriving`), and `progress` is called
        with zeros while their headers are waited for. For `verify` see `open_checkpoint`; both
        are a ValueError, since whoever fetches compares what is on its way.
        """
        if patience_s is not None and verify:
            raise ValueError("verify: not with patience_s; give the digest to `fetch` as expected")
        started = perf_counter()
        self.path = os.fspath(path)
        patience = None if patience_s is None else timedelta(seconds=patience_s)
        self._native: _native.Checkpoint | None = _native.Checkpoint(
            path, patience, bool(verify), known_to_native(verify), progress
        )
        self._arrives = patience is not None
        self._waits = self._arrives or bool(verify)
        self._files = self._native.shards()
        self._headers = self._native.headers()
        self._lock = threading.Lock()
        self._views: TorchViews | None = None
        self._populated = False
        self._resident_bytes: int | None = None
        self._remote_bytes = 0
        self._residency_known = False
        self._copied = Copied()
        self._choice: Choice | None = None
        self._verified = (0, 0.0)
        self._ms = dict.fromkeys(_STAGES, 0.0)
        self._ms["open"] = (perf_counter() - started) * 1e3

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forbid new loads, and end those that wait for bytes on their way, within 0.1 s, by a
        CheckpointClosedError. Tensors that were given out stay valid."""
        native, self._native, self._views = self._native, None, None
        if native is not None:
            self._verified = native.verified()

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names in the order of the files."""
        return tuple(self._headers.names())

    @property
    def metadata(self) -> dict[str, str]:
        """The free strings of the headers; raises CheckpointClosedError."""
        return self._open().metadata()

    def info(self, name: str) -> TensorInfo:
        """What the header says of a tensor; raises UnknownTensorError."""
        record = self._record(name)
        return TensorInfo(
            name=record.name,
            dtype=record.dtype,
            shape=record.shape,
            offset_bytes=record.offset_bytes,
            size_bytes=record.size_bytes,
            file=self._files[record.shard][0],
        )

    def wait(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Return when the bytes of these tensors may be used: nothing to do for most checkpoints.

        Of files that are on their way it waits for these bytes alone. Where `verify` was asked for
        it brings in and compares the chunks of 8 MiB that they lie in. `progress` gets the bytes
        of each tensor. Raises UnknownTensorError, ChunkMismatchError, FetchAbandonedError,
        WaitTimeoutError, and what `populate` raises.
        """
        for name in names:
            self._wait(self._record(name), progress)

    def populate(self, progress: Progress | None = None, threads: int | None = None) -> None:
        """Bring all pages into the page cache and map them; the second time does nothing.

        The GIL is released. `progress` gets `(bytes done, bytes in all)`; what it raises, and
        KeyboardInterrupt, end the call. Raises FileChangedError, StorageError, and where `verify`
        was asked for ChunkMismatchError.
        """
        native = self._map()
        with self._lock:
            if self._populated:
                return
        with self._timed("populate"):
            native.populate(self._until_closed(progress), threads)
        with self._lock:
            self._populated = True

    def load(
        self,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
        source: SourceName = "auto",
    ) -> dict[str, torch.Tensor]:
        """Give all tensors: views of the populated mapping, or copies on another device.

        To CUDA devices files are copied whole while they are read, others get one tensor after
        another. Writing to a view copies its page; the file never changes. Any `source` but
        "populate", which "auto" takes wherever it works, reads each file into memory of this
        process, which goes with the last of its tensors. Raises UnsupportedDtypeError,
        BackendUnknownError, BackendRefusedError, what `populate` raises, and for CUDA what
        `load_replicas` does.
        """
        import torch

        target = torch.device(device)
        if devices.is_cuda(target):
            return self.load_replicas([target], progress, source)[0]
        native, views = self._map(), self._torch_views()
        choice = self._choose(native, source, to_device=False)
        held: _native.Checkpoint | _native.Parts = native
        if choice.backend == "populate":
            self.populate(progress)
        else:
            with self._timed("populate"):
                held = native.read(choice.backend, self._until_closed(progress), None)
            self._copied.size_bytes += held.packed_bytes
        with self._timed("attach"):
            tensors = views.attach(held)
        return self._to_device(tensors, target)

    def load_replicas(
        self,
        targets: Sequence[str | torch.device],
        progress: Progress | None = None,
        source: SourceName = "auto",
    ) -> list[dict[str, torch.Tensor]]:
        """Give all tensors on each of several CUDA devices; every byte is read once for all.

        A device holds each file as one allocation that its tensors share. What is not in the page
        cache is read past it, unless `source` says otherwise. Raises DeviceUnavailableError, the
        other AcceleratorErrors, BackendUnknownError, BackendRefusedError, FileChangedError,
        StorageError, UnsupportedDtypeError. After an error no tensor is handed out.
        """
        native = self._map()
        records = [self._record(name) for name in self._headers.names()]
        choice = self._choose(native, source, to_device=True)
        watch = self._until_closed(progress)
        with self._timed("copy"):
            replicas = devices.load(native, self._files, records, targets, watch, choice.backend)
        with self._timed("attach"):
            loaded = [
                {record.name: views.tensor(record) for record in records} for views in replicas
            ]
        self._copied.size_bytes += len(targets) * sum(record.size_bytes for record in records)
        return loaded

    def load_shard(
        self,
        plan: Plan,
        rank: int,
        world_size: int,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
        source: SourceName = "auto",
    ) -> dict[str, torch.Tensor]:
        """Give what one rank of a tensor-parallel group needs of each tensor, reading no more.

        What is in one piece in the file (replicated, rows) is a view of the mapping; the rest
        (columns, rows of fused weights) is packed into memory of its own, which goes with the last
        of those tensors. `source` is as for `load`: by any but "populate" all of it is packed. Of
        a file that is on its way it waits for the chunks that the rank needs. Where `verify` was
        asked for, those chunks are read whole. Raises PlanInvalidError,
        TensorUnplannedError, SplitMismatchError before anything is read, and what `load` raises.
        """
        import torch

        rules = [
            (pattern, None if split is None else (split.dimension, split.parts, split.heads))
            for pattern, split in plan.rules
        ]
        native, views = self._map(), self._torch_views()
        choice = self._choose(native, source, to_device=False)
        watch = self._until_closed(progress)
        with self._timed("populate"):
            parts = native.load_shard(rules, rank, world_size, choice.backend, watch, None)
        self._copied.size_bytes += parts.packed_bytes
        with self._timed("attach"):
            tensors = views.attach(parts)
        return self._to_device(tensors, torch.device(device))

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor as a view; its pages come in when they are touched unless `populate` ran.

        Raises UnknownTensorError, UnsupportedDtypeError.
        """
        record = self._record(name)
        self._wait(record)
        return self._torch_views().tensor(record)

    def fused(self, names: Sequence[str]) -> torch.Tensor | None:
        """The tensors as one view along dimension 0, or None if they do not lie so.

        They do if they stand side by side in one file in this order, with one dtype and the same
        other dimensions (see `layout`). Raises UnknownTensorError, UnsupportedDtypeError.
        """
        records = [self._record(name) for name in names]
        if not records or not adjacent(records):
            return None
        for record in records:
            self._wait(record)
        first = records[0]
        rows = sum(record.shape[0] for record in records)
        size_bytes = sum(record.size_bytes for record in records)
        fused = first._replace(shape=(rows, *first.shape[1:]), size_bytes=size_bytes)
        return self._torch_views().tensor(fused) if is_aligned(fused) else None

    def numpy(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor as an array over the mapping, without torch.

        numpy lacks bfloat16 and float8: they come as uint16 and uint8 of the same bits. Raises
        UnknownTensorError, UnsupportedDtypeError (packed 4- and 6-bit types).
        """
        record = self._record(name)
        self._wait(record)
        return numpy_view(record, self._map().buffer(record.shard))

    def load_into(
        self,
        module: torch.nn.Module,
        strict: bool = True,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
        source: SourceName = "auto",
    ) -> Assigned:
        """Load, and make the tensors the parameters and buffers of a module on the meta device.

        Tied parameters stay tied, the tensors' dtypes win, and buffers that are not persistent are
        left to the caller. All is assigned or nothing. Raises ModuleMismatchError for another
        shape, and if `strict` for a missing or unexpected name; and what `load` raises.
        """
        return assign(module, self.load(device, progress, source), strict=strict, file=self.path)

    @property
    def stats(self) -> LoadStats:
        """What the load has cost so far."""
        checkpoint_bytes = sum(size_bytes for _, size_bytes in self._files)
        resident_bytes = self._resident_bytes or 0
        choice = self._choice
        cached_bytes = 0 if choice and choice.is_direct else resident_bytes
        bytes_by_tier = split_by_tier(checkpoint_bytes, cached_bytes, self._remote_bytes)
        native = self._native  # which another thread may close
        if native is not None:
            self._verified = native.verified()
        verified_bytes, verify_s = self._verified
        return LoadStats(
            checkpoint_bytes=checkpoint_bytes,
            resident_bytes_before=resident_bytes,
            residency_known=self._residency_known,
            tier=dominating_tier(bytes_by_tier),
            bytes_by_tier=bytes_by_tier,
            open_ms=self._ms["open"],
            residency_ms=self._ms["residency"],
            map_ms=self._ms["map"],
            populate_ms=self._ms["populate"],
            copy_ms=self._ms["copy"],
            attach_ms=self._ms["attach"],
            copied_bytes=self._copied.size_bytes,
            source=choice.backend if choice else None,
            refused_sources=choice.refused if choice else {},
            verified_bytes=verified_bytes,
            verify_ms=verify_s * 1e3,
        )

    def _open(self) -> _native.Checkpoint:
        native = self._native
        if native is None:
            raise CheckpointClosedError(
                f"{self.path}: the checkpoint is closed; open it again", file=self.path
            )
        return native

    def _record(self, name: str) -> Record:
        found = self._headers.record(name)
        if found is None:
            message = f"{self.path}: tensor {name!r}: the checkpoint has no tensor of this name"
            raise UnknownTensorError(message, file=self.path, tensor=name)
        return Record(*found)

    def _wait(self, record: Record, progress: Progress | None = None) -> None:
        """Wait for a tensor's bytes, and no others."""
        if self._waits:
            watch = self._until_closed(progress)
            self._map().wait(record.shard, record.offset_bytes, record.size_bytes, watch)

    def _until_closed(self, progress: Progress | None) -> Progress | None:
        """The callback, for calls that may wait for what never comes: it also ends them."""
        if not self._arrives:
            return progress

        def go_on(done_bytes: int, total_bytes: int) -> None:
            self._open()
            if progress is not None:
                progress(done_bytes, total_bytes)

        return go_on

    def _choose(self, native: _native.Checkpoint, source: SourceName, to_device: bool) -> Choice:
        choice = self._choice = choose(native, source, to_device=to_device)
        _LOG.debug("%s: read by %s; refused: %s", self.path, choice.backend, choice.refused)
        return choice

    def _map(self) -> _native.Checkpoint:
        """Map the files, having looked once at what was resident before anything was touched."""
        native = self._open()
        with self._lock:
            if self._resident_bytes is None:
                with self._timed("residency"):
                    resident_bytes = native.resident_bytes()
                self._residency_known = resident_bytes is not None
                self._resident_bytes = resident_bytes or 0
                self._remote_bytes = native.remote_bytes()
                with self._timed("map"):
                    native.map()
        return native

    def _torch_views(self) -> TorchViews:
        native = self._map()
        with self._lock:
            if self._views is None:
                with self._timed("attach"):
                    self._views = TorchViews(native, self._copied)
            return self._views

    def _to_device(
        self, tensors: dict[str, torch.Tensor], target: torch.device
    ) -> dict[str, torch.Tensor]:
        if target.type == "cpu":
            return tensors
        self._copied.size_bytes += sum(tensor.nbytes for tensor in tensors.values())
        with self._timed("copy"):
            return {name: tensor.to(target) for name, tensor in tensors.items()}

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        finally:
            self._ms[stage] += (perf_counter() - started) * 1e3
