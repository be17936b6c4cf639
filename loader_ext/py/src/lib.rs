//! The Python face of `stoker-loader-core` and `stoker-kernels`: it converts arguments, results and
//! errors, releases the GIL around everything that takes long, and decides nothing.

mod attach;
mod checkpoint;
mod devices;
mod dlpack;
mod errors;
mod faults;
mod fetching;
mod files;
mod headers;
mod kernels;
mod parallel;
mod pinning;
mod progress;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<checkpoint::NativeCheckpoint>()?;
    module.add_class::<checkpoint::Buffer>()?;
    module.add_class::<headers::Headers>()?;
    module.add_class::<parallel::Parts>()?;
    module.add_class::<kernels::Kernels>()?;
    module.add_class::<pinning::Pin>()?;
    module.add_function(wrap_pyfunction!(devices::copy_to_devices, module)?)?;
    module.add_function(wrap_pyfunction!(kernels::has_wide_vectors, module)?)?;
    module.add_function(wrap_pyfunction!(errors::error_table, module)?)?;
    module.add_function(wrap_pyfunction!(faults::explain_bus_errors, module)?)?;
    module.add_function(wrap_pyfunction!(files::residency, module)?)?;
    module.add_function(wrap_pyfunction!(files::evict, module)?)?;
    module.add_function(wrap_pyfunction!(files::prefetch, module)?)?;
    module.add_function(wrap_pyfunction!(files::digest, module)?)?;
    module.add_function(wrap_pyfunction!(files::verify, module)?)?;
    module.add_function(wrap_pyfunction!(files::verify_root, module)?)?;
    module.add_function(wrap_pyfunction!(files::check_digest, module)?)?;
    module.add_function(wrap_pyfunction!(files::sidecar_digest, module)?)?;
    module.add_function(wrap_pyfunction!(files::layout, module)?)?;
    module.add_function(wrap_pyfunction!(fetching::fetch, module)?)?;
    Ok(())
}
