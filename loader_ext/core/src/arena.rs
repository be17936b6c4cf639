//! Anonymous memory for what is packed or read past the page cache: one mapping, which goes with
//! the last tensor in it.

use std::io;
use std::path::Path;
use std::ptr::{self, NonNull};

use crate::error::{Error, Result};
use crate::mapping::{HUGE_PAGE_BYTES, page_bytes};

/// Where tensors begin in an arena: a cache line, which every element type divides.
pub const ALIGNMENT_BYTES: usize = 64;

/// Zeroed, writable memory of this process.
#[derive(Debug)]
pub struct Arena {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain memory that this value owns; it has no thread affinity.
unsafe impl Send for Arena {}
// SAFETY: shared use only reads the address; who writes through it says why that is sound.
unsafe impl Sync for Arena {}

impl Arena {
    /// Takes `size_bytes` (0 is taken as 1) from the kernel; `path` is whose bytes they are for.
    pub fn new(path: &Path, size_bytes: u64) -> Result<Self> {
        let too_long = || io::Error::from_raw_os_error(libc::EOVERFLOW);
        let bytes = usize::try_from(size_bytes.max(1))
            .ok()
            .filter(|&bytes| bytes < isize::MAX as usize - 2 * HUGE_PAGE_BYTES)
            .ok_or_else(|| Error::io(path, "mmap", &too_long()))?;
        let span = bytes.next_multiple_of(page_bytes());
        let reserved = span + HUGE_PAGE_BYTES;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing
        // that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                reserved,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Error::last_os(path, "mmap"));
        }
        let head = (start as usize).next_multiple_of(HUGE_PAGE_BYTES) - start as usize;
        let start = start.wrapping_byte_add(head);
        // SAFETY: both ends are of the mapping above, page-aligned, outside what is kept, and
        // unused: `head` is below HUGE_PAGE_BYTES.
        unsafe {
            if head > 0 {
                libc::munmap(start.wrapping_byte_sub(head), head);
            }
            libc::munmap(start.wrapping_byte_add(span), HUGE_PAGE_BYTES - head);
        }
        // SAFETY: the range is what is left of the mapping. A kernel without huge pages answers
        // EINVAL and uses small ones, which is slower and just as right.
        unsafe { libc::madvise(start, bytes, libc::MADV_HUGEPAGE) };
        let address = NonNull::new(start.cast()).expect("mmap never succeeds at null");
        Ok(Self { address, bytes })
    }

    /// The first byte, on a 2 MiB boundary.
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// How many bytes there are.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the range is what `new` mapped, and whoever holds an address into it also
        // holds this value.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}
