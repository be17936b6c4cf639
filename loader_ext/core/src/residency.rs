//! What the page cache holds of a file: a fact of the kernel's, asked without reading a byte.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::ptr;

use crate::error::{Error, Kind, Result};
use crate::inventory::{Links, inventory};
use crate::mapping::page_bytes;

/// Pages that one `mincore` reports on (64 KiB of answers, 256 MiB of file).
const WINDOW_PAGES: usize = 1 << 16;

/// How much of a file, or of all files under a directory, is in the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Residency {
    /// The files' bytes.
    pub checkpoint_bytes: u64,
    /// Those of them that are resident.
    pub resident_bytes: u64,
}

/// The residency of a file or of every regular file under a directory.
///
/// Errors: `ResidencyHidden` if the kernel does not tell this user, `NotFound`, `Io`.
pub fn residency(path: &Path) -> Result<Residency> {
    let mut total = Residency::default();
    for entry in inventory(path, Links::Follow)? {
        let file = File::open(&entry.path).map_err(|e| Error::io(&entry.path, "open", &e))?;
        total.resident_bytes += resident_bytes(&file, &entry.path, entry.size_bytes)?;
        total.checkpoint_bytes += entry.size_bytes;
    }
    Ok(total)
}

/// Resident bytes among the first `file_bytes` of an open file.
pub fn resident_bytes(file: &File, path: &Path, file_bytes: u64) -> Result<u64> {
    // To others mincore answers "resident" for every page (since Linux 5.2), a plain lie.
    if !may_ask(file, path)? {
        return Err(Error::new(path, Kind::ResidencyHidden));
    }
    let page = page_bytes();
    let mut answers = vec![0u8; WINDOW_PAGES.min((file_bytes as usize).div_ceil(page))];
    let mut resident_pages = 0u64;
    let window_bytes = (WINDOW_PAGES * page) as u64;
    for begin in (0..file_bytes).step_by(window_bytes as usize) {
        let bytes = window_bytes.min(file_bytes - begin) as usize;
        let pages = bytes.div_ceil(page);
        // SAFETY: a fresh shared read-only mapping at an address of the kernel's choice; no byte
        // of it is ever read, so a truncated file cannot fault.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                begin as libc::off_t,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Error::last_os(path, "mmap"));
        }
        // SAFETY: the range is mapped and `answers` has a byte for each of its pages.
        let status = unsafe { libc::mincore(start, bytes, answers.as_mut_ptr().cast()) };
        let failed = (status != 0).then(|| Error::last_os(path, "mincore"));
        // SAFETY: the range was mapped above and nothing points into it.
        unsafe { libc::munmap(start, bytes) };
        if let Some(error) = failed {
            return Err(error);
        }
        resident_pages += answers[..pages].iter().map(|answer| u64::from(answer & 1)).sum::<u64>();
    }
    Ok((resident_pages * page as u64).min(file_bytes))
}

fn may_ask(file: &File, path: &Path) -> Result<bool> {
    let owner = file.metadata().map_err(|error| Error::io(path, "fstat", &error))?.uid();
    // SAFETY: geteuid has no arguments and cannot fail.
    if owner == unsafe { libc::geteuid() } {
        return Ok(true);
    }
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return Ok(false) };
    // SAFETY: the path is a live C string and the call keeps no pointer.
    let status =
        unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK, libc::AT_EACCESS) };
    Ok(status == 0)
}
