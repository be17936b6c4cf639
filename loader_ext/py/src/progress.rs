//! Long core calls: the GIL is released, and taken only to report progress and to see signals.

use pyo3::prelude::*;
use stoker_loader_core::{Error, Kind, Result};

use crate::errors::to_python;

/// What Python gives for progress: `callback(done_bytes, total_bytes)` or `None`.
pub type Callback = Option<Py<PyAny>>;

/// Runs `work` without the GIL. Its argument is called with `(done, total)` now and then.
///
/// What the callback raises, and `KeyboardInterrupt`, stop the work and are raised to the caller.
pub fn run<T: Send>(
    py: Python<'_>,
    callback: &Callback,
    work: impl FnOnce(&mut dyn FnMut(u64, u64) -> Result<()>) -> Result<T> + Send,
) -> PyResult<T> {
    // Python handles signals on its main thread alone: without a callback other threads need
    // not stand in line for the GIL.
    let silent = callback.is_none() && !on_main_thread(py)?;
    let mut raised: Option<PyErr> = None;
    let outcome = py.detach(|| {
        work(&mut |done, total| {
            if silent {
                return Ok(());
            }
            Python::attach(|py| report(py, callback, done, total)).map_err(|error| {
                raised = Some(error);
                Error::new("".as_ref(), Kind::Cancelled)
            })
        })
    });
    match raised {
        Some(error) => Err(error),
        None => outcome.map_err(|error| to_python(&error)),
    }
}

fn report(py: Python<'_>, callback: &Callback, done: u64, total: u64) -> PyResult<()> {
    py.check_signals()?;
    if let Some(callback) = callback {
        callback.call1(py, (done, total))?;
    }
    Ok(())
}

fn on_main_thread(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    main.eq(threading.call_method0("get_ident")?)
}
