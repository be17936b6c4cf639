//! The functions on paths: residency, evict, prefetch, digest, verify, layout.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::prelude::*;
use stoker_loader_core::digest::{self as digests, Digest, FileDigest};
use stoker_loader_core::inventory::{Links, inventory};
use stoker_loader_core::mapping::Mapping;
use stoker_loader_core::{
    Error, Kind, Result, evict as evicting, layout as layouts, populate, residency as cache,
    verification,
};

use crate::errors::to_python;
use crate::progress::{self, Callback};

/// `(name, size_bytes, chunks)`, a chunk as 32 hexadecimal digits.
pub type PyFile = (String, u64, Vec<String>);
/// `(root, files)`.
type PyDigest = (String, Vec<PyFile>);
/// `(digest, checkpoint_bytes, tensors, fused_groups, skipped)`.
type PyLayout = (PyDigest, u64, usize, Vec<Vec<String>>, Vec<String>);

/// `(checkpoint_bytes, resident_bytes)`.
#[pyfunction]
pub fn residency(py: Python<'_>, path: PathBuf) -> PyResult<(u64, u64)> {
    let found = py.detach(|| cache::residency(&path)).map_err(|error| to_python(&error))?;
    Ok((found.checkpoint_bytes, found.resident_bytes))
}

#[pyfunction]
pub fn evict(py: Python<'_>, path: PathBuf) -> PyResult<()> {
    py.detach(|| evicting::evict(&path)).map_err(|error| to_python(&error))
}

#[pyfunction]
pub fn prefetch(
    py: Python<'_>,
    path: PathBuf,
    callback: Callback,
    threads: Option<usize>,
) -> PyResult<u64> {
    progress::run(py, &callback, |watch| {
        let mappings = map_all(&path)?;
        let total = mappings.iter().map(|mapping| mapping.size_bytes() as u64).sum();
        let threads = threads.unwrap_or_else(|| populate::threads_for(&mappings));
        populate::populate(&mappings, threads, |done| watch(done, total))
    })
}

/// Maps every file under a path that is not empty.
pub fn map_all(path: &Path) -> Result<Vec<Arc<Mapping>>> {
    let mut mappings = Vec::new();
    for entry in inventory(path, Links::Follow)? {
        // An empty file has nothing to map.
        if entry.size_bytes > 0 {
            let file = File::open(&entry.path).map_err(|e| Error::io(&entry.path, "open", &e))?;
            let mapping = Mapping::new(Arc::new(file), &entry.path, entry.size_bytes)?;
            mappings.push(Arc::new(mapping));
        }
    }
    Ok(mappings)
}

#[pyfunction]
pub fn digest(py: Python<'_>, path: PathBuf, callback: Callback) -> PyResult<PyDigest> {
    let found = progress::run(py, &callback, |watch| {
        let total = total_bytes(&path)?;
        digests::digest(&path, |done| watch(done, total))
    })?;
    Ok(export_digest(found))
}

#[pyfunction]
pub fn verify(
    py: Python<'_>,
    path: PathBuf,
    expected: PyDigest,
    callback: Callback,
) -> PyResult<()> {
    let expected = import_digest(&path, expected).map_err(|error| to_python(&error))?;
    progress::run(py, &callback, |watch| {
        let total = total_bytes(&path)?;
        digests::verify(&path, &expected, |done| watch(done, total))
    })
}

#[pyfunction]
pub fn verify_root(
    py: Python<'_>,
    path: PathBuf,
    expected: String,
    callback: Callback,
) -> PyResult<()> {
    progress::run(py, &callback, |watch| {
        let total = total_bytes(&path)?;
        digests::verify_root(&path, &expected, |done| watch(done, total))
    })
}

/// Whether a root is that of the files beside it; no file is read.
#[pyfunction]
pub fn check_digest(py: Python<'_>, digest: PyDigest) -> PyResult<()> {
    let found = py.detach(|| {
        let nowhere = Path::new("");
        import_digest(nowhere, digest)?.check(nowhere)
    });
    found.map_err(|error| to_python(&error))
}

/// The digest of the file that a sidecar stands beside.
#[pyfunction]
pub fn sidecar_digest(py: Python<'_>, path: PathBuf) -> PyResult<PyFile> {
    let found = py.detach(|| verification::sidecar_digest(&path));
    found.map(export_file).map_err(|error| to_python(&error))
}

#[pyfunction]
pub fn layout(
    py: Python<'_>,
    source: PathBuf,
    destination: PathBuf,
    callback: Callback,
) -> PyResult<PyLayout> {
    let report =
        progress::run(py, &callback, |watch| layouts::layout(&source, &destination, watch))?;
    Ok((
        export_digest(report.digest),
        report.checkpoint_bytes,
        report.tensors,
        report.fused_groups,
        report.skipped,
    ))
}

fn total_bytes(path: &Path) -> Result<u64> {
    Ok(inventory(path, Links::Refuse)?.iter().map(|entry| entry.size_bytes).sum())
}

fn export_digest(digest: Digest) -> PyDigest {
    (digest.root, digest.files.into_iter().map(export_file).collect())
}

fn import_digest(path: &Path, (root, files): PyDigest) -> Result<Digest> {
    let import = |file| import_file(path, file);
    Ok(Digest { root, files: files.into_iter().map(import).collect::<Result<_>>()? })
}

/// A file's digest with its chunks in hexadecimal.
pub fn export_file(file: FileDigest) -> PyFile {
    let chunks = file.chunks.iter().map(|chunk| format!("{chunk:032x}")).collect();
    (file.name, file.size_bytes, chunks)
}

/// The way back. Errors: `DigestInvalid`.
pub fn import_file(path: &Path, (name, size_bytes, chunks): PyFile) -> Result<FileDigest> {
    let parse = |chunk: &String| {
        // A number in Rust may have a sign, and any length.
        let digits = chunk.len() == 32 && chunk.bytes().all(|digit| digit.is_ascii_hexdigit());
        u128::from_str_radix(chunk, 16).ok().filter(|_| digits).ok_or_else(|| {
            let reason = format!("a chunk of {name:?} is not 32 hexadecimal digits: {chunk:?}");
            Error::new(path, Kind::DigestInvalid { reason })
        })
    };
    let chunks = chunks.iter().map(parse).collect::<Result<_>>()?;
    Ok(FileDigest { name, size_bytes, chunks })
}
