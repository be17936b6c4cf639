"""How much a child may use, by the length of what it reads: pure arithmetic, named bounds."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30
# Torch and its allocator reserve some of this; the rest is for one tensor on its way.
HEADROOM_BYTES = 2 * GIB
SMALL_OUTPUT_BYTES = 64 << 20
# float16 to float32 doubles, and a tied tensor is written under two names.
PICKLE_GROWTH = 4
# The smallest GGUF type has 1.6 bits a weight; as float32 that is 20 times as much.
GGUF_GROWTH = 24
CPU_SECONDS = 120
PICKLE_CPU_SECONDS_PER_GIB = 60
GGUF_CPU_SECONDS_PER_GIB = 1200
PICKLE_OPEN_FILES = 64
GGUF_OPEN_FILES = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """`address_space_bytes` is beside what is mapped already."""

    address_space_bytes: int
    output_bytes: int
    cpu_seconds: int
    open_files: int
    processes: int


def pickle_limits(weights_bytes: int) -> Limits:
    """For reading pickles: mapped or in memory, and written to a file that is mapped."""
    output_bytes = PICKLE_GROWTH * weights_bytes + SMALL_OUTPUT_BYTES
    return Limits(
        address_space_bytes=2 * weights_bytes + output_bytes + HEADROOM_BYTES,
        output_bytes=output_bytes,
        cpu_seconds=CPU_SECONDS + PICKLE_CPU_SECONDS_PER_GIB * weights_bytes // GIB,
        open_files=PICKLE_OPEN_FILES,
        processes=0,
    )


def gguf_limits(weights_bytes: int) -> Limits:
    """For unpacking GGUF: Transformers holds a model, and a tensor as float32 at a time."""
    output_bytes = GGUF_GROWTH * weights_bytes + SMALL_OUTPUT_BYTES
    return Limits(
        address_space_bytes=weights_bytes + 2 * output_bytes + 4 * HEADROOM_BYTES,
        output_bytes=output_bytes,
        cpu_seconds=CPU_SECONDS + GGUF_CPU_SECONDS_PER_GIB * weights_bytes // GIB,
        open_files=GGUF_OPEN_FILES,
        processes=0,
    )
