"""What is known of a tensor and of a load, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stoker_loader.backends import Backend

Tier = Literal["remote", "ssd", "dram"]
SLOWEST_FIRST: tuple[Tier, ...] = ("remote", "ssd", "dram")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its file's header describes it.

    `dtype` is the format's name ("BF16"), `offset_bytes` counts from the beginning of `file`,
    which is a name in the checkpoint's directory.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int
    file: str


@dataclass(frozen=True, slots=True)
class LoadStats:
    """What a load has cost so far; stages that have not run are 0.

    `resident_bytes_before` is what the kernel counted in the page cache before anything was
    populated; it is 0 with `residency_known` false where the kernel does not tell this user
    (neither owner nor writer of the files). Those bytes came from tier `dram`, what had not arrived
    yet from `remote`, the rest from `ssd`; `tier` is the one that most bytes came from.
    `residency_ms` is the time that asking took. `copied_bytes` are those of tensors that could
    not be views: misaligned, or moved to another device (counted for each). Loads to CUDA devices
    bring pages in while they copy, and count both as `copy_ms`. `source` is the back end of the
    last load (None before the first), `refused_sources` why better ones were not taken. Past the
    page cache all bytes come from `ssd`; what is read into memory of its own counts as copied.
    `verified_bytes` were compared with digests while they came in; `verify_ms` is what hashing
    them took, of all threads together.
    """

    checkpoint_bytes: int
    resident_bytes_before: int
    residency_known: bool
    tier: Tier
    bytes_by_tier: Mapping[Tier, int]
    open_ms: float
    residency_ms: float
    map_ms: float
    populate_ms: float
    copy_ms: float
    attach_ms: float
    copied_bytes: int
    source: Backend | None
    refused_sources: Mapping[Backend, str]
    verified_bytes: int = 0
    verify_ms: float = 0.0


def split_by_tier(checkpoint_bytes: int, resident_bytes: int, remote_bytes: int) -> dict[Tier, int]:
    """How many bytes come from the page cache, how many from elsewhere, and the rest."""
    here_bytes = checkpoint_bytes - remote_bytes
    # A chunk that is arriving has pages before it counts as here.
    dram_bytes = min(resident_bytes, here_bytes)
    return {"remote": remote_bytes, "ssd": here_bytes - dram_bytes, "dram": dram_bytes}


def dominating_tier(bytes_by_tier: Mapping[Tier, int]) -> Tier:
    """The tier that most bytes come from; the slower one at a tie."""
    return max(SLOWEST_FIRST, key=lambda tier: bytes_by_tier[tier])
