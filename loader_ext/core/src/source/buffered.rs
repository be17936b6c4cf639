//! Plain reads through the page cache: what every kernel and file system can do.

use std::os::unix::fs::FileExt;

use super::{CheckedFile, Source};
use crate::arrival::Silence;
use crate::error::Result;

/// A file read by `pread`, with the kernel's own read-ahead.
#[derive(Debug)]
pub struct Buffered(CheckedFile);

impl Buffered {
    /// The whole file.
    pub fn new(file: CheckedFile) -> Self {
        Self(file)
    }
}

impl Source for Buffered {
    fn is_ready(&self, offset: u64, size_bytes: u64, silence: &mut Silence) -> Result<bool> {
        self.0.has_arrived(offset, size_bytes, silence)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.0.file.read_exact_at(into, offset).map_err(|error| self.0.failed(offset, &error))
    }
}
