//! What the page cache holds of a file: a fact of the kernel's, asked without reading a byte.
//!
//! `cachestat` (Linux 6.5) counts by folio, some 100 times faster than `mincore` counts by page;
//! where it is missing or forbidden `mincore` answers the same question.

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
/// The number of `cachestat` on every architecture that Rust's `libc` and we share.
const SYS_CACHESTAT: libc::c_long = 451;

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
    match count_by_folio(file, file_bytes) {
        Some(bytes) => Ok(bytes),
        None => count_by_page(file, path, file_bytes),
    }
}

/// Whether all of an open file is resident; false also where only counting by page could tell,
/// which takes longer than mapping what is there.
pub(crate) fn all_by_folio(file: &File, path: &Path, file_bytes: u64) -> bool {
    may_ask(file, path) == Ok(true) && count_by_folio(file, file_bytes) == Some(file_bytes)
}

/// Asks `cachestat`; `None` where the kernel or a sandbox does not offer it.
fn count_by_folio(file: &File, file_bytes: u64) -> Option<u64> {
    #[repr(C)]
    struct Range {
        offset: u64,
        length: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Counts {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    // A length of 0 would mean "to the end", which may have moved.
    if file_bytes == 0 {
        return Some(0);
    }
    let range = Range { offset: 0, length: file_bytes };
    let mut counts = Counts::default();
    // SAFETY: both structures have the layout of <linux/mman.h> and outlive the call.
    let status =
        unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &range, &mut counts, 0u32) };
    (status == 0).then(|| (counts.cached * page_bytes() as u64).min(file_bytes))
}

/// Asks `mincore`.
fn count_by_page(file: &File, path: &Path, file_bytes: u64) -> Result<u64> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evict::evict;
    use std::fs;
    use std::os::unix::fs::FileExt;

    #[test]
    fn both_ways_of_asking_agree() {
        let root = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = root.path().join("f");
        let size = (40 << 20) + 5;
        fs::write(&path, vec![1; size]).unwrap();
        let size = size as u64;
        let file = File::open(&path).unwrap();
        assert_eq!(count_by_page(&file, &path, size), Ok(size));
        evict(&path).unwrap();
        assert_eq!(count_by_page(&file, &path, size), Ok(0));
        file.read_exact_at(&mut [0; 9000], 20 << 20).unwrap();
        let some = count_by_page(&file, &path, size).unwrap();
        assert!((9000..size).contains(&some));
        // Kernels before 6.5, and sandboxes, have the other one alone.
        if let Some(found) = count_by_folio(&file, size) {
            assert_eq!(found, some);
        }
        assert_eq!(count_by_folio(&file, 0).unwrap_or(0), 0);
    }
}
