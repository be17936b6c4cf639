//! Bringing mapped files into the page cache: in pieces, in parallel, in huge folios.

use std::hint;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::arrival::Silence;
use crate::error::{Error, Result};
use crate::mapping::{Mapping, page_bytes};
use crate::pieces::{self, Step};

/// What a thread brings in before it asks for more work: long enough to hide the calls, short
/// enough to share the work.
pub const PIECE_BYTES: u64 = 8 << 20;
/// The fewest readers in flight, each of which waits for one huge folio: fewer keep no disk's queue
/// full, however few processors there are.
const MIN_THREADS: usize = 16;
/// What one thread maps of resident huge folios in some 5 ms.
const MAPPED_BY_A_THREAD_BYTES: usize = 4 << 30;
/// More than one page and not more than any kernel reads around a fault of its own accord.
const PROBE_BYTES: u64 = 64 << 10;
const MAX_TRIES: u32 = 16;
const TOUCH_BYTES: usize = 1 << 20;

/// Readers in flight unless the caller knows better.
pub fn default_threads() -> usize {
    pieces::processor_threads().max(MIN_THREADS)
}

/// Threads for populating these mappings: a disk wants a full queue, what is resident already only
/// processors, and hardly those, since a thread takes as long to start as 30 MB to map.
pub fn threads_for(mappings: &[Arc<Mapping>]) -> usize {
    let resident = mappings.iter().all(|mapping| mapping.is_all_resident());
    let hashed = mappings.iter().any(|mapping| mapping.verification().is_some());
    match (resident, hashed) {
        (false, false) => default_threads(),
        // While some hash, as many as ever must be reading.
        (false, true) => default_threads() + pieces::processor_threads(),
        (true, true) => pieces::processor_threads(),
        (true, false) => {
            let bytes: usize = mappings.iter().map(|mapping| mapping.size_bytes()).sum();
            (bytes / MAPPED_BY_A_THREAD_BYTES + 1).min(pieces::processor_threads())
        }
    }
}

/// Which advice the kernel takes, as it has answered so far; the threads of a load share one.
#[derive(Debug)]
pub struct Advice {
    /// Kernels before 5.14 know no `MADV_POPULATE_READ`.
    populate: AtomicBool,
    /// Kernels before 5.18, and those without huge pages, read page by page where they may not
    /// read ahead.
    exactly: AtomicBool,
}

impl Default for Advice {
    fn default() -> Self {
        Self { populate: AtomicBool::new(true), exactly: AtomicBool::new(true) }
    }
}

/// Brings all pages of the mappings into the page cache and maps them, in file order.
///
/// Of a file that is still on its way each piece is brought in as soon as it has arrived. `watch`
/// sees the bytes done so far and may stop it. Done again it only finds that all is there. Errors:
/// `FileChanged` if a file became shorter, `FetchAbandoned`, `WaitTimeout`, `ChunkMismatch`, `Io`,
/// and whatever `watch` returns.
pub fn populate(
    mappings: &[Arc<Mapping>],
    threads: usize,
    watch: impl FnMut(u64) -> Result<()>,
) -> Result<u64> {
    populate_in_pieces(mappings, threads, PIECE_BYTES, watch)
}

/// The same with pieces of another length (rounded up to pages), so that what long ones are worth
/// can be measured.
pub fn populate_in_pieces(
    mappings: &[Arc<Mapping>],
    threads: usize,
    piece_bytes: u64,
    watch: impl FnMut(u64) -> Result<()>,
) -> Result<u64> {
    populate_with(mappings, threads, piece_bytes, &Advice::default(), watch)
}

fn populate_with(
    mappings: &[Arc<Mapping>],
    threads: usize,
    piece_bytes: u64,
    advice: &Advice,
    watch: impl FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let piece_bytes = piece_bytes.max(1).next_multiple_of(page_bytes() as u64);
    let work: Vec<(&Mapping, u64, u64)> = mappings
        .iter()
        .flat_map(|mapping| {
            let end = mapping.size_bytes() as u64;
            (0..end)
                .step_by(piece_bytes as usize)
                .map(move |begin| (&**mapping, begin, piece_bytes.min(end - begin)))
        })
        .collect();
    mappings.iter().try_for_each(|mapping| mapping.read_exactly(true))?;
    let outcome = pieces::run(
        work.len(),
        threads,
        Silence::default,
        |silence, index| {
            let (mapping, begin, size_bytes) = work[index];
            if !mapping.has_arrived(begin, size_bytes, silence)? {
                return Ok(Step::Again);
            }
            mapping.bring_in(begin, size_bytes, advice).map(|()| Step::Done(size_bytes))
        },
        watch,
    );
    // What is evicted and touched again later is read as the kernel thinks best.
    mappings.iter().try_for_each(|mapping| mapping.read_exactly(false))?;
    outcome
}

impl Mapping {
    /// Brings a range that begins on a page in, and where digests are known compares all of each
    /// chunk that it touches. Errors: as for loading, and `ChunkMismatch`.
    ///
    /// What a disk has filled no processor has seen yet. On a virtual machine that is a fault in
    /// the host for each page, which this thread takes while others wait for the disk; else whoever
    /// uses the tensors would take it, alone.
    pub(crate) fn bring_in(&self, offset: u64, size_bytes: u64, advice: &Advice) -> Result<()> {
        let was_read = self.populate_range(offset, size_bytes, advice)?;
        let Some(verification) = self.verification() else {
            if was_read {
                self.touch_pages(offset, size_bytes as usize);
            }
            return Ok(());
        };
        verification.chunks_for(offset, size_bytes).try_for_each(|chunk| {
            verification.check(chunk, |begin, length| {
                if (begin, length) != (offset, size_bytes) {
                    self.populate_range(begin, length, advice)?;
                }
                // SAFETY: chunks lie within the file's checked length, which is the mapping's, and
                // were just populated. Nobody of this process writes to them: tensors of a chunk
                // are given out only after it was found right, and then it is never read here
                // again. Files must not be written while they are open, as for every reader.
                Ok(unsafe {
                    std::slice::from_raw_parts(
                        self.address().as_ptr().add(begin as usize),
                        length as usize,
                    )
                })
            })
        })
    }

    /// Brings a range that begins on a page into the page cache and maps it; whether it had to be
    /// read, as its first page tells.
    ///
    /// A mapping that reads exactly ([`Mapping::read_exactly`]) gets one huge folio for each fault,
    /// and nothing else. Where the kernel may read ahead, threads that share a file spoil each
    /// other's idea of what comes next: a tenth of the folios is small then, and attaching those
    /// again takes ten times as long.
    pub(crate) fn populate_range(
        &self,
        offset: u64,
        size_bytes: u64,
        advice: &Advice,
    ) -> Result<bool> {
        let page_bytes = (page_bytes() as u64).min(size_bytes);
        let must_read = !self.is_resident(offset, page_bytes)?;
        // A page tells that was not there before.
        if must_read && advice.exactly.load(Ordering::Relaxed) {
            self.advise_populate(offset, page_bytes, advice)?;
            let probed = self.is_resident(offset, PROBE_BYTES.min(size_bytes))?;
            advice.exactly.fetch_and(probed, Ordering::Relaxed);
        }
        if !advice.exactly.load(Ordering::Relaxed) {
            self.read_exactly(false)?;
        }
        self.advise_populate(offset, size_bytes, advice)?;
        Ok(must_read)
    }

    fn advise_populate(&self, offset: u64, size_bytes: u64, advice: &Advice) -> Result<()> {
        let start = self.address().as_ptr().wrapping_add(offset as usize).cast();
        let mut tries = 0;
        while advice.populate.load(Ordering::Relaxed) {
            // SAFETY: the callers' pieces lie within the mapping, which `self` keeps alive;
            // populating for reading changes no byte.
            let status =
                unsafe { libc::madvise(start, size_bytes as usize, libc::MADV_POPULATE_READ) };
            if status == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            tries += 1;
            match error.raw_os_error() {
                Some(libc::EINVAL) => advice.populate.store(false, Ordering::Relaxed),
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) if tries < MAX_TRIES => {}
                // A page that cannot be read: the advice does not say why, nor which.
                Some(libc::EFAULT | libc::EHWPOISON) => {
                    self.check_length()?;
                    break;
                }
                _ => {
                    self.check_length()?;
                    return Err(Error::io(self.path(), "MADV_POPULATE_READ", &error).at(offset));
                }
            }
        }
        self.touch_range(offset, size_bytes as usize)
    }

    /// The same without the kernel's help: `read` fills the page cache (and reports what a page
    /// fault would turn into SIGBUS), then one load per page maps it.
    fn touch_range(&self, offset: u64, size_bytes: usize) -> Result<()> {
        let mut buffer = vec![0; TOUCH_BYTES.min(size_bytes)];
        for begin in (0..size_bytes).step_by(TOUCH_BYTES) {
            let piece = &mut buffer[..TOUCH_BYTES.min(size_bytes - begin)];
            self.read_range(offset + begin as u64, piece)?;
            self.touch_pages(offset + begin as u64, piece.len());
        }
        Ok(())
    }

    /// Reads a byte of each page of a range that begins on one.
    fn touch_pages(&self, offset: u64, size_bytes: usize) {
        for page in (0..size_bytes).step_by(page_bytes()) {
            let address = self.address().as_ptr().wrapping_add(offset as usize + page);
            // SAFETY: the callers' ranges lie within the mapping, which is readable. A volatile
            // read, since another thread may write to its tensors at the same time.
            hint::black_box(unsafe { ptr::read_volatile(address) });
        }
    }
}

#[cfg(test)]
#[path = "populate_tests.rs"]
mod tests;
