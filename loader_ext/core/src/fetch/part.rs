//! The part file and its arrival map: what is written, verified, resumed and finally renamed.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use super::origin::Description;
use crate::arrival::head::Subject;
use crate::arrival::{self, Arrival, map_path, part_path, reserve};
use crate::digest::{CHUNK_BYTES, FileDigest};
use crate::error::{Error, Kind, Names, Result};
use crate::pieces::{self, Step};
use crate::xxh3::{Xxh3, xxh3_128};

/// A file that grows chunk by chunk.
#[derive(Debug)]
pub struct Part {
    file: File,
    path: PathBuf,
    arrival: Arrival,
    expected: Option<Vec<u128>>,
    /// Held while a chunk is written; true once it is there, and then nobody writes it again.
    sealed: Vec<Mutex<bool>>,
    /// Held while bytes are written. The kernel lets one thread at a time write to a file, and who
    /// waits for that in the kernel spins; who waits here leaves the processor to the sender.
    writing: Mutex<()>,
}

/// Whether bytes that were brought made it into the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Written, verified, and told to who waits.
    Sealed,
    /// Another stream had been faster.
    Late,
}

impl Part {
    /// Opens or makes the part of `destination`, at its full length.
    pub fn open(
        destination: &Path,
        described: &Description,
        expected: Option<&FileDigest>,
    ) -> Result<Self> {
        let subject =
            Subject { file_bytes: described.file_bytes, identity: identity(described, expected) };
        if let Some(expected) = expected
            && expected.chunks.len() != subject.chunks()
        {
            let reason = "its chunks do not cover its length".to_owned();
            return Err(Error::new(destination, Kind::DigestInvalid { reason }));
        }
        let path = part_path(destination);
        let (arrival, file) = Arrival::write(destination, subject)?;
        reserve(&file, &path, subject.file_bytes)?;
        let sealed = (0..subject.chunks()).map(|chunk| Mutex::new(arrival.claims(chunk))).collect();
        let expected = expected.map(|digest| digest.chunks.clone());
        Ok(Self { file, path, arrival, expected, sealed, writing: Mutex::new(()) })
    }

    /// Where it grows.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it will be.
    pub fn subject(&self) -> Subject {
        self.arrival.subject()
    }

    /// Whether a chunk is there.
    pub fn has(&self, chunk: usize) -> bool {
        self.arrival.claims(chunk)
    }

    /// Reads again what an earlier fetch had left and forgets what is not what it was; returns
    /// the bytes that stay and the seconds it took.
    pub fn verify_resumed(
        &mut self,
        watch: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<(u64, f64)> {
        let began = Instant::now();
        let total = self.subject().file_bytes;
        let there: Vec<usize> = (0..self.sealed.len()).filter(|chunk| self.has(*chunk)).collect();
        let kept_bytes = pieces::run(
            there.len(),
            pieces::processor_threads(),
            || vec![0; CHUNK_BYTES as usize],
            |buffer, index| self.verify_chunk(there[index], buffer),
            |done| watch(done, total),
        )?;
        self.arrival.vouch();
        for (chunk, sealed) in self.sealed.iter_mut().enumerate() {
            *sealed = Mutex::new(self.arrival.claims(chunk));
        }
        Ok((kept_bytes, began.elapsed().as_secs_f64()))
    }

    fn verify_chunk(&self, chunk: usize, buffer: &mut [u8]) -> Result<Step> {
        let (begin, length) = self.subject().chunk(chunk);
        let bytes = &mut buffer[..length as usize];
        if let Err(error) = self.file.read_exact_at(bytes, begin) {
            if error.raw_os_error() != Some(libc::EIO) {
                return Err(Error::io(&self.path, "read", &error).at(begin));
            }
            // A bad sector: written again, it may well be a good one.
            self.forget_blocks(begin, length);
            self.arrival.lost(chunk);
            return Ok(Step::Done(0));
        }
        let digest = xxh3_128(bytes);
        let promised = self.expected.as_ref().map_or(digest, |expected| expected[chunk]);
        if digest == self.arrival.digest(chunk) && digest == promised {
            // Tells who waits that something happens, however long the kept chunks take.
            self.arrival.arrived(chunk, digest);
            return Ok(Step::Done(length));
        }
        self.arrival.lost(chunk);
        Ok(Step::Done(0))
    }

    /// Makes a range one that was never written: a write of a part of a block would read it first.
    /// Without the right file system that write fails, and says so.
    fn forget_blocks(&self, begin: u64, length: u64) {
        let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let (begin, length) = (begin.cast_signed(), length.cast_signed());
        // SAFETY: a call on an open descriptor.
        unsafe { libc::fallocate(self.file.as_raw_fd(), mode, begin, length) };
    }

    /// Begins to write a chunk as it comes. One writer a chunk at a time.
    pub fn writer(&self, chunk: usize) -> Writer<'_> {
        Writer { part: self, chunk, hasher: Xxh3::default(), written_bytes: 0 }
    }

    /// Writes a whole chunk at once, over what another stream may have begun.
    pub fn replace(&self, chunk: usize, bytes: &[u8]) -> Result<Outcome> {
        let digest = xxh3_128(bytes);
        self.check(chunk, digest)?;
        let mut sealed = self.lock(chunk);
        if *sealed {
            return Ok(Outcome::Late);
        }
        self.write_at(chunk, 0, bytes)?;
        self.seal(chunk, digest, &mut sealed);
        Ok(Outcome::Sealed)
    }

    /// Makes the file durable and gives it its name; the map is gone then.
    pub fn finish(self, destination: &Path) -> Result<(FileDigest, f64)> {
        let began = Instant::now();
        let chunks = (0..self.sealed.len()).map(|chunk| self.arrival.digest(chunk)).collect();
        let name = destination.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let digest = FileDigest { name, size_bytes: self.subject().file_bytes, chunks };
        if let Err(error) = self.file.sync_all() {
            // The kernel tells of pages that it could not write once, and from then on has them as
            // clean: what it still shows of them is not on the disk, and no later sync would say so.
            (0..self.sealed.len()).for_each(|chunk| self.arrival.lost(chunk));
            return Err(Error::io(&self.path, "fsync", &error));
        }
        rename_to_nothing(&self.path, destination)?;
        let folder = destination.parent().filter(|path| !path.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|opened| opened.sync_all())
            .map_err(|error| Error::io(folder, "fsync", &error))?;
        self.arrival.complete();
        let map = map_path(destination);
        fs::remove_file(&map).map_err(|error| Error::io(&map, "unlink", &error))?;
        Ok((digest, began.elapsed().as_secs_f64()))
    }

    fn check(&self, chunk: usize, digest: u128) -> Result<()> {
        match &self.expected {
            Some(expected) if expected[chunk] != digest => {
                let (expected, found) =
                    (format!("{:032x}", expected[chunk]).into(), format!("{digest:032x}").into());
                let (number, tensors) = (chunk as u32, Names::default());
                let kind = Kind::ChunkMismatch { chunk: number, tensors, expected, found };
                Err(Error::new(&self.path, kind).at(self.subject().chunk(chunk).0))
            }
            _ => Ok(()),
        }
    }

    fn lock(&self, chunk: usize) -> MutexGuard<'_, bool> {
        self.sealed[chunk].lock().expect("no holder of this lock panics")
    }

    fn write_at(&self, chunk: usize, at: u64, bytes: &[u8]) -> Result<()> {
        let offset = self.subject().chunk(chunk).0 + at;
        let _turn = self.writing.lock().expect("no holder of this lock panics");
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| Error::io(&self.path, "write", &error).at(offset))
    }

    fn seal(&self, chunk: usize, digest: u128, sealed: &mut bool) {
        *sealed = true;
        let (begin, length) = self.subject().chunk(chunk);
        // Begins to write back now, so that the last sync finds little to do and dirty pages
        // never reach the limit at which writers are stopped. Only a hint: its failure is none.
        // SAFETY: a call on an open descriptor.
        unsafe {
            libc::sync_file_range(
                self.file.as_raw_fd(),
                begin.cast_signed(),
                length.cast_signed(),
                libc::SYNC_FILE_RANGE_WRITE,
            )
        };
        self.arrival.arrived(chunk, digest);
    }
}

/// Writes one chunk in pieces, in order.
pub struct Writer<'a> {
    part: &'a Part,
    chunk: usize,
    hasher: Xxh3,
    written_bytes: u64,
}

impl Writer<'_> {
    /// Takes the next bytes; `Late` when the chunk is there already, and nothing was written.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Outcome> {
        self.hasher.update(bytes);
        let sealed = self.part.lock(self.chunk);
        if *sealed {
            return Ok(Outcome::Late);
        }
        self.part.write_at(self.chunk, self.written_bytes, bytes)?;
        self.written_bytes += bytes.len() as u64;
        Ok(Outcome::Sealed)
    }

    /// All bytes are written: verifies and seals the chunk. Errors: `ChunkMismatch`.
    pub fn finish(self) -> Result<Outcome> {
        let digest = self.hasher.finish();
        self.part.check(self.chunk, digest)?;
        let mut sealed = self.part.lock(self.chunk);
        if *sealed {
            return Ok(Outcome::Late);
        }
        self.part.seal(self.chunk, digest, &mut sealed);
        Ok(Outcome::Sealed)
    }
}

/// Renames a file unless its new name is taken, even meanwhile. Errors: `DestinationExists`, `Io`.
fn rename_to_nothing(from: &Path, to: &Path) -> Result<()> {
    let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes());
    let failed = |error: &io::Error| Error::io(to, "rename", error);
    let (Ok(old), Ok(new)) = (c_path(from), c_path(to)) else {
        return Err(failed(&io::ErrorKind::InvalidInput.into()));
    };
    // SAFETY: two strings that end with a zero and live during the call, which knows no more of
    // this process.
    let status = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            old.as_ptr(),
            libc::AT_FDCWD,
            new.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    };
    if status == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EEXIST) => Err(Error::new(to, Kind::DestinationExists)),
        // Not every file system has it: NFS does not.
        Some(libc::EINVAL | libc::ENOSYS) if arrival::exists(to) => {
            Err(Error::new(to, Kind::DestinationExists))
        }
        Some(libc::EINVAL | libc::ENOSYS) => fs::rename(from, to).map_err(|e| failed(&e)),
        _ => Err(failed(&error)),
    }
}

/// What makes a part of an earlier fetch a part of this one. Without digest, tag or time nothing
/// does, so that identity is never met again.
fn identity(described: &Description, expected: Option<&FileDigest>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    if let Some(expected) = expected {
        hasher.update(b"digests\0");
        for chunk in &expected.chunks {
            hasher.update(&chunk.to_be_bytes());
        }
    } else if let Some(tag) = described.etag.as_ref().or(described.modified.as_ref()) {
        hasher
            .update(b"tag\0")
            .update(tag.as_bytes())
            .update(b"\0")
            .update(described.path.as_bytes());
    } else {
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        hasher.update(b"once\0").update(&since.as_nanos().to_le_bytes());
    }
    hasher.finalize().into()
}

#[cfg(test)]
#[path = "part_tests.rs"]
mod tests;
