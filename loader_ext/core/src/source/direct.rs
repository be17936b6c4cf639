//! Reads past the page cache: `O_DIRECT`, queued by io_uring or made by a thread each.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::blocks::{BLOCK_BYTES, Progress, progress, straight_bytes};
use super::ring::Rings;
use super::{CheckedFile, Source};
use crate::arrival::Silence;
use crate::error::{Error, Kind, Result};

/// What goes through memory of its own at a time, where blocks do not lie as they must.
const BOUNCE_BYTES: usize = 1 << 20;

/// A file opened with `O_DIRECT`.
pub struct Direct {
    checked: CheckedFile,
    file: File,
    engine: Engine,
}

/// Reads whole blocks to memory that begins on one; fewer bytes only where the file ends.
type ReadBlocks<'a> = dyn Fn(u64, &mut [u8]) -> io::Result<usize> + 'a;

/// Who makes the reads.
enum Engine {
    Pread,
    Rings(Arc<Rings>),
}

impl Direct {
    /// Reads by io_uring, with `rings` or, without, new ones. Errors: `Io` where that or `O_DIRECT`
    /// is refused.
    pub fn by_ring(checked: CheckedFile, rings: &mut Option<Arc<Rings>>) -> Result<Self> {
        let rings = match rings {
            Some(rings) => Arc::clone(rings),
            None => {
                let made = Rings::new();
                let made = made.map_err(|e| refused(&checked.path, "io_uring_setup", &e))?;
                Arc::clone(rings.insert(Arc::new(made)))
            }
        };
        Self::new(checked, Engine::Rings(rings))
    }

    /// Reads by the calling thread. Errors: `Io` where `O_DIRECT` is refused.
    pub fn by_pread(checked: CheckedFile) -> Result<Self> {
        Self::new(checked, Engine::Pread)
    }

    fn new(checked: CheckedFile, engine: Engine) -> Result<Self> {
        // The very file that was checked, whatever its path names by now; and a description of its
        // own, since the flag belongs to that and others read the file through the page cache.
        let link = format!("/proc/self/fd/{}", checked.file.as_raw_fd());
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(link)
            .map_err(|error| refused(&checked.path, "opening with O_DIRECT", &error))?;
        Ok(Self { checked, file, engine })
    }

    /// Reads the file's first block, to see whether that works at all.
    pub(super) fn try_block(&self) -> Result<()> {
        self.read(0, &mut vec![0; self.checked.file_bytes.min(BLOCK_BYTES as u64) as usize])
    }

    fn read_blocks(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        match &self.engine {
            Engine::Rings(rings) => rings.read(&self.file, offset, into),
            Engine::Pread => pread(&self.file, offset, into),
        }
    }
}

/// Fills memory from `offset` on by reads of whole blocks.
fn fill(read: &ReadBlocks<'_>, offset: u64, into: &mut [u8]) -> io::Result<()> {
    let mut straight = straight_bytes(offset, into.as_ptr() as usize, into.len());
    if straight > 0 {
        match read(offset, &mut into[..straight]) {
            Ok(read_bytes) if read_bytes < straight => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // Memory that no disk can write to by itself, as a driver's may be.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => straight = 0,
            Err(error) => return Err(error),
        }
    }
    bounce(read, offset + straight as u64, &mut into[straight..])
}

/// Reads what does not lie on blocks, a file's tail above all, through memory that does.
fn bounce(read: &ReadBlocks<'_>, mut offset: u64, mut into: &mut [u8]) -> io::Result<()> {
    if into.is_empty() {
        return Ok(());
    }
    let window = (into.len() + BLOCK_BYTES).next_multiple_of(BLOCK_BYTES).min(BOUNCE_BYTES);
    let mut memory = vec![0; window + BLOCK_BYTES];
    let first = memory.as_ptr().align_offset(BLOCK_BYTES);
    while !into.is_empty() {
        let lead = offset as usize % BLOCK_BYTES;
        let wanted = into.len().min(window - BLOCK_BYTES);
        let asked = (lead + wanted).next_multiple_of(BLOCK_BYTES);
        let blocks = &mut memory[first..first + asked];
        if read(offset - lead as u64, blocks)? < lead + wanted {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let (filled, rest) = into.split_at_mut(wanted);
        filled.copy_from_slice(&blocks[lead..lead + wanted]);
        offset += wanted as u64;
        into = rest;
    }
    Ok(())
}

impl Source for Direct {
    fn is_ready(&self, offset: u64, size_bytes: u64, silence: &mut Silence) -> Result<bool> {
        self.checked.has_arrived(offset, size_bytes, silence)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let read = |offset, into: &mut [u8]| self.read_blocks(offset, into);
        fill(&read, offset, into).map_err(|error| self.checked.failed(offset, &error))
    }
}

/// The error of a back end that cannot even begin: never that the checkpoint is not there, which
/// a machine without /proc would look like.
fn refused(path: &Path, action: &'static str, error: &io::Error) -> Error {
    let (reason, errno) = (error.to_string(), error.raw_os_error());
    Error::new(path, Kind::Io { action, reason, errno })
}

/// Reads whole blocks; fewer bytes only where the file ends.
fn pread(file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(read_bytes) => match progress(into.len() - done, read_bytes) {
                Progress::Done => break,
                Progress::Short(bytes) => done += bytes,
                Progress::Ended(bytes) => return Ok(done + bytes),
            },
        }
    }
    Ok(into.len())
}

#[cfg(test)]
#[path = "direct_tests.rs"]
mod tests;
