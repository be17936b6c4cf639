//! Files that stay in the page cache while Python holds an object.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use stoker_loader_core::pin::Pin as CorePin;
use stoker_loader_core::populate;

use crate::files::map_all;
use crate::progress::{self, Callback};

/// Pinned files, until `close` or the end of the object.
#[pyclass(frozen, module = "stoker_loader._native")]
pub struct Pin(Mutex<Option<CorePin>>);

#[pymethods]
impl Pin {
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        callback: Callback,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        let pin = progress::run(py, &callback, |watch| {
            let mappings = map_all(&path)?;
            let total = mappings.iter().map(|mapping| mapping.size_bytes() as u64).sum();
            let threads = threads.unwrap_or_else(|| populate::threads_for(&mappings));
            CorePin::new(mappings, threads, |done| watch(done, total))
        })?;
        Ok(Self(Mutex::new(Some(pin))))
    }

    /// 0 when it is closed.
    #[getter]
    fn pinned_bytes(&self) -> u64 {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map_or(0, CorePin::pinned_bytes)
    }

    /// Lets the pages go; the second time does nothing.
    fn close(&self, py: Python<'_>) {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(held));
    }
}
