//! The arrival map: which chunks of a file that is being fetched are there, and verified.
//!
//! [`head`] has its bytes, to the bit, [`files`] its names, and [`kernel`] the locks and the sleep
//! that it needs of the kernel. A bit is set after its chunk was written, verified and its digest
//! was stored. The writer has the map locked for as long as it lives, so a waiter can tell a slow
//! fetch from one whose process died. A map and its part are never used for another subject: both
//! are replaced, so that nobody who has them open ever sees other bytes than those he was promised.
//!
//! Neither map nor chunks are synced before the end: what a process that dies has written stays in
//! the page cache, but a machine that loses power may keep a bit and lose its chunk. So a map says
//! in which boot of the machine its bits were made or verified again. In any other boot they are
//! claims, which nobody believes until a writer has read those chunks and vouched for what is left.

mod files;
pub mod head;
mod kernel;
mod waiting;

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

pub(crate) use self::files::exists;
pub use self::files::{MAP_SUFFIX, map_path, part_path};
use self::files::{is_at, open_inode, open_map, read_head, remove_if_there};
use self::head::{
    BEAT_AT, BOOT_AT, BOOT_BYTES, CHUNK_BYTES_AT, COMPLETE, FILE_BYTES_AT, HEAD_BYTES, Head,
    IDENTITY_AT, INODE_AT, MAGIC, STATE_AT, Subject, bit,
};
pub(crate) use self::kernel::reserve;
use self::kernel::{boot_id, futex_wake, lock, unlock};
pub use self::waiting::{Arriving, Silence};
use crate::digest::CHUNK_BYTES;
use crate::error::{Error, Kind, Result};

/// Tries to open a map that others replace meanwhile.
const MAX_OPENINGS: usize = 8;
/// What no file has: the map's part is still to be made.
const NO_INODE: u64 = 0;

/// A mapped arrival map, of its writer or of one who waits.
#[derive(Debug)]
pub struct Arrival {
    file: File,
    path: PathBuf,
    base: NonNull<u8>,
    head: Head,
    /// Of this boot; zeros, which nobody believes, where the kernel does not tell.
    boot: [u8; BOOT_BYTES],
    writes: bool,
}

// SAFETY: the mapping lives as long as the value, and everything that changes in it while it is
// shared is read and written through atomics.
unsafe impl Send for Arrival {}
// SAFETY: as above.
unsafe impl Sync for Arrival {}

impl Arrival {
    /// Opens map and part of `destination` for writing: those that an earlier fetch of the same
    /// subject left, else new ones.
    ///
    /// Errors: `FetchBusy` if another process is fetching, `DestinationExists` if one was done
    /// meanwhile, `Io`.
    pub fn write(destination: &Path, subject: Subject) -> Result<(Self, File)> {
        let (path, part_path) = (map_path(destination), part_path(destination));
        for _ in 0..MAX_OPENINGS {
            let Some(file) = open_map(&path)? else {
                match Self::make(&path, subject)? {
                    Some(_) if exists(destination) => {
                        remove_if_there(&path)?;
                        return Err(Error::new(destination, Kind::DestinationExists));
                    }
                    Some(arrival) => return arrival.begin(&part_path),
                    None => continue,
                }
            };
            if !lock(&file) {
                break;
            }
            if !is_at(&file, &path)? {
                continue;
            }
            if let Some(head) = read_head(&file, &path)?
                && head.subject == subject
                && let Some(part) = open_inode(&part_path, head.inode, true)?
            {
                return Ok((Self::map(file, &path, head, true)?, part));
            }
            // Never reused in place, see above; and a map that is cut short would kill by SIGBUS
            // who has it mapped.
            remove_if_there(&part_path)?;
            remove_if_there(&path)?;
        }
        Err(Error::new(&path, Kind::FetchBusy))
    }

    /// Removes the map of a fetch that died when its file had its name and its map was not gone.
    ///
    /// Only tidies up: what it may not do, it leaves.
    pub fn sweep(destination: &Path) {
        let _ = Self::try_sweep(destination);
    }

    fn try_sweep(destination: &Path) -> Result<()> {
        let path = map_path(destination);
        let Some(file) = open_map(&path)? else { return Ok(()) };
        if !lock(&file) || !is_at(&file, &path)? {
            return Ok(());
        }
        let Some(head) = read_head(&file, &path)? else { return Ok(()) };
        if open_inode(destination, head.inode, false)?.is_none() {
            return Ok(());
        }
        let arrival = Self::map(file, &path, head, true)?;
        // A part that someone gave its name by hand is not whole, and others may wait for it.
        if (0..arrival.subject().chunks()).all(|chunk| arrival.claims(chunk)) {
            arrival.complete();
            remove_if_there(&path)?;
        }
        Ok(())
    }

    /// Makes a map, locked, that is whole before it has a name; `None` if another was faster.
    fn make(path: &Path, subject: Subject) -> Result<Option<Self>> {
        let folder = path.parent().filter(|path| !path.as_os_str().is_empty());
        let made = tempfile::Builder::new()
            .suffix(".map")
            .tempfile_in(folder.unwrap_or(Path::new(".")))
            .map_err(|error| Error::io(path, "open", &error))?;
        reserve(made.as_file(), path, subject.map_bytes() as u64)?;
        let mut head = [0; HEAD_BYTES];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(FILE_BYTES_AT, &subject.file_bytes.to_le_bytes());
        put(CHUNK_BYTES_AT, &CHUNK_BYTES.to_le_bytes());
        put(IDENTITY_AT, &subject.identity);
        put(BOOT_AT, &boot_id());
        let written = made.as_file().write_all_at(&head, 0);
        written.map_err(|error| Error::io(path, "write", &error))?;
        if !lock(made.as_file()) {
            return Err(Error::last_os(path, "lock"));
        }
        match made.persist_noclobber(path) {
            Ok(file) => Self::map(file, path, Head { subject, inode: NO_INODE }, true).map(Some),
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(Error::io(path, "rename", &error.error)),
        }
    }

    /// Makes the part of a map without one, in place of whatever is there.
    fn begin(mut self, part_path: &Path) -> Result<(Self, File)> {
        remove_if_there(part_path)?;
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        let part = options.open(part_path).map_err(|error| Error::io(part_path, "open", &error))?;
        let found = part.metadata().map_err(|error| Error::io(part_path, "stat", &error))?;
        self.head.inode = found.ino();
        self.store(INODE_AT, &self.head.inode.to_le_bytes());
        Ok((self, part))
    }

    /// Opens the map of `destination` to wait on. Errors: `ArrivalInvalid`, `NotFound`, `Io`.
    pub fn watch(destination: &Path) -> Result<Self> {
        let path = map_path(destination);
        let file = File::open(&path).map_err(|error| Error::io(&path, "open", &error))?;
        match read_head(&file, &path)? {
            Some(head) => Self::map(file, &path, head, false),
            None => Err(Error::new(&path, Kind::ArrivalInvalid)),
        }
    }

    /// Opens the file that this map speaks of, whether it still grows or has its name by now;
    /// `None` if it is gone. The first chunk must have arrived: then it has its full length.
    pub fn open(&self, destination: &Path) -> Result<Option<File>> {
        // Said after the map was opened, maybe, but before the chunk.
        let inode = u64::from_le_bytes(self.bytes(INODE_AT));
        for path in [&part_path(destination), destination] {
            let Some(file) = open_inode(path, inode, false)? else { continue };
            // Numbers of inodes are given out again. But another fetch makes its part after it took
            // this map's name away, and what stands under the file's own name is whole.
            let is_whole = path == destination && self.is_complete();
            if !is_whole && !is_at(&self.file, &self.path)? {
                continue;
            }
            let found = file.metadata().map_err(|error| Error::io(path, "stat", &error))?;
            if found.len() != self.head.subject.file_bytes {
                return Err(Error::new(&self.path, Kind::ArrivalInvalid));
            }
            return Ok(Some(file));
        }
        Ok(None)
    }

    /// What is being fetched.
    pub fn subject(&self) -> Subject {
        self.head.subject
    }

    /// Whether a chunk is there and verified, in this boot of the machine.
    pub fn has(&self, chunk: usize) -> bool {
        let is_of_this_boot = |(at, expected): (usize, &u8)| {
            *expected == self.byte(BOOT_AT + at).load(Ordering::Relaxed)
        };
        let believed =
            self.boot != [0; BOOT_BYTES] && self.boot.iter().enumerate().all(is_of_this_boot);
        fence(Ordering::Acquire); // behind `vouch`: bits that it took back are seen as such
        believed && self.claims(chunk)
    }

    /// Whether the map says so, in whatever boot.
    pub fn claims(&self, chunk: usize) -> bool {
        let word = self.word(chunk).load(Ordering::Relaxed);
        // Not an acquiring load: of memory that is mapped to be read only, `std::sync::atomic`
        // allows relaxed loads alone.
        fence(Ordering::Acquire);
        word & bit(chunk) != 0
    }

    /// Whether the file is complete and stands at its final name.
    pub fn is_complete(&self) -> bool {
        self.load(STATE_AT) == COMPLETE
    }

    /// Bytes of the chunks that are not there.
    pub fn missing_bytes(&self) -> u64 {
        let missing = (0..self.head.subject.chunks()).filter(|chunk| !self.has(*chunk));
        missing.map(|chunk| self.head.subject.chunk(chunk).1).sum()
    }

    /// The digest of a chunk that has arrived.
    pub fn digest(&self, chunk: usize) -> u128 {
        debug_assert!(self.claims(chunk));
        u128::from_le_bytes(self.bytes(self.head.subject.digest_at(chunk)))
    }

    /// Says that a chunk is written and verified, and wakes who waits for it.
    pub fn arrived(&self, chunk: usize, digest: u128) {
        self.store(self.head.subject.digest_at(chunk), &digest.to_le_bytes());
        self.word(chunk).fetch_or(bit(chunk), Ordering::Release);
        self.beat();
    }

    /// Takes back a chunk that turned out not to be there.
    pub fn lost(&self, chunk: usize) {
        self.word(chunk).fetch_and(!bit(chunk), Ordering::AcqRel);
    }

    /// Says that every claim that is left was verified in this boot.
    pub fn vouch(&self) {
        fence(Ordering::Release); // the bits that were taken back come first
        self.store(BOOT_AT, &self.boot);
        self.beat();
    }

    /// Says that the file stands at its final name.
    pub fn complete(&self) {
        self.number(STATE_AT).store(COMPLETE, Ordering::Release);
        self.beat();
    }

    fn beat(&self) {
        self.number(BEAT_AT).fetch_add(1, Ordering::AcqRel);
        futex_wake(self.number(BEAT_AT));
    }

    fn map(file: File, path: &Path, head: Head, writes: bool) -> Result<Self> {
        let protection = if writes { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new shared mapping of an open file, at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                head.subject.map_bytes(),
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Error::last_os(path, "mmap"));
        }
        let base = NonNull::new(base.cast::<u8>()).expect("a mapping is never at 0");
        Ok(Self { file, path: path.to_path_buf(), base, head, boot: boot_id(), writes })
    }

    fn store(&self, at: usize, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            self.byte(at + index).store(*byte, Ordering::Relaxed);
        }
    }

    fn bytes<const COUNT: usize>(&self, at: usize) -> [u8; COUNT] {
        std::array::from_fn(|byte| self.byte(at + byte).load(Ordering::Relaxed))
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.head.subject.map_bytes());
        // SAFETY: within the mapping, which lives as long as `self`; a byte needs no alignment.
        unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(at)) }
    }

    fn number(&self, at: usize) -> &AtomicU32 {
        assert!(at == STATE_AT || at == BEAT_AT);
        // SAFETY: within the first page of the mapping, at a multiple of 4 from its start, which is
        // a page's; lives as long as `self`.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(at).cast()) }
    }

    fn load(&self, at: usize) -> u32 {
        let value = self.number(at).load(Ordering::Relaxed);
        fence(Ordering::Acquire); // as in `has`
        value
    }

    fn word(&self, chunk: usize) -> &AtomicU64 {
        let at = self.head.subject.word_at(chunk);
        // SAFETY: a word of an existing chunk lies within the mapping, at a multiple of 8 from its
        // start, which is a page's; lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(at).cast()) }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if self.writes {
            // Who waits finds out now that nobody writes any more.
            unlock(&self.file);
            self.beat();
        }
        // SAFETY: the mapping that `map` made, with its length; no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.head.subject.map_bytes()) };
    }
}

#[cfg(test)]
mod tests;
