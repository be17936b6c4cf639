//! An open checkpoint and the buffers over its mappings.

use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use stoker_loader_core::arrival::Arriving;
use stoker_loader_core::checkpoint::{Checkpoint, Shard, Waiter};
use stoker_loader_core::digest::Digest;
use stoker_loader_core::dtype::Dtype;
use stoker_loader_core::mapping::Mapping;
use stoker_loader_core::source::{self, Backend, Sink, Wanted, image, probe};
use stoker_loader_core::{Kind, Result, parallel, populate, residency, verification};

use crate::attach::{Placed, attach};
use crate::dlpack;
use crate::errors::to_python;
use crate::files::{PyFile, import_file};
use crate::headers::Headers;
use crate::parallel::{Parts, PyRule, import_plan};
use crate::progress::{self, Callback};

/// `(back end, [(a better one, why it is refused)])`.
type PyChoice = (&'static str, Vec<(&'static str, String)>);

/// The back end of this name.
pub(crate) fn import_backend(name: &str) -> PyResult<Backend> {
    Backend::from_name(name).ok_or_else(|| PyValueError::new_err("backend"))
}

/// A checkpoint whose headers are checked; its mappings are made when first needed.
#[pyclass(frozen, name = "Checkpoint", module = "stoker_loader._native")]
pub struct NativeCheckpoint {
    checkpoint: Checkpoint,
    mappings: OnceLock<Vec<Arc<Mapping>>>,
}

#[pymethods]
impl NativeCheckpoint {
    /// With `patience`, files may be on their way, and headers are waited for. With `verify` each
    /// chunk is compared when it comes in: with `known` digests, whose root, where it is given,
    /// must be theirs, else with those of sidecars.
    #[new]
    #[pyo3(signature = (path, patience, verify=false, known=None, callback=None))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        patience: Option<Duration>,
        verify: bool,
        known: Option<(Option<String>, Vec<PyFile>)>,
        callback: Callback,
    ) -> PyResult<Self> {
        let checkpoint = progress::run(py, &callback, |watch| {
            if let Some(patience) = patience {
                let watch = &mut || watch(0, 0);
                return Checkpoint::open_arriving(&path, Waiter { patience, watch });
            }
            if !verify {
                return Checkpoint::open(&path);
            }
            let import = |(root, files): (Option<String>, Vec<PyFile>)| -> Result<Vec<_>> {
                let import = |file| import_file(&path, file);
                let files = files.into_iter().map(import).collect::<Result<Vec<_>>>()?;
                let Some(root) = root else { return Ok(files) };
                let digest = Digest { root, files };
                digest.check(&path)?;
                Ok(digest.files)
            };
            Checkpoint::open_verified(&path, known.map(import).transpose()?.as_deref())
        })?;
        Ok(Self { checkpoint, mappings: OnceLock::new() })
    }

    /// `(name, size_bytes)` of each file.
    #[pyo3(name = "shards")]
    fn export_shards(&self) -> Vec<(String, u64)> {
        let shards = self.checkpoint.shards.iter();
        shards.map(|shard| (shard.name.clone(), shard.file_bytes)).collect()
    }

    /// What the headers say of the tensors, which outlives this.
    fn headers(&self) -> Headers {
        let headers = self.checkpoint.shards.iter().map(|shard| Arc::clone(&shard.header));
        Headers::new(headers.collect())
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

    /// The bytes that have not arrived yet.
    fn remote_bytes(&self) -> u64 {
        let arriving = self.checkpoint.shards.iter().filter_map(|shard| shard.arriving.as_ref());
        arriving.map(|arriving| arriving.arrival.missing_bytes()).sum()
    }

    /// Waits until a range of a shard has arrived and, where digests are known, was compared.
    #[pyo3(signature = (shard, offset, size_bytes, callback=None))]
    fn wait(
        &self,
        py: Python<'_>,
        shard: usize,
        offset: u64,
        size_bytes: u64,
        callback: Callback,
    ) -> PyResult<()> {
        let mapping = self.mappings(py)?.get(shard).ok_or_else(|| PyIndexError::new_err(shard))?;
        address(mapping, offset, size_bytes)?;
        let Shard { arriving, verification, .. } = &self.checkpoint.shards[shard];
        if let Some(Arriving { arrival, patience }) = arriving {
            let chunks = arrival.subject().chunks_of(offset, size_bytes);
            if !chunks.clone().all(|chunk| arrival.has(chunk)) {
                progress::run(py, &callback, |watch| {
                    arrival.wait(chunks, *patience, &mut || watch(0, size_bytes))
                })?;
            }
        }
        if let Some(verification) = verification {
            let mut chunks = verification.chunks_for(offset, size_bytes);
            if !chunks.all(|chunk| verification.is_verified(chunk)) {
                let threads = populate::threads_for(self.mappings(py)?);
                progress::run(py, &callback, |watch| {
                    let watch = |done| watch(done, size_bytes);
                    verification::verify_range(mapping, offset, size_bytes, threads, watch)
                })?;
            }
        }
        Ok(())
    }

    /// Waits until every file stands complete at its name.
    #[pyo3(signature = (callback=None))]
    fn settle(&self, py: Python<'_>, callback: Callback) -> PyResult<()> {
        let arriving = self.checkpoint.shards.iter().filter_map(|shard| shard.arriving.as_ref());
        progress::run(py, &callback, |watch| {
            for Arriving { arrival, patience } in arriving {
                arrival.wait_complete(*patience, &mut || watch(0, 0))?;
            }
            Ok(())
        })
    }

    /// `(bytes, seconds)` of what was compared with digests so far.
    fn verified(&self) -> (u64, f64) {
        let verifications = self.checkpoint.shards.iter().filter_map(|s| s.verification.as_ref());
        let spent = verifications.map(|verification| verification.spent());
        spent.fold((0, 0.0), |(bytes, seconds), (more, longer)| (bytes + more, seconds + longer))
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
    #[pyo3(signature = (callback, threads, piece_bytes=populate::PIECE_BYTES))]
    fn populate(
        &self,
        py: Python<'_>,
        callback: Callback,
        threads: Option<usize>,
        piece_bytes: u64,
    ) -> PyResult<u64> {
        let mappings = self.mappings(py)?;
        let total = self.checkpoint.checkpoint_bytes();
        let threads = threads.unwrap_or_else(|| populate::threads_for(mappings));
        progress::run(py, &callback, |watch| {
            populate::populate_in_pieces(mappings, threads, piece_bytes, |done| watch(done, total))
        })
    }

    /// The back end for a load, and why better ones are refused: `(name, [(name, reason)])`.
    fn choose(&self, py: Python<'_>, source: &str, to_device: bool) -> PyResult<PyChoice> {
        let sink = if to_device { Sink::Device } else { Sink::Host };
        let choose = || {
            let wanted = Wanted::from_name(&self.checkpoint.path, source)?;
            probe::choose(&self.checkpoint, wanted, sink)
        };
        let choice = py.detach(choose).map_err(|error| to_python(&error))?;
        let refused = choice.refused.into_iter().map(|(backend, why)| (backend.name(), why));
        Ok((choice.backend.name(), refused.collect()))
    }

    /// Why each back end cannot read the files here, `None` if it can.
    fn attempt(&self, py: Python<'_>) -> PyResult<Vec<(&'static str, Option<String>)>> {
        let attempt =
            |backend: Backend| Ok((backend.name(), probe::attempt(backend, &self.checkpoint)?));
        let attempts = || Backend::ALL.into_iter().map(attempt).collect::<Result<_>>();
        py.detach(attempts).map_err(|error| to_python(&error))
    }

    /// All tensors, read by a back end into memory of this process.
    fn read(
        &self,
        py: Python<'_>,
        backend: &str,
        callback: Callback,
        threads: Option<usize>,
    ) -> PyResult<Parts> {
        let backend = import_backend(backend)?;
        let threads = threads.unwrap_or_else(source::default_threads);
        let (shards, total) = (&self.checkpoint.shards, self.checkpoint.checkpoint_bytes());
        let images = progress::run(py, &callback, |watch| {
            let sources = source::open_all(backend, shards)?;
            image::read(shards, &sources, threads, |done| watch(done, total))
        })?;
        Ok(Parts::of_images(shards, &images))
    }

    /// A DLPack capsule over the mapping: row-major elements that begin at a byte of a shard.
    fn capsule<'py>(
        &self,
        py: Python<'py>,
        shard: usize,
        offset_bytes: u64,
        dtype: &str,
        shape: Vec<u64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mapping = self.mappings(py)?.get(shard).ok_or_else(|| PyIndexError::new_err(shard))?;
        let dtype = Dtype::from_name(dtype).ok_or_else(|| PyValueError::new_err("dtype"))?;
        let size_bytes = dtype.size_bytes(&shape).ok_or_else(|| PyValueError::new_err("shape"))?;
        let address = address(mapping, offset_bytes, size_bytes)?;
        dlpack::capsule(py, Arc::clone(mapping) as _, address, dtype, &shape)
    }

    /// `{name: make(capsule)}` of all tensors in file order, or what `other` makes of its bytes
    /// where the dtype is none of `dtypes` or the tensor does not lie on its element.
    fn attach<'py>(
        &self,
        py: Python<'py>,
        dtypes: Vec<String>,
        make: &Bound<'py, PyAny>,
        other: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let files = self.checkpoint.shards.iter().zip(self.mappings(py)?);
        let placed = files.flat_map(|(shard, mapping)| {
            shard.header.tensors.iter().map(move |tensor| {
                Ok(Placed {
                    name: &tensor.name,
                    dtype: tensor.dtype,
                    shape: &tensor.shape,
                    size_bytes: tensor.size_bytes,
                    address: address(mapping, tensor.offset_bytes, tensor.size_bytes)?,
                    keeper: Arc::clone(mapping) as _,
                })
            })
        });
        attach(py, placed, &dtypes, make, other)
    }

    /// What a rank needs, read by a back end and packed by the rules of a plan.
    #[expect(clippy::too_many_arguments, reason = "each is one thing that Python says")]
    fn load_shard(
        &self,
        py: Python<'_>,
        rules: Vec<PyRule>,
        rank: u64,
        world_size: u64,
        backend: &str,
        callback: Callback,
        threads: Option<usize>,
    ) -> PyResult<Parts> {
        let (plan, backend) = (import_plan(rules), import_backend(backend)?);
        let threads = threads.unwrap_or_else(populate::default_threads);
        let share = (rank, world_size);
        let loaded = progress::run(py, &callback, |watch| {
            parallel::load(&self.checkpoint, &plan, backend, share, threads, watch)
        })?;
        Ok(Parts::new(&loaded))
    }

    /// The whole file of a shard as a writable buffer; it keeps the mapping alive.
    fn buffer(&self, py: Python<'_>, shard: usize) -> PyResult<Buffer> {
        let mapping = self.mappings(py)?.get(shard).ok_or_else(|| PyIndexError::new_err(shard))?;
        Ok(Buffer { mapping: Arc::clone(mapping) })
    }
}

impl NativeCheckpoint {
    /// The files.
    pub(crate) fn shards(&self) -> &[Shard] {
        &self.checkpoint.shards
    }

    pub(crate) fn mappings(&self, py: Python<'_>) -> PyResult<&Vec<Arc<Mapping>>> {
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

/// The address of a range of a mapping, checked against its end.
fn address(mapping: &Mapping, offset_bytes: u64, size_bytes: u64) -> PyResult<*mut u8> {
    let end = offset_bytes.checked_add(size_bytes);
    if end.is_none_or(|end| end > mapping.size_bytes() as u64) {
        return Err(PyIndexError::new_err(offset_bytes));
    }
    Ok(mapping.address().as_ptr().wrapping_add(offset_bytes as usize))
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
