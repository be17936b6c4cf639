//! Takes files out of the page cache.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::error::{Error, Result};
use crate::inventory::{Links, inventory};

/// Drops the clean, unmapped pages of a file or of every regular file under a directory.
///
/// Dirty pages are written first, since the kernel drops only clean ones. Pages that any process
/// has mapped or locked stay, and a `tmpfs` has nowhere else to keep them: ask
/// [`crate::residency::residency`] what is left.
pub fn evict(path: &Path) -> Result<()> {
    for entry in inventory(path, Links::Follow)? {
        let file = File::open(&entry.path).map_err(|e| Error::io(&entry.path, "open", &e))?;
        file.sync_data().map_err(|error| Error::io(&entry.path, "fdatasync", &error))?;
        // SAFETY: the descriptor is open; the advice touches no memory of ours.
        let status =
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        if status != 0 {
            let error = std::io::Error::from_raw_os_error(status);
            return Err(Error::io(&entry.path, "posix_fadvise", &error));
        }
    }
    Ok(())
}
