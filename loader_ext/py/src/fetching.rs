//! The function that brings a file from elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use stoker_loader_core::fetch::{self as fetching, Limits, Origin, Wanted};

use crate::errors::to_python;
use crate::files::{PyFile, export_file, import_file};
use crate::progress::{self, Callback};

/// `(digest, resumed_bytes, bytes_by_origin, (resume_s, fetch_s, sync_s))`.
type PyFetched = (PyFile, u64, Vec<u64>, (f64, f64, f64));

/// `origins` are `(url, etag)`, `limits` are `(streams, stall_s, hedge_after_s, attempts)`.
#[pyfunction]
pub fn fetch(
    py: Python<'_>,
    origins: Vec<(String, Option<String>)>,
    destination: PathBuf,
    expected: Option<PyFile>,
    limits: (usize, Duration, Duration, u32),
    callback: Callback,
) -> PyResult<PyFetched> {
    let expected = expected
        .map(|file| import_file(&destination, file))
        .transpose()
        .map_err(|error| to_python(&error))?;
    let import = |(url, etag)| Origin { url, etag, modified: None };
    let origins = origins.into_iter().map(import).collect();
    let wanted = Wanted { origins, expected };
    let (streams, stall, hedge_after, attempts) = limits;
    let limits = Limits { streams, stall, hedge_after, attempts };
    let fetched = progress::run(py, &callback, |watch| {
        fetching::fetch(&wanted, &destination, &limits, watch)
    })?;
    let seconds = fetched.seconds;
    Ok((
        export_file(fetched.digest),
        fetched.resumed_bytes,
        fetched.bytes_by_origin,
        (seconds.resume, seconds.fetch, seconds.sync),
    ))
}
