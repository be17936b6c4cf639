"""Conversion as others see it; its steps are imported when the first one is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from stoker_loader.alignment import LayoutReport

SourceFormat = Literal["safetensors", "gguf", "pickle"]
ConvertDtype = Literal["bf16", "f16", "f32"]
Stage = Literal["read", "layout"]
ConvertProgress = Callable[[Stage, int, int], object]
"""Called with `(stage, bytes done, bytes in all)`; what it raises stops the work and is raised."""


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion wrote, and what it left out.

    `layout` tells of the destination. `walls` names what held around the reader of a pickle or
    GGUF file. `tied` maps a dropped name to the one that has its bytes. `skipped_files` are those
    of the source, `skipped_entries` those of a pickle that were no tensors.
    """

    source_format: SourceFormat
    layout: LayoutReport
    walls: tuple[str, ...]
    tied: Mapping[str, str]
    skipped_files: tuple[str, ...]
    skipped_entries: tuple[str, ...]


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: ConvertDtype | None = None,
    progress: ConvertProgress | None = None,
) -> ConvertReport:
    """Write the checkpoint at `source` to a new directory, as aligned safetensors.

    Reads safetensors, GGUF (through Transformers), and pickles of tensors (in a child process
    that may do nothing else). `dtype` casts the 16-, 32- and 64-bit floats. The destination
    appears whole or not at all. Raises ConversionError and its kinds, DestinationExistsError,
    UnsupportedDtypeError, and what opening and laying out raise.
    """
    from stoker_loader.conversion.steps import run_steps

    return run_steps(source, destination, dtype, progress)
