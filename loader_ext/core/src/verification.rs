//! Chunks of a file compared with the digests that are known of it: each once, while it is warm.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::checkpoint::{Checkpoint, Shard, Sidecars, sidecar_bytes};
use crate::digest::{CHUNK_BYTES, FileDigest};
use crate::error::{Error, Kind, Names, Result};
use crate::header::Header;
use crate::mapping::Mapping;
use crate::pieces::{self, Step};
use crate::populate::Advice;
use crate::sidecar;
use crate::xxh3::xxh3_128;

/// Which chunks of a file have been found right. All mappings of an open file share one.
#[derive(Debug)]
pub struct Verification {
    path: PathBuf,
    file_bytes: u64,
    header: Arc<Header>,
    /// Chunks with bytes of the header; 0 where a sidecar vouches for those.
    header_chunks: usize,
    expected: Vec<u128>,
    /// Held while a chunk is hashed; true once it was right, and then it is not looked at again:
    /// from then on its tensors may be given out, and written to.
    verified: Vec<Mutex<bool>>,
    verified_bytes: AtomicU64,
    hashing_ns: AtomicU64,
}

impl Verification {
    /// Of a shard by the digests of its chunks, which may have to vouch for its header as well.
    /// Errors: `DigestInvalid`.
    fn new(shard: &Shard, expected: Vec<u128>, vouch_for_header: bool) -> Result<Self> {
        if expected.len() as u64 != shard.file_bytes.div_ceil(CHUNK_BYTES) {
            let reason = "its chunks do not cover the file".to_owned();
            return Err(Error::new(&shard.path, Kind::DigestInvalid { reason }));
        }
        // The data begins where the first tensor does: no byte before it is a tensor's.
        let header_bytes =
            shard.header.tensors.first().map_or(shard.file_bytes, |tensor| tensor.offset_bytes);
        let header_chunks = if vouch_for_header { header_bytes.div_ceil(CHUNK_BYTES) } else { 0 };
        Ok(Self {
            path: shard.path.clone(),
            file_bytes: shard.file_bytes,
            header: Arc::clone(&shard.header),
            header_chunks: header_chunks as usize,
            verified: expected.iter().map(|_| Mutex::new(false)).collect(),
            expected,
            verified_bytes: AtomicU64::new(0),
            hashing_ns: AtomicU64::new(0),
        })
    }

    /// The chunks that a range of bytes touches.
    pub fn chunks_of(&self, offset: u64, size_bytes: u64) -> Range<usize> {
        let end = offset.saturating_add(size_bytes).min(self.file_bytes).div_ceil(CHUNK_BYTES);
        (offset / CHUNK_BYTES) as usize..end as usize
    }

    /// The chunks that have to be right before a range of bytes is used: those of the header that
    /// says what the range is, unless a sidecar did, and those that it touches.
    pub fn chunks_for(&self, offset: u64, size_bytes: u64) -> impl Iterator<Item = usize> + use<> {
        let touched = self.chunks_of(offset, size_bytes);
        (0..self.header_chunks.min(touched.start)).chain(touched)
    }

    /// Whether a chunk was found right; false while one is being looked at, so nobody waits here.
    pub fn is_verified(&self, chunk: usize) -> bool {
        self.verified[chunk].try_lock().is_ok_and(|verified| *verified)
    }

    /// Compares a chunk, unless that was done; `bytes` gives those at an offset, of a length.
    ///
    /// Errors: `ChunkMismatch`, which names the tensors with bytes in the chunk, and those of
    /// `bytes`.
    pub(crate) fn check<'a>(
        &self,
        chunk: usize,
        bytes: impl FnOnce(u64, u64) -> Result<&'a [u8]>,
    ) -> Result<()> {
        let mut verified = self.lock(chunk);
        if *verified {
            return Ok(());
        }
        let begin = chunk as u64 * CHUNK_BYTES;
        let bytes = bytes(begin, CHUNK_BYTES.min(self.file_bytes - begin))?;
        let began = Instant::now();
        let found = xxh3_128(bytes);
        self.hashing_ns.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        if found != self.expected[chunk] {
            return Err(self.mismatch(chunk, found));
        }
        self.verified_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        *verified = true;
        Ok(())
    }

    /// The bytes found right so far, and the seconds of all threads that hashing took.
    pub fn spent(&self) -> (u64, f64) {
        let seconds = self.hashing_ns.load(Ordering::Relaxed) as f64 / 1e9;
        (self.verified_bytes.load(Ordering::Relaxed), seconds)
    }

    fn mismatch(&self, chunk: usize, found: u128) -> Error {
        let begin = chunk as u64 * CHUNK_BYTES;
        let tensors = self.header.tensors.iter().filter(|tensor| {
            let end = tensor.offset_bytes + tensor.size_bytes;
            tensor.offset_bytes < begin + CHUNK_BYTES && end > begin && tensor.size_bytes > 0
        });
        let tensors: Vec<String> = tensors.map(|tensor| tensor.name.clone()).collect();
        let tensor = tensors.first().cloned();
        let kind = Kind::ChunkMismatch {
            chunk: chunk as u32,
            tensors: Names(tensors.into()),
            expected: format!("{:032x}", self.expected[chunk]).into(),
            found: format!("{found:032x}").into(),
        };
        Error { tensor, ..Error::new(&self.path, kind).at(begin) }
    }

    fn lock(&self, chunk: usize) -> MutexGuard<'_, bool> {
        // A holder that panicked has not set it.
        self.verified[chunk].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Checkpoint {
    /// Opens a checkpoint each chunk of which is compared when it is brought in, before anybody
    /// sees a tensor of it: with `known` digests (by name; that of a single file may have another
    /// one), else with those in the sidecars.
    ///
    /// With `known` ones no sidecar is read: the header is among the bytes that they vouch for.
    /// Errors: as `open`, and `DigestsMissing` for a file without a sidecar, `FileUnexpected` for
    /// one that is not known, `LengthMismatch`, `DigestInvalid`.
    pub fn open_verified(path: &Path, known: Option<&[FileDigest]>) -> Result<Self> {
        let sidecars = if known.is_some() { Sidecars::Ignore } else { Sidecars::Believe };
        let mut checkpoint = Self::open_with(path, sidecars)?;
        let alone = checkpoint.shards.len() == 1;
        for shard in &mut checkpoint.shards {
            let expected = match known {
                Some(files) => known_chunks(shard, files, alone)?,
                None => {
                    let missing = || Error::new(&shard.path, Kind::DigestsMissing);
                    shard.sidecar_chunks.take().ok_or_else(missing)?
                }
            };
            let verification = Verification::new(shard, expected, known.is_some())?;
            shard.verification = Some(Arc::new(verification));
        }
        Ok(checkpoint)
    }
}

fn known_chunks(shard: &Shard, files: &[FileDigest], alone: bool) -> Result<Vec<u128>> {
    let file = match files {
        [file] if alone => Some(file),
        files => files.iter().find(|file| file.name == shard.name),
    };
    let file = file.ok_or_else(|| Error::new(&shard.path, Kind::FileUnexpected))?;
    if file.size_bytes != shard.file_bytes {
        let (expected_bytes, found_bytes) = (file.size_bytes, shard.file_bytes);
        let kind = Kind::LengthMismatch { expected_bytes, found_bytes };
        return Err(Error::new(&shard.path, kind));
    }
    Ok(file.chunks.clone())
}

/// Brings in and compares the chunks that a range touches; nothing where no digests are known.
///
/// `watch` sees the bytes done so far and may stop it. Errors: `ChunkMismatch`, those of
/// populating, and whatever `watch` returns.
pub fn verify_range(
    mapping: &Mapping,
    offset: u64,
    size_bytes: u64,
    threads: usize,
    watch: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let Some(verification) = mapping.verification() else { return Ok(()) };
    let chunks: Vec<usize> = verification
        .chunks_for(offset, size_bytes)
        .filter(|chunk| !verification.is_verified(*chunk))
        .collect();
    let advice = Advice::default();
    let work = |(): &mut (), index: usize| {
        let begin = chunks[index] as u64 * CHUNK_BYTES;
        let length = CHUNK_BYTES.min(verification.file_bytes - begin);
        mapping.bring_in(begin, length, &advice).map(|()| Step::Done(length))
    };
    pieces::run(chunks.len(), threads, || (), work, watch).map(drop)
}

/// The digest of the file that a sidecar stands beside, which need not be there.
///
/// Errors: `SidecarInvalid`, `SymlinkRefused`, `NotFound`, `Io`.
pub fn sidecar_digest(path: &Path) -> Result<FileDigest> {
    let bytes = sidecar_bytes(path)?.ok_or_else(|| Error::new(path, Kind::NotFound))?;
    sidecar::file_digest(path, &bytes)
}

#[cfg(test)]
#[path = "verification_tests.rs"]
mod tests;
