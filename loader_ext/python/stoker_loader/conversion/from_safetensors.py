"""Rewrites safetensors in another dtype; without one, the layout reads them as they are."""

from __future__ import annotations

from pathlib import Path

from stoker_loader.conversion.tensor_file import create, plan, write
from stoker_loader.opening import open_checkpoint
from stoker_loader.page_cache import Progress


def cast(source: Path, folder: Path, dtype: str, advance: Progress) -> frozenset[str]:
    """Write all tensors of a checkpoint to `folder`/model.safetensors, floats as torch's `dtype`.

    Returns the names of the files that were read. Raises what opening raises,
    UnsupportedDtypeError, StorageError, and what `advance` raises.
    """
    import torch

    with open_checkpoint(source) as checkpoint:
        tensors = {name: checkpoint.tensor(name) for name in checkpoint.names}
        metadata = checkpoint.metadata
        files = frozenset(checkpoint.info(name).file for name in checkpoint.names)
    planned = plan(tensors, metadata, dtype=getattr(torch, dtype), file=str(source))
    with create(folder / "model.safetensors") as output:
        write(output, planned, advance)
    return files
