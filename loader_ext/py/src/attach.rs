//! Many tensors at once: named ranges of memory to a dictionary of what Python makes of them.

use std::any::Any;
use std::sync::Arc;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};
use stoker_loader_core::dtype::Dtype;

use crate::dlpack;

/// Row-major elements at an address that `keeper` keeps valid and writable.
pub struct Placed<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [u64],
    pub size_bytes: u64,
    pub address: *mut u8,
    pub keeper: Arc<dyn Any + Send + Sync>,
}

/// `{name: make(capsule)}` in the order given. Where the dtype is none of `dtypes`, or the address
/// no multiple of the element, it is `other(name, dtype, shape, capsule of the bytes)`.
pub fn attach<'a, 'py>(
    py: Python<'py>,
    placed: impl Iterator<Item = PyResult<Placed<'a>>>,
    dtypes: &[String],
    make: &Bound<'py, PyAny>,
    other: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let dtypes: Vec<Dtype> = dtypes.iter().filter_map(|name| Dtype::from_name(name)).collect();
    let tensors = PyDict::new(py);
    let _paused = PausedCollector::new(py);
    for tensor in placed {
        let Placed { name, dtype, shape, size_bytes, address, keeper } = tensor?;
        let key = PyString::new(py, name);
        let value = if dlpack::is_aligned(address, dtype) && dtypes.contains(&dtype) {
            make.call1((dlpack::capsule(py, keeper, address, dtype, shape)?,))
        } else {
            let bytes = dlpack::capsule(py, keeper, address, Dtype::U8, &[size_bytes])?;
            other.call1((&key, dtype.name(), PyTuple::new(py, shape)?, bytes))
        };
        tensors.set_item(key, value?)?;
    }
    Ok(tensors)
}

/// Python's cycle collector, off until this is dropped.
///
/// Thousands of new objects that all survive make it look through everything that the process ever
/// imported, twice as long as making them takes; and no cycle is among them.
struct PausedCollector<'py> {
    was_enabled: bool,
    _py: Python<'py>,
}

impl<'py> PausedCollector<'py> {
    fn new(py: Python<'py>) -> Self {
        // SAFETY: the GIL is held, as `py` shows.
        Self { was_enabled: unsafe { ffi::PyGC_Disable() } == 1, _py: py }
    }
}

impl Drop for PausedCollector<'_> {
    fn drop(&mut self) {
        if self.was_enabled {
            // SAFETY: the GIL is held, as `_py` shows.
            unsafe { ffi::PyGC_Enable() };
        }
    }
}
