"""Maps safetensors checkpoints through the page cache and hands out tensors without a copy."""

from stoker_loader.alignment import LayoutReport, layout
from stoker_loader.checkpoint import Checkpoint, load_file
from stoker_loader.checkpoint import open_checkpoint as open  # noqa: A004 - what users type
from stoker_loader.converting import ConvertReport, convert
from stoker_loader.errors import LoaderError
from stoker_loader.identity import Digest, FileDigest, digest, verify
from stoker_loader.modules import Assigned
from stoker_loader.page_cache import Residency, evict, prefetch, residency
from stoker_loader.records import LoadStats, TensorInfo

__all__ = [
    "Assigned",
    "Checkpoint",
    "ConvertReport",
    "Digest",
    "FileDigest",
    "LayoutReport",
    "LoadStats",
    "LoaderError",
    "Residency",
    "TensorInfo",
    "convert",
    "digest",
    "evict",
    "layout",
    "load_file",
    "open",
    "prefetch",
    "residency",
    "verify",
]
