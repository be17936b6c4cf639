//! An open file with the length that its header was checked against.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::arrival::{Arriving, Silence};
use crate::checkpoint::Shard;
use crate::error::{Error, Kind, Result};

/// What a source that reads needs to know of its file.
#[derive(Debug, Clone)]
pub struct CheckedFile {
    /// The open file.
    pub file: Arc<File>,
    /// Where it was when it was opened.
    pub path: PathBuf,
    /// Its length then.
    pub file_bytes: u64,
    /// Says which bytes are there, of a file that is still on its way.
    pub arriving: Option<Arriving>,
}

impl CheckedFile {
    /// The file of a shard. Errors: `FileChanged` if its length is another by now.
    pub fn of_shard(shard: &Shard) -> Result<Self> {
        shard.check_length()?;
        Ok(Self {
            file: Arc::clone(&shard.file),
            path: shard.path.clone(),
            file_bytes: shard.file_bytes,
            arriving: shard.arriving.clone(),
        })
    }

    /// Waits a little for a range of a file that is still on its way; true if it is there.
    pub fn has_arrived(&self, offset: u64, size_bytes: u64, silence: &mut Silence) -> Result<bool> {
        let Some(Arriving { arrival, patience }) = &self.arriving else { return Ok(true) };
        let chunks = arrival.subject().chunks_of(offset, size_bytes);
        arrival.wait_briefly(chunks, *patience, silence)
    }

    /// The error of a read that failed, or that ended before the file should.
    pub fn failed(&self, offset: u64, error: &io::Error) -> Error {
        match self.file.metadata() {
            Ok(found) if found.len() < self.file_bytes => {
                let (expected_bytes, found_bytes) = (self.file_bytes, found.len());
                Error::new(&self.path, Kind::FileChanged { expected_bytes, found_bytes })
            }
            _ => Error::io(&self.path, "read", error).at(offset),
        }
    }
}
