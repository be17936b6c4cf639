//! Addresses on a 2 MiB boundary, which alone can have huge pages: reserved, and then mapped over.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::{self, NonNull};

use crate::error::{Error, Result};
use crate::mapping::{HUGE_PAGE_BYTES, page_bytes};

/// Addresses that nothing else of the process gets until [`Reservation::map`], or until it is
/// dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    address: NonNull<u8>,
    bytes: usize,
}

impl Reservation {
    /// Reserves `size_bytes`; `path` is whose bytes they are for. Errors: `Io`.
    pub(crate) fn new(path: &Path, size_bytes: u64) -> Result<Self> {
        let too_long = || io::Error::from_raw_os_error(libc::EOVERFLOW);
        let bytes = usize::try_from(size_bytes)
            .ok()
            .filter(|&bytes| bytes < isize::MAX as usize - 2 * HUGE_PAGE_BYTES)
            .ok_or_else(|| Error::io(path, "mmap", &too_long()))?;
        let span = bytes.next_multiple_of(page_bytes());
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing
        // that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                span + HUGE_PAGE_BYTES,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Error::last_os(path, "reserving addresses"));
        }
        let head = (start as usize).next_multiple_of(HUGE_PAGE_BYTES) - start as usize;
        let aligned = start.wrapping_byte_add(head);
        // SAFETY: both ends are of the mapping above, page-aligned, and unused. `head` is below
        // HUGE_PAGE_BYTES, so the span that is kept lies between them, and they are not empty but
        // for the first.
        unsafe {
            if head > 0 {
                libc::munmap(start, head);
            }
            libc::munmap(aligned.wrapping_byte_add(span), HUGE_PAGE_BYTES - head);
        }
        let address = NonNull::new(aligned.cast()).expect("mmap never succeeds at null");
        Ok(Self { address, bytes })
    }

    /// How many bytes were asked for.
    pub(crate) fn size_bytes(&self) -> usize {
        self.bytes
    }

    /// Maps a file, private and writable, or without one makes zeroes of it, and asks for huge
    /// pages. Who gets the address has to unmap so many bytes. Errors: `Io`.
    pub(crate) fn map(self, path: &Path, file: Option<&File>) -> Result<NonNull<u8>> {
        let (address, bytes) = (self.address, self.bytes);
        let start = address.as_ptr().cast();
        match file {
            Some(file) => {
                // From here on nobody unmaps it for us: where the kernel refuses it may have taken
                // the reservation away before, and what is there then is another thread's. What
                // stays is addresses without memory.
                std::mem::forget(self);
                // SAFETY: MAP_FIXED replaces only pages of this reservation, of which nobody has
                // an address yet. The file is open.
                let mapped = unsafe {
                    libc::mmap(
                        start,
                        bytes,
                        libc::PROT_READ | libc::PROT_WRITE,
                        // Or the kernel counts every page as if all were to be written to.
                        libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                        file.as_raw_fd(),
                        0,
                    )
                };
                if mapped == libc::MAP_FAILED {
                    return Err(Error::last_os(path, "mmap"));
                }
            }
            None => {
                // SAFETY: the range is this reservation, of which nobody has an address yet. Where
                // there is not enough memory it stays what it is.
                let status =
                    unsafe { libc::mprotect(start, bytes, libc::PROT_READ | libc::PROT_WRITE) };
                if status != 0 {
                    return Err(Error::last_os(path, "mprotect"));
                }
                std::mem::forget(self);
            }
        }
        // SAFETY: the range is exactly the mapping. A kernel without huge pages answers EINVAL
        // and maps small ones, which is slower and just as right.
        unsafe { libc::madvise(start, bytes, libc::MADV_HUGEPAGE) };
        Ok(address)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the range is what `new` reserved and `map` did not give away, so nobody has an
        // address in it.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the kernel knows anything at an address.
    fn is_mapped(address: NonNull<u8>) -> bool {
        let page = address.as_ptr().map_addr(|it| it / page_bytes() * page_bytes());
        let mut answer = 0;
        // SAFETY: one page is asked about, for which there is one byte; nothing is touched.
        unsafe { libc::mincore(page.cast(), 1, &raw mut answer) == 0 }
    }

    fn after(address: NonNull<u8>, bytes: usize) -> NonNull<u8> {
        NonNull::new(address.as_ptr().wrapping_add(bytes)).unwrap()
    }

    #[test]
    fn it_begins_where_a_huge_page_can() {
        for bytes in [1, page_bytes(), page_bytes() + 1, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 5] {
            let held: Vec<_> =
                (0..4).map(|_| Reservation::new(Path::new("x"), bytes as u64).unwrap()).collect();
            let addresses: Vec<_> = held.iter().map(|held| held.address).collect();
            for address in &addresses {
                assert!((address.as_ptr() as usize).is_multiple_of(HUGE_PAGE_BYTES));
                assert!(is_mapped(*address) && is_mapped(after(*address, bytes - 1)));
            }
            assert_eq!(held[0].size_bytes(), bytes);
        }
    }

    #[test]
    fn what_is_mapped_over_it_is_the_callers() {
        let bytes = HUGE_PAGE_BYTES + 3;
        let reservation = Reservation::new(Path::new("x"), bytes as u64).unwrap();
        let address = reservation.map(Path::new("x"), None).unwrap();
        // SAFETY: `map` gave these bytes, zeroed and writable, to this test alone, which unmaps
        // them when it is done.
        unsafe {
            let memory = std::slice::from_raw_parts_mut(address.as_ptr(), bytes);
            assert!(memory.iter().all(|byte| *byte == 0));
            memory.fill(7);
            libc::munmap(address.as_ptr().cast(), bytes);
        }
    }

    #[test]
    fn memory_that_there_is_not_leaves_nothing() {
        let reservation = Reservation::new(Path::new("x"), 1 << 44).unwrap();
        let address = reservation.address;
        if reservation.map(Path::new("x"), None).is_ok() {
            return; // a kernel that promises any amount (vm.overcommit_memory=1)
        }
        // So much in one piece, which no other test of this process asks for: still free.
        assert!(!is_mapped(after(address, 1 << 43)));
    }

    #[test]
    fn what_is_no_file_to_map_is_an_error() {
        let folder = File::open("/").unwrap();
        let reservation = Reservation::new(Path::new("x"), 1 << 30).unwrap();
        let error = reservation.map(Path::new("x"), Some(&folder)).unwrap_err();
        assert_eq!((error.kind.code(), error.file.to_str()), ("io_error", Some("x")));
        assert_eq!(Reservation::new(Path::new("x"), u64::MAX).unwrap_err().kind.code(), "io_error");
    }
}
