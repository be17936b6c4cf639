//! The arrival map: which chunks of a file that is being fetched are there, and verified.
//!
//! A small file beside the part file, mapped by the process that fetches and by those that wait.
//! All numbers are little-endian:
//!
//! | at | bytes | content |
//! | --- | --- | --- |
//! | 0 | 8 | `STKARRV1` |
//! | 8 | 4 | state: 0 arriving, 1 complete |
//! | 12 | 4 | beat: counts arrivals; waiters sleep on it (`futex(2)`) |
//! | 16 | 8 | length of the file |
//! | 24 | 8 | length of a chunk |
//! | 32 | 32 | identity: what is being fetched |
//! | 64 | 8 x ceil(chunks / 64) | a bit for each chunk, the lowest first |
//! | .. | 16 x chunks | XXH3-128 of each chunk that has arrived |
//!
//! A bit is set after its chunk was written, verified and its digest was stored. The writer has
//! the map locked for as long as it lives, so a waiter can tell a slow fetch from one whose process
//! died.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::digest::CHUNK_BYTES;
use crate::error::{Error, Kind, Result};

const MAGIC: [u8; 8] = *b"STKARRV1";
const STATE_AT: usize = 8;
const BEAT_AT: usize = 12;
const FILE_BYTES_AT: usize = 16;
const CHUNK_BYTES_AT: usize = 24;
const IDENTITY_AT: usize = 32;
const BITS_AT: usize = 64;
const DIGEST_BYTES: usize = 16;
const WORD_BITS: usize = 64;
const COMPLETE: u32 = 1;
/// How often a waiter makes sure that the writer lives.
const WRITER_CHECK: Duration = Duration::from_millis(500);
/// Tries to open a map that others replace meanwhile.
const MAX_OPENINGS: usize = 8;
/// Above any file that a machine can hold; keeps a corrupt length from becoming a huge mapping.
const MAX_FILE_BYTES: u64 = 1 << 50;

/// What is being fetched: its length, and a digest of what makes it that and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// Length of the whole file.
    pub file_bytes: u64,
    /// BLAKE3 of the expected digests, or of the source's entity tag.
    pub identity: [u8; 32],
}

impl Subject {
    /// Chunks of the file.
    pub fn chunks(&self) -> usize {
        usize::try_from(self.file_bytes.div_ceil(CHUNK_BYTES)).expect("lengths are bounded")
    }

    /// Where a chunk begins, and how long it is.
    pub fn chunk(&self, index: usize) -> (u64, u64) {
        let begin = index as u64 * CHUNK_BYTES;
        (begin, CHUNK_BYTES.min(self.file_bytes - begin))
    }

    fn words(&self) -> usize {
        self.chunks().div_ceil(WORD_BITS)
    }

    fn map_bytes(&self) -> usize {
        BITS_AT + self.words() * size_of::<u64>() + self.chunks() * DIGEST_BYTES
    }
}

/// Reads the subject of a map; `None` if these bytes, of a map of `map_bytes`, are none.
pub fn parse(head: &[u8], map_bytes: u64) -> Option<Subject> {
    let number = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
    let identity = head.get(IDENTITY_AT..BITS_AT)?.try_into().ok()?;
    let subject = Subject { file_bytes: number(FILE_BYTES_AT)?, identity };
    let sound = head[..MAGIC.len()] == MAGIC
        && number(CHUNK_BYTES_AT)? == CHUNK_BYTES
        && subject.file_bytes <= MAX_FILE_BYTES
        && subject.map_bytes() as u64 == map_bytes;
    sound.then_some(subject)
}

/// A mapped arrival map, of its writer or of one who waits.
#[derive(Debug)]
pub struct Arrival {
    file: File,
    path: PathBuf,
    base: NonNull<u8>,
    subject: Subject,
}

// SAFETY: the mapping lives as long as the value, and everything that changes in it while it is
// shared is read and written through atomics.
unsafe impl Send for Arrival {}
// SAFETY: as above.
unsafe impl Sync for Arrival {}

impl Arrival {
    /// Opens the map at `path` for writing, keeping what an earlier fetch of the same subject
    /// left, else a new one.
    ///
    /// Errors: `FetchBusy` if another process is fetching, `Io`.
    pub fn write(path: &Path, subject: Subject) -> Result<Self> {
        for _ in 0..MAX_OPENINGS {
            let file = open_or_make(path)?;
            if !lock(&file) {
                break;
            }
            if !is_at(&file, path)? {
                continue;
            }
            if read_subject(&file, path)? == Some(subject) {
                return Self::map(file, path, subject, true);
            }
            if file.metadata().map_err(|error| Error::io(path, "stat", &error))?.len() == 0 {
                return Self::begin(file, path, subject);
            }
            // Never cut short in place: who has it mapped would be killed by SIGBUS.
            fs::remove_file(path).map_err(|error| Error::io(path, "unlink", &error))?;
        }
        Err(Error::new(path, Kind::FetchBusy))
    }

    fn begin(file: File, path: &Path, subject: Subject) -> Result<Self> {
        let map_bytes = subject.map_bytes() as u64;
        file.set_len(map_bytes).map_err(|error| Error::io(path, "truncate", &error))?;
        let arrival = Self::map(file, path, subject, true)?;
        arrival.store(FILE_BYTES_AT, &subject.file_bytes.to_le_bytes());
        arrival.store(CHUNK_BYTES_AT, &CHUNK_BYTES.to_le_bytes());
        arrival.store(IDENTITY_AT, &subject.identity);
        // Last, so that a map whose writer died here is none.
        arrival.store(0, &MAGIC);
        Ok(arrival)
    }

    /// Opens the map at `path` to wait on. Errors: `ArrivalInvalid`, `NotFound`, `Io`.
    pub fn watch(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io(path, "open", &error))?;
        match read_subject(&file, path)? {
            Some(subject) => Self::map(file, path, subject, false),
            None => Err(Error::new(path, Kind::ArrivalInvalid)),
        }
    }

    /// What is being fetched.
    pub fn subject(&self) -> Subject {
        self.subject
    }

    /// Whether a chunk is there and verified.
    pub fn has(&self, chunk: usize) -> bool {
        self.word(chunk).load(Ordering::Acquire) & bit(chunk) != 0
    }

    /// Whether the file is complete and stands at its final name.
    pub fn is_complete(&self) -> bool {
        self.number(STATE_AT).load(Ordering::Acquire) == COMPLETE
    }

    /// The digest of a chunk that has arrived.
    pub fn digest(&self, chunk: usize) -> u128 {
        debug_assert!(self.has(chunk));
        u128::from_le_bytes(std::array::from_fn(|byte| {
            self.byte(self.digest_at(chunk) + byte).load(Ordering::Relaxed)
        }))
    }

    /// Says that a chunk is written and verified, and wakes who waits for it.
    pub fn arrived(&self, chunk: usize, digest: u128) {
        self.store(self.digest_at(chunk), &digest.to_le_bytes());
        self.word(chunk).fetch_or(bit(chunk), Ordering::Release);
        self.beat();
    }

    /// Takes back a chunk that turned out not to be there.
    pub fn lost(&self, chunk: usize) {
        self.word(chunk).fetch_and(!bit(chunk), Ordering::AcqRel);
    }

    /// Says that the file stands at its final name.
    pub fn complete(&self) {
        self.number(STATE_AT).store(COMPLETE, Ordering::Release);
        self.beat();
    }

    /// Waits until all of `chunks` are there.
    ///
    /// Errors: `FetchAbandoned` if the writer is gone before, `WaitTimeout`.
    pub fn wait(&self, chunks: std::ops::Range<usize>, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let all = || chunks.clone().all(|chunk| self.has(chunk));
        loop {
            let seen = self.number(BEAT_AT).load(Ordering::Acquire);
            if all() {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(&self.path, Kind::WaitTimeout));
            }
            futex_wait(self.number(BEAT_AT), seen, left.min(WRITER_CHECK));
            if self.number(BEAT_AT).load(Ordering::Acquire) == seen && !is_locked(&self.file) {
                // Nobody writes. What came before the writer left counts all the same.
                return if all() { Ok(()) } else { Err(Error::new(&self.path, Kind::FetchAbandoned)) };
            }
        }
    }

    fn beat(&self) {
        self.number(BEAT_AT).fetch_add(1, Ordering::AcqRel);
        futex_wake(self.number(BEAT_AT));
    }

    fn map(file: File, path: &Path, subject: Subject, writes: bool) -> Result<Self> {
        let protection = if writes { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new shared mapping of an open file, at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                subject.map_bytes(),
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
        Ok(Self { file, path: path.to_path_buf(), base, subject })
    }

    fn digest_at(&self, chunk: usize) -> usize {
        assert!(chunk < self.subject.chunks());
        BITS_AT + self.subject.words() * size_of::<u64>() + chunk * DIGEST_BYTES
    }

    fn store(&self, at: usize, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            self.byte(at + index).store(*byte, Ordering::Relaxed);
        }
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.subject.map_bytes());
        // SAFETY: within the mapping, which lives as long as `self`; a byte needs no alignment.
        unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(at)) }
    }

    fn number(&self, at: usize) -> &AtomicU32 {
        assert!(at == STATE_AT || at == BEAT_AT);
        // SAFETY: within the first page of the mapping, at a multiple of 4 from its start, which is
        // a page's; lives as long as `self`.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(at).cast()) }
    }

    fn word(&self, chunk: usize) -> &AtomicU64 {
        assert!(chunk < self.subject.chunks());
        let at = BITS_AT + chunk / WORD_BITS * size_of::<u64>();
        // SAFETY: a word of an existing chunk lies within the mapping, at a multiple of 8 from its
        // start, which is a page's; lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(at).cast()) }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, with its length; no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.subject.map_bytes()) };
    }
}

fn open_or_make(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(|error| Error::io(path, "open", &error))
}

/// Whether the open file is the one that the path names now.
fn is_at(file: &File, path: &Path) -> Result<bool> {
    let opened = file.metadata().map_err(|error| Error::io(path, "stat", &error))?;
    match fs::metadata(path) {
        Ok(named) => Ok((opened.dev(), opened.ino()) == (named.dev(), named.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(path, "stat", &error)),
    }
}

fn read_subject(file: &File, path: &Path) -> Result<Option<Subject>> {
    let io = |error: &std::io::Error| Error::io(path, "read", error);
    let map_bytes = file.metadata().map_err(|error| io(&error))?.len();
    let mut head = [0; BITS_AT];
    match file.read_exact_at(&mut head, 0) {
        Ok(()) => Ok(parse(&head, map_bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(io(&error)),
    }
}

fn bit(chunk: usize) -> u64 {
    1 << (chunk % WORD_BITS)
}

/// Locks for writing, for as long as the file is open: a lock of the open file description
/// (`F_OFD_SETLK`, fcntl(2)), which the kernel takes back when its process is gone.
fn lock(file: &File) -> bool {
    control_lock(file, libc::F_OFD_SETLK, libc::F_WRLCK).is_some()
}

/// Whether someone else has it locked for writing.
fn is_locked(file: &File) -> bool {
    let found = control_lock(file, libc::F_OFD_GETLK, libc::F_RDLCK);
    // Where the kernel does not answer, a wait may be long but never ends too early.
    found.is_none_or(|lock| i32::from(lock.l_type) != libc::F_UNLCK)
}

fn control_lock(file: &File, command: i32, kind: i32) -> Option<libc::flock> {
    // SAFETY: all zeros are a lock of the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    // SAFETY: a call on an open descriptor, with a lock that outlives it.
    let code = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    (code == 0).then_some(lock)
}

fn futex_wait(word: &AtomicU32, expected: u32, timeout: Duration) {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().cast_signed(),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: the word and the timeout outlive the call. Not `FUTEX_PRIVATE_FLAG`: waiters are
    // other processes. Every return (woken, changed, timed out, interrupted) is looked at again.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, &timeout) };
}

fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word outlives the call; waking nobody is fine.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

#[cfg(test)]
#[path = "arrival_tests.rs"]
mod tests;
