//! An open checkpoint and the buffers over its mappings.

use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use pyo3::exceptions::PyIndexError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use stoker_loader_core::checkpoint::Checkpoint;
use stoker_loader_core::mapping::{self, Mapping};
use stoker_loader_core::{Kind, Result, residency};

use crate::errors::to_python;
use crate::progress::{self, Callback};

/// A checkpoint whose headers are checked; its mappings are made when first needed.
#[pyclass(frozen, name = "Checkpoint", module = "stoker_loader._native")]
pub struct NativeCheckpoint {
    checkpoint: Checkpoint,
    mappings: OnceLock<Vec<Arc<Mapping>>>,
}

#[pymethods]
impl NativeCheckpoint {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let checkpoint =
            py.detach(|| Checkpoint::open(&path)).map_err(|error| to_python(&error))?;
        Ok(Self { checkpoint, mappings: OnceLock::new() })
    }

    /// `(name, size_bytes)` of each file.
    fn shards(&self) -> Vec<(String, u64)> {
        let shards = self.checkpoint.shards.iter();
        shards.map(|shard| (shard.name.clone(), shard.file_bytes)).collect()
    }

    /// `(name, dtype, shape, shard, offset_bytes, size_bytes)` of each tensor, in file order.
    fn tensors<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for (number, shard) in self.checkpoint.shards.iter().enumerate() {
            for tensor in &shard.header.tensors {
                let shape = PyTuple::new(py, &tensor.shape)?;
                let (offset, size) = (tensor.offset_bytes, tensor.size_bytes);
                list.append((&tensor.name, tensor.dtype.name(), shape, number, offset, size))?;
            }
        }
        Ok(list)
    }

    /// The strings of `__metadata__`, merged over the files.
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let metadata = PyDict::new(py);
        for (key, value) in self.checkpoint.metadata() {
            metadata.set_item(key, value)?;
        }
        Ok(metadata)
    }

    /// The bytes in the page cache now, `None` if the kernel does not tell this user.
    fn resident_bytes(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        let count = || -> Result<u64> {
            let shards = self.checkpoint.shards.iter();
            shards.map(|s| residency::resident_bytes(&s.file, &s.path, s.file_bytes)).sum()
        };
        match py.detach(count) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind == Kind::ResidencyHidden => Ok(None),
            Err(error) => Err(to_python(&error)),
        }
    }

    /// Maps all files (once); no page is read.
    #[pyo3(signature = (huge_pages=true))]
    fn map(&self, py: Python<'_>, huge_pages: bool) -> PyResult<()> {
        let mappings = self.mappings(py)?;
        if !huge_pages {
            mappings.iter().for_each(|mapping| mapping.advise_small_pages());
        }
        Ok(())
    }

    /// Brings all pages in, `piece_bytes` at a time; returns the bytes.
    #[pyo3(signature = (callback, threads, piece_bytes=mapping::PIECE_BYTES))]
    fn populate(
        &self,
        py: Python<'_>,
        callback: Callback,
        threads: Option<usize>,
        piece_bytes: u64,
    ) -> PyResult<u64> {
        let mappings = self.mappings(py)?;
        let total = self.checkpoint.checkpoint_bytes();
        let threads = threads.unwrap_or_else(mapping::populate_threads);
        progress::run(py, &callback, |watch| {
            mapping::populate_in_pieces(mappings, threads, piece_bytes, |done| watch(done, total))
        })
    }

    /// The whole file of a shard as a writable buffer; it keeps the mapping alive.
    fn buffer(&self, py: Python<'_>, shard: usize) -> PyResult<Buffer> {
        let mapping = self.mappings(py)?.get(shard).ok_or_else(|| PyIndexError::new_err(shard))?;
        Ok(Buffer { mapping: Arc::clone(mapping) })
    }
}

impl NativeCheckpoint {
    fn mappings(&self, py: Python<'_>) -> PyResult<&Vec<Arc<Mapping>>> {
        if let Some(mappings) = self.mappings.get() {
            return Ok(mappings);
        }
        let map_all = || -> Result<Vec<Arc<Mapping>>> {
            self.checkpoint.shards.iter().map(|s| Mapping::of_shard(s).map(Arc::new)).collect()
        };
        let fresh = py.detach(map_all).map_err(|error| to_python(&error))?;
        // Of two threads that get here at once one throws its mappings away, unread.
        Ok(self.mappings.get_or_init(|| fresh))
    }
}

/// One mapped file as Python's buffer protocol sees it: bytes, writable, private to the process.
#[pyclass(frozen, module = "stoker_loader._native")]
pub struct Buffer {
    mapping: Arc<Mapping>,
}

#[pymethods]
impl Buffer {
    fn __len__(&self) -> usize {
        self.mapping.size_bytes()
    }

    // SAFETY: Python calls this with a `Py_buffer` to fill, as its protocol demands.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let mapping = &slf.get().mapping;
        let address = mapping.address().as_ptr().cast();
        let bytes = mapping.size_bytes() as ffi::Py_ssize_t;
        // SAFETY: `view` is valid for writing (above). The memory is readable and writable for
        // `bytes` bytes, and the view takes a reference to `slf`, which keeps the mapping.
        let status =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), address, bytes, 0, flags) };
        if status == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
