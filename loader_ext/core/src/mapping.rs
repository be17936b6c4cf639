//! A file in memory: a private writable mapping on a 2 MiB boundary.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::arrival::{Arriving, Silence};
use crate::checkpoint::Shard;
use crate::error::{Error, Kind, Result};
use crate::pin::refused;
use crate::populate::Advice;
use crate::reservation::Reservation;
use crate::residency;
use crate::verification::Verification;

/// The size of a PMD-mapped page; only an address on this boundary can map one.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A whole file, mapped `MAP_PRIVATE` and writable: writes copy the page and never reach the file.
///
/// The mapping lives until this value is dropped. Reading a page that the file no longer has
/// (someone truncated it) kills the process with SIGBUS; checkpoints are immutable for that reason.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
    file: Arc<File>,
    path: PathBuf,
    /// Says which bytes are there, of a file that is still on its way.
    arriving: Option<Arriving>,
    /// Compares what comes in with what is known of it.
    verification: Option<Arc<Verification>>,
}

// SAFETY: the mapping is plain memory that this value owns; it has no thread affinity.
unsafe impl Send for Mapping {}
// SAFETY: shared use only reads addresses or calls madvise, which the kernel serialises.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a shard after checking that its length is still the checked one.
    pub fn of_shard(shard: &Shard) -> Result<Self> {
        shard.check_length()?;
        let mut mapping = Self::new(Arc::clone(&shard.file), &shard.path, shard.file_bytes)?;
        mapping.arriving = shard.arriving.clone();
        mapping.verification = shard.verification.clone();
        Ok(mapping)
    }

    /// Maps the first `file_bytes` (more than 0) of an open file; no page is read.
    pub fn new(file: Arc<File>, path: &Path, file_bytes: u64) -> Result<Self> {
        let reservation = Reservation::new(path, file_bytes)?;
        let bytes = reservation.size_bytes();
        let address = reservation.map(path, Some(&file))?;
        Ok(Self {
            address,
            bytes,
            file,
            path: path.to_path_buf(),
            arriving: None,
            verification: None,
        })
    }

    /// The address of the file's first byte, on a 2 MiB boundary.
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The length of the file.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    /// Waits a little for a range of a file that is still on its way; true if it is there.
    /// Errors: as [`Arrival::wait_briefly`].
    pub(crate) fn has_arrived(
        &self,
        offset: u64,
        size_bytes: u64,
        silence: &mut Silence,
    ) -> Result<bool> {
        let Some(Arriving { arrival, patience }) = &self.arriving else { return Ok(true) };
        let chunks = arrival.subject().chunks_of(offset, size_bytes);
        arrival.wait_briefly(chunks, *patience, silence)
    }

    /// Reads a range into memory elsewhere, having brought it into the page cache in large folios.
    ///
    /// Unlike the mapping itself this is safe where the file became shorter. The range must lie in
    /// the file, and of a file that is on its way it must have arrived. Errors: `FileChanged`,
    /// `ChunkMismatch`, `Io`.
    pub fn read(&self, offset: u64, into: &mut [u8], advice: &Advice) -> Result<()> {
        let end = offset.checked_add(into.len() as u64);
        assert!(end.is_some_and(|end| end <= self.bytes as u64), "the range lies in the file");
        let lead = offset % page_bytes() as u64;
        self.bring_in(offset - lead, lead + into.len() as u64, advice)?;
        self.read_range(offset, into)
    }

    /// Reads a range; an error tells the byte at which it happened.
    pub(crate) fn read_range(&self, mut offset: u64, mut into: &mut [u8]) -> Result<()> {
        while !into.is_empty() {
            let error = match self.file.read_at(into, offset) {
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Ok(count) => {
                    offset += count as u64;
                    into = &mut into[count..];
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            self.check_length()?;
            return Err(Error::io(&self.path, "read", &error).at(offset));
        }
        Ok(())
    }

    /// Asks the kernel to read no further than a huge page around what is asked for, or with
    /// `false` to read ahead again.
    ///
    /// Without it a populated range pulls in as much behind it as the device's read-ahead is.
    pub(crate) fn read_exactly(&self, exactly: bool) -> Result<()> {
        let advice = if exactly { libc::MADV_RANDOM } else { libc::MADV_NORMAL };
        // SAFETY: the range is exactly the mapping, and the advice changes no byte.
        let status = unsafe { libc::madvise(self.address.as_ptr().cast(), self.bytes, advice) };
        if status == 0 { Ok(()) } else { Err(Error::last_os(&self.path, "MADV_RANDOM")) }
    }

    /// Whether all pages of a range that begins on a page are resident, as far as the kernel tells.
    pub(crate) fn is_resident(&self, offset: u64, size_bytes: u64) -> Result<bool> {
        let mut answers = vec![0u8; (size_bytes as usize).div_ceil(page_bytes())];
        let start = self.address.as_ptr().wrapping_add(offset as usize).cast();
        // SAFETY: the callers' ranges lie within the mapping, and there is a byte for each page.
        let status =
            unsafe { libc::mincore(start, size_bytes as usize, answers.as_mut_ptr().cast()) };
        match status {
            0 => Ok(answers.iter().all(|answer| answer & 1 == 1)),
            _ => Err(Error::last_os(&self.path, "mincore")),
        }
    }

    /// Whether all of the file is resident; false also where the kernel cannot tell at once.
    pub(crate) fn is_all_resident(&self) -> bool {
        residency::all_by_folio(&self.file, &self.path, self.bytes as u64)
    }

    /// Marks all pages to be locked in memory as they come in, until the mapping goes.
    /// Errors: `PinRefused`, `Io`.
    pub(crate) fn lock(&self) -> Result<()> {
        let start = self.address.as_ptr().cast();
        // SAFETY: the range is exactly the mapping; locking changes no byte.
        match unsafe { libc::mlock2(start, self.bytes, libc::MLOCK_ONFAULT) } {
            0 => Ok(()),
            _ => Err(refused(&self.path, self.bytes as u64, &io::Error::last_os_error())),
        }
    }

    /// Takes back the advice to use huge pages, so that what it is worth can be measured.
    pub fn advise_small_pages(&self) {
        // SAFETY: the range is exactly the mapping. A kernel without huge pages answers EINVAL
        // and has small ones anyway.
        unsafe { libc::madvise(self.address.as_ptr().cast(), self.bytes, libc::MADV_NOHUGEPAGE) };
    }

    /// What compares its chunks, if anything does.
    pub(crate) fn verification(&self) -> Option<&Verification> {
        self.verification.as_deref()
    }

    pub(crate) fn check_length(&self) -> Result<()> {
        let found = self.file.metadata().map_err(|e| Error::io(&self.path, "fstat", &e))?;
        if found.len() >= self.bytes as u64 {
            return Ok(());
        }
        let kind =
            Kind::FileChanged { expected_bytes: self.bytes as u64, found_bytes: found.len() };
        Err(Error::new(&self.path, kind))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is what `new` mapped, and whoever holds an address into it also
        // holds this value.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}

/// The size of a small page.
pub fn page_bytes() -> usize {
    // SAFETY: sysconf only reads a constant of the kernel.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("a page has a size")
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
