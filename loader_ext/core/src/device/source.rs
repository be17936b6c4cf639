//! Where the bytes of a slot come from.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::arrival::Silence;
use crate::error::Result;
use crate::mapping::Mapping;

/// Something that answers ranged reads, from several threads at once.
pub trait Source: Sync {
    /// Whether a range can be read; waits a little if it is still on its way.
    fn is_ready(&self, _offset: u64, _size_bytes: u64, _silence: &mut Silence) -> Result<bool> {
        Ok(true)
    }

    /// Fills `into` with the bytes from `offset` on, all of them.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()>;
}

/// A mapped file: its pages come into the page cache on the way, so the next load finds them there.
#[derive(Debug)]
pub struct PageCache {
    mapping: Arc<Mapping>,
    advise: AtomicBool,
}

impl PageCache {
    /// The whole file of a mapping.
    pub fn new(mapping: Arc<Mapping>) -> Self {
        Self { mapping, advise: AtomicBool::new(true) }
    }
}

impl Source for PageCache {
    fn is_ready(&self, offset: u64, size_bytes: u64, silence: &mut Silence) -> Result<bool> {
        self.mapping.has_arrived(offset, size_bytes, silence)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.mapping.read(offset, into, &self.advise)
    }
}
