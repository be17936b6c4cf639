"""What a user's `setup` is given."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import stoker_loader
from stoker_runtime.contract import Tier
from stoker_runtime.errors import CheckpointRejected, HandlerSetupFailed


@dataclass(slots=True)
class TensorsLoaded:
    """What `load_tensors` has read so far."""

    tier: Tier | None = None  # the slowest of them
    bytes: int = 0
    load_ms: float = 0.0

    def add(self, stats: stoker_loader.LoadStats, load_ms: float) -> None:
        """Counts one more load."""
        if self.tier is not Tier.SSD:
            self.tier = Tier(stats.tier)
        self.bytes += stats.checkpoint_bytes
        self.load_ms += load_ms


@dataclass(frozen=True, slots=True)
class HandlerContext:
    """Where a handler finds its files, and the manifest's `runtime.options`."""

    source_path: Path
    checkpoint_path: Path | None
    options: Mapping[str, Any]
    loaded: TensorsLoaded = field(default_factory=TensorsLoaded)

    def load_tensors(self, path: str | Path | None = None) -> dict[str, torch.Tensor]:
        """The tensors of the checkpoint, or of a safetensors file or folder, without a copy.

        A relative `path` is taken from the handler's own folder. The tensors lie in a private
        mapping of the file: writing into one is allowed and never reaches the file.

        Raises:
            HandlerSetupFailed: no path is given and the function has no checkpoint.
            CheckpointRejected: the file is missing or damaged.
        """
        if path is not None:
            target = self.source_path / path
        elif self.checkpoint_path is not None:
            target = self.checkpoint_path
        else:
            raise HandlerSetupFailed(
                "load_tensors() found no checkpoint: set `model.uri` in the manifest, "
                "or pass the name of a safetensors file in the function's folder",
                code="checkpoint_missing",
            )
        started_s = time.perf_counter()
        try:
            with stoker_loader.open(target) as checkpoint:
                tensors = checkpoint.load()
                stats = checkpoint.stats
        except stoker_loader.LoaderError as error:
            raise CheckpointRejected(str(error), code=error.code) from error
        self.loaded.add(stats, load_ms=(time.perf_counter() - started_s) * 1000)
        return tensors
