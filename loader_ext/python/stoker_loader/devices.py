"""Files in the memory of CUDA devices: PyTorch allocates, the native pipeline fills, views follow.

A file becomes one image on each device, so that thousands of tensors cost one allocation and no
call of their own. An image is shifted by a lead, chosen so that tensors begin where kernels are
fastest; a file's own offsets promise that for none.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stoker_loader import _native
from stoker_loader.backends import Backend
from stoker_loader.errors import DeviceUnavailableError
from stoker_loader.images import ImageViews
from stoker_loader.page_cache import Progress
from stoker_loader.tensors import Record

if TYPE_CHECKING:
    import torch

ALIGNMENT_BYTES = 256
"""What `cudaMalloc` promises of its addresses; PyTorch's allocator gives out multiples of 512."""


@dataclass(frozen=True, slots=True)
class Replica:
    """A device by the driver's number for it, and an image of each file there (uint8, flat)."""

    ordinal: int
    images: tuple[torch.Tensor, ...]


def is_cuda(device: torch.device) -> bool:
    """Whether the native pipeline serves the device. ROCm's devices are called "cuda" too."""
    import torch

    return device.type == "cuda" and getattr(torch.version, "hip", None) is None


def load(
    native: _native.Checkpoint,
    files: Sequence[tuple[str, int]],
    records: Sequence[Record],
    targets: Sequence[str | torch.device],
    progress: Progress | None,
    backend: Backend,
) -> list[ImageViews]:
    """Copy all files to each of the devices. Raises DeviceUnavailableError and what `fill` does."""
    leads = lead_bytes(len(files), records)
    replicas = [allocate(files, leads, resolve(target)) for target in targets]
    fill(native, files, leads, replicas, progress, backend=backend)
    return [ImageViews(replica.images, leads) for replica in replicas]


def resolve(target: str | torch.device) -> torch.device:
    """The device with its number; raises DeviceUnavailableError if it is no usable CUDA device."""
    import torch

    device = torch.device(target)
    index: int | None = device.index
    usable = is_cuda(device) and torch.cuda.is_available()
    if not usable or (index or 0) >= torch.cuda.device_count():
        raise DeviceUnavailableError(
            f"{device}: PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices, "
            "not this one; install a build for CUDA, or load to the CPU"
        )
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)


def lead_bytes(files: int, records: Iterable[Record]) -> list[int]:
    """How far to shift each file so that most bytes are in tensors on ALIGNMENT_BYTES."""
    bytes_by_lead: list[Counter[int]] = [Counter({0: 0}) for _ in range(files)]
    for record in records:
        bytes_by_lead[record.shard][-record.offset_bytes % ALIGNMENT_BYTES] += record.size_bytes
    return [counts.most_common(1)[0][0] for counts in bytes_by_lead]


def allocate(
    files: Sequence[tuple[str, int]], leads: Sequence[int], device: torch.device
) -> Replica:
    """Room for all files on a device, which nothing queued before uses any more."""
    import torch

    images = tuple(
        torch.empty(lead + size_bytes, dtype=torch.uint8, device=device)
        for lead, (_, size_bytes) in zip(leads, files, strict=True)
    )
    if device.type == "cuda":
        # Freed memory is given out again in the order of this stream, which ours do not follow.
        torch.cuda.current_stream(device).synchronize()
    return Replica(device.index or 0, images)


def fill(
    native: _native.Checkpoint,
    files: Sequence[tuple[str, int]],
    leads: Sequence[int],
    replicas: Sequence[Replica],
    progress: Progress | None = None,
    library: str | os.PathLike[str] | None = None,
    ring: tuple[int, int] | None = None,
    backend: Backend = "populate",
) -> None:
    """Copy each file to its image in all replicas, each byte read once by the back end.

    `library` is the NVIDIA driver's if it is not the system's, `ring` the number of pinned slots
    and their bytes if not the core's own. When this returns or raises no copy is under way.
    Raises AcceleratorErrors, FileChangedError, StorageError.
    """
    transfers = [
        (
            shard,
            0,
            size_bytes,
            [
                (place, replica.images[shard].data_ptr() + leads[shard])
                for place, replica in enumerate(replicas)
            ],
        )
        for shard, (_, size_bytes) in enumerate(files)
    ]
    ordinals = [replica.ordinal for replica in replicas]
    _native.copy_to_devices(native, ordinals, transfers, progress, None, library, ring, backend)
