//! The handler that names the file of a fatal page.

use pyo3::prelude::*;
use stoker_loader_core::faults;

use crate::errors::to_python;

#[pyfunction]
pub fn explain_bus_errors() -> PyResult<()> {
    faults::explain_bus_errors().map_err(|error| to_python(&error))
}
