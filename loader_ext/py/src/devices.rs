//! Copying a checkpoint's files to the memory of devices, by address.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use stoker_loader_core::device::{DEFAULT_SHAPE, Driver, Pipeline, Shape, Transfer};
use stoker_loader_core::source;

use crate::checkpoint::{NativeCheckpoint, import_backend};
use crate::errors::to_python;
use crate::progress::{self, Callback};

/// `(shard, offset_bytes, size_bytes, [(place in the list of devices, address)])`.
type PyTransfer = (usize, u64, u64, Vec<(usize, u64)>);

/// Copies ranges of a checkpoint's files to devices; returns the bytes read.
///
/// `library` is the driver's, where it is not the system's; `(slots, slot_bytes)` is the ring's
/// shape, and `backend` brings the bytes to its slots. The Python side answers for the addresses;
/// see `stoker_loader.devices`.
#[pyfunction]
#[pyo3(signature = (
    checkpoint, ordinals, transfers, callback, threads, library=None, ring=None, backend="populate"
))]
#[expect(clippy::too_many_arguments, reason = "each is one thing that Python says")]
pub fn copy_to_devices(
    py: Python<'_>,
    checkpoint: &NativeCheckpoint,
    ordinals: Vec<u32>,
    transfers: Vec<PyTransfer>,
    callback: Callback,
    threads: Option<usize>,
    library: Option<PathBuf>,
    ring: Option<(usize, usize)>,
    backend: &str,
) -> PyResult<u64> {
    let shape = ring.map_or(DEFAULT_SHAPE, |(slots, slot_bytes)| Shape { slots, slot_bytes });
    if ordinals.is_empty() || shape.slots == 0 || !shape.slot_bytes.is_power_of_two() {
        return Err(PyValueError::new_err("at least one device, one slot, and 2^n bytes a slot"));
    }
    let backend = import_backend(backend)?;
    let sources = py
        .detach(|| source::open_all(backend, checkpoint.shards()))
        .map_err(|error| to_python(&error))?;
    let import = |(shard, offset, size_bytes, destinations): PyTransfer| {
        let file_bytes = checkpoint.shards().get(shard).map_or(0, |shard| shard.file_bytes);
        let fits = offset.checked_add(size_bytes).is_some_and(|end| end <= file_bytes);
        if !fits || destinations.iter().any(|&(place, _)| place >= ordinals.len()) {
            return Err(PyValueError::new_err("a transfer leaves its file or the devices"));
        }
        let source = sources.get(shard).ok_or_else(|| PyIndexError::new_err(shard))?;
        Ok(Transfer { source: &**source, offset, size_bytes, destinations })
    };
    let transfers = transfers.into_iter().map(import).collect::<PyResult<Vec<_>>>()?;
    let total = transfers.iter().map(|transfer| transfer.size_bytes).sum();
    let threads = threads.unwrap_or_else(source::default_threads);
    progress::run(py, &callback, |watch| {
        let driver = Arc::new(Driver::open(library.as_deref())?);
        let mut pipeline = Pipeline::new(&driver, &ordinals, shape)?;
        // SAFETY: `stoker_loader.devices` holds the tensors at these addresses until this returns,
        // and has waited for whoever used their memory before.
        let outcome = unsafe { pipeline.copy(&transfers, threads, |done| watch(done, total)) };
        let closed = pipeline.close();
        outcome.and_then(|bytes| closed.map(|()| bytes))
    })
}
