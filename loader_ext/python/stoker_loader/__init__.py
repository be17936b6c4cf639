"""Maps safetensors checkpoints through the page cache and hands out tensors without a copy."""

from stoker_loader.alignment import LayoutReport, layout
from stoker_loader.backends import Backends, backends
from stoker_loader.checkpoint import Checkpoint
from stoker_loader.converting import ConvertReport, convert
from stoker_loader.errors import LoaderError
from stoker_loader.faults import explain_bus_errors
from stoker_loader.fetching import Fetched, FetchLimits, FetchStats, Source, fetch
from stoker_loader.identity import Digest, FileDigest, digest, sidecar_digest, verify
from stoker_loader.modules import Assigned
from stoker_loader.opening import load_file, open_arriving, wait_complete
from stoker_loader.opening import open_checkpoint as open  # noqa: A004 - what users type
from stoker_loader.page_cache import Residency, evict, prefetch, residency
from stoker_loader.pinning import Pin, pin, unpin
from stoker_loader.plans import Plan, Split, llama_plan
from stoker_loader.records import LoadStats, TensorInfo

__all__ = [
    "Assigned",
    "Backends",
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
    "Pin",
    "Plan",
    "Residency",
    "Source",
    "Split",
    "TensorInfo",
    "backends",
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
    "pin",
    "prefetch",
    "residency",
    "sidecar_digest",
    "unpin",
    "verify",
    "wait_complete",
]
