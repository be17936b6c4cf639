"""Maps safetensors checkpoints through the page cache and hands out tensors without a copy."""

from stoker_loader.alignment import LayoutReport, layout
from stoker_loader.checkpoint import Checkpoint, load_file, open_arriving
from stoker_loader.checkpoint import open_checkpoint as open  # noqa: A004 - what users type
from stoker_loader.converting import ConvertReport, convert
from stoker_loader.errors import LoaderError
from stoker_loader.faults import explain_bus_errors
from stoker_loader.fetching import Fetched, FetchLimits, FetchStats, Source, fetch
from stoker_loader.identity import Digest, FileDigest, digest, verify
from stoker_loader.modules import Assigned
from stoker_loader.page_cache import Residency, evict, prefetch, residency
from stoker_loader.plans import Plan, Split, llama_plan
from stoker_loader.records import LoadStats, TensorInfo

__all__ = [
    "Assigned",
    "Checkpoint",
    "ConvertReport",
    "Digest",
    "FetchLimits",
    "FetchStats",
    "Fetched",
    "FileDigest",
    "LayoutReport",
    "LoadStats",
    "LoaderError",
    "Plan",
    "Residency",
    "Source",
    "Split",
    "TensorInfo",
    "convert",
    "digest",
    "evict",
    "explain_bus_errors",
    "fetch",
    "layout",
    "llama_plan",
    "load_file",
    "open",
    "open_arriving",
    "prefetch",
    "residency",
    "verify",
]
