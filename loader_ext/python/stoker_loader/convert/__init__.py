"""Turns checkpoints of other formats into aligned safetensors: from Python, or as a command."""

from stoker_loader.convert.conversion import (
    ConvertDtype,
    ConvertProgress,
    ConvertReport,
    Stage,
    convert,
)

__all__ = ["ConvertDtype", "ConvertProgress", "ConvertReport", "Stage", "convert"]
