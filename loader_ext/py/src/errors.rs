//! Core errors as the exceptions of `stoker_loader.errors`.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use stoker_loader_core::{Error, Kind};

/// The exception for a core error: its class is looked up by the name that the error carries.
pub fn to_python(error: &Error) -> PyErr {
    Python::attach(|py| match instantiate(py, error) {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    })
}

fn instantiate<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    let class = py.import("stoker_loader.errors")?.getattr(error.kind.class())?;
    let facts = PyDict::new(py);
    facts.set_item("file", error.file.as_os_str())?;
    facts.set_item("tensor", &error.tensor)?;
    facts.set_item("offset", error.offset)?;
    match &error.kind {
        Kind::Io { errno, .. } => facts.set_item("errno", errno)?,
        Kind::ChunkMismatch { tensors, .. } => {
            facts.set_item("tensors", PyTuple::new(py, &tensors.0)?)?;
        }
        Kind::DriverCall { call, status, .. } => {
            facts.set_item("call", call)?;
            facts.set_item("status", status)?;
        }
        _ => {}
    }
    class.call((error.to_string(),), Some(&facts))
}

/// Every `(code, class, meaning)` of the core.
#[pyfunction]
pub fn error_table() -> Vec<(&'static str, &'static str, &'static str)> {
    Kind::TABLE.to_vec()
}
