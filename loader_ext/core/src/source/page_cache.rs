//! A mapped file as a source: what is resident already costs one copy, and no system call a page.

use std::sync::Arc;

use super::Source;
use crate::arrival::Silence;
use crate::error::Result;
use crate::mapping::Mapping;
use crate::populate::Advice;

/// A mapped file: its pages come into the page cache on the way, so the next load finds them there.
#[derive(Debug)]
pub struct PageCache {
    mapping: Arc<Mapping>,
    advice: Advice,
}

impl PageCache {
    /// The whole file of a mapping. Errors: `Io`.
    pub fn new(mapping: Arc<Mapping>) -> Result<Self> {
        mapping.read_exactly(true)?;
        Ok(Self { mapping, advice: Advice::default() })
    }
}

impl Source for PageCache {
    fn is_ready(&self, offset: u64, size_bytes: u64, silence: &mut Silence) -> Result<bool> {
        self.mapping.has_arrived(offset, size_bytes, silence)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.mapping.read(offset, into, &self.advice)
    }
}
