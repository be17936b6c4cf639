//! Where the bytes of a slot come from.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::Result;
use crate::mapping::Mapping;

/// Something that answers ranged reads, from several threads at once.
pub trait Source: Sync {
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
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.mapping.read(offset, into, &self.advise)
    }
}
