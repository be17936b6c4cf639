//! Anonymous memory for what is packed or read past the page cache: one mapping, which goes with
//! the last tensor in it.

use std::path::Path;
use std::ptr::NonNull;

use crate::error::Result;
use crate::reservation::Reservation;

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
        let reservation = Reservation::new(path, size_bytes.max(1))?;
        let bytes = reservation.size_bytes();
        let address = reservation.map(path, None)?;
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
