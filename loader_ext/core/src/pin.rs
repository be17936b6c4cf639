//! Keeps files in the page cache: their pages are locked in memory for as long as a [`Pin`] lives.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::mapping::Mapping;
use crate::populate::populate;

/// Files whose pages no other process and no shortage of memory takes out of the page cache.
#[derive(Debug)]
pub struct Pin {
    mappings: Vec<Arc<Mapping>>,
}

impl Pin {
    /// Locks the mappings whole, brings all of their pages in, and holds them until it is dropped.
    ///
    /// Whether the process may lock so much is known before anything is read: `mlock2(2)` with
    /// `MLOCK_ONFAULT` marks the whole range at once, and each page is locked when it comes in. It
    /// comes in as for a load, in huge pages where the file system has them, and nothing is copied:
    /// plain `mlock` would write to every page of a private mapping. `watch` sees the bytes done so
    /// far and may stop it; then, as after any error, nothing stays locked. Locks are the process's
    /// own: a child does not inherit them. Errors: `PinRefused`, `FileChanged`, `Io`, and whatever
    /// `watch` returns.
    pub fn new(
        mappings: Vec<Arc<Mapping>>,
        threads: usize,
        watch: impl FnMut(u64) -> Result<()>,
    ) -> Result<Self> {
        mappings.iter().try_for_each(|mapping| mapping.lock())?;
        populate(&mappings, threads, watch)?;
        Ok(Self { mappings })
    }

    /// The bytes of the files that are held.
    pub fn pinned_bytes(&self) -> u64 {
        self.mappings.iter().map(|mapping| mapping.size_bytes() as u64).sum()
    }
}

/// Why the kernel did not lock `size_bytes` more of this process's memory.
pub(crate) fn refused(path: &Path, size_bytes: u64, error: &std::io::Error) -> Error {
    match error.raw_os_error() {
        // mlock2(2): EPERM for a limit of 0, ENOMEM for one that is too low.
        Some(libc::EPERM | libc::ENOMEM) => {
            Error::new(path, Kind::PinRefused { size_bytes, limit: Limit(limit_bytes()) })
        }
        _ => Error::io(path, "mlock2", error),
    }
}

/// What `RLIMIT_MEMLOCK` says; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Option<u64>);

impl std::fmt::Display for Limit {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(bytes) => write!(out, "{bytes} bytes"),
            None => write!(out, "unlimited"),
        }
    }
}

fn limit_bytes() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is ours and outlives the call.
    let status = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (status == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evict::evict;
    use crate::residency::residency;
    use std::fs::{self, File};

    const FILE_BYTES: u64 = (20 << 20) + 3;

    fn mapped() -> (tempfile::TempDir, std::path::PathBuf, Arc<Mapping>) {
        // Beside the sources: /tmp may be a tmpfs, which has no pages to evict.
        let root = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = root.path().join("f");
        fs::write(&path, vec![1; FILE_BYTES as usize]).unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        let mapping = Arc::new(Mapping::new(file, &path, FILE_BYTES).unwrap());
        (root, path, mapping)
    }

    #[test]
    fn what_is_pinned_stays_until_it_is_dropped() {
        let (_root, path, mapping) = mapped();
        evict(&path).unwrap();
        let pin = match Pin::new(vec![mapping], 2, |_| Ok(())) {
            Err(Error { kind: Kind::PinRefused { .. }, .. }) => return, // no right to, here
            pin => pin.unwrap(),
        };
        assert_eq!(pin.pinned_bytes(), FILE_BYTES);
        evict(&path).unwrap();
        assert_eq!(residency(&path).unwrap().resident_bytes, FILE_BYTES);
        drop(pin);
        evict(&path).unwrap();
        assert_eq!(residency(&path).unwrap().resident_bytes, 0);
    }

    #[test]
    fn a_refusal_names_the_limit() {
        let no_right = std::io::Error::from_raw_os_error(libc::EPERM);
        let error = refused(Path::new("f"), 7, &no_right);
        assert_eq!(error.kind, Kind::PinRefused { size_bytes: 7, limit: Limit(limit_bytes()) });
        let unknown = std::io::Error::from_raw_os_error(libc::ENOSYS);
        assert!(matches!(refused(Path::new("f"), 7, &unknown).kind, Kind::Io { .. }));
        let shown: Vec<_> = [Some(7), None].map(|bytes| Limit(bytes).to_string()).into();
        assert_eq!(shown, ["7 bytes", "unlimited"]);
    }
}
