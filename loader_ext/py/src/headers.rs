//! What the headers of a checkpoint say, without its files.

use std::sync::{Arc, OnceLock};

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use stoker_loader_core::header::Header;
use stoker_loader_core::names::NameIndex;

/// The tensors by name. Nothing of it is a Python object before it is asked for.
#[pyclass(frozen, module = "stoker_loader._native")]
pub struct Headers {
    headers: Vec<Arc<Header>>,
    index: OnceLock<NameIndex>,
}

impl Headers {
    /// The headers of all shards, in their order.
    pub fn new(headers: Vec<Arc<Header>>) -> Self {
        Self { headers, index: OnceLock::new() }
    }
}

#[pymethods]
impl Headers {
    /// The names of all tensors, in file order.
    fn names(&self) -> Vec<&str> {
        let tensors = self.headers.iter().flat_map(|header| &header.tensors);
        tensors.map(|tensor| tensor.name.as_str()).collect()
    }

    /// `(name, dtype, shape, shard, offset_bytes, size_bytes)` of a tensor.
    fn record<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let index = self.index.get_or_init(|| NameIndex::new(&self.headers));
        let Some((shard, tensor)) = index.find(&self.headers, name) else { return Ok(None) };
        let shape = PyTuple::new(py, &tensor.shape)?;
        let (offset, size) = (tensor.offset_bytes, tensor.size_bytes);
        let record = (&tensor.name, tensor.dtype.name(), shape, shard, offset, size);
        record.into_pyobject(py).map(Some)
    }
}
