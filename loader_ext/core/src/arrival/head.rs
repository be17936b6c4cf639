//! The bytes of an arrival map.
//!
//! A file on its way grows as `NAME.part`; beside it `NAME.part.map` is a small file that is mapped
//! by the process that fetches and by those that wait. All its numbers are little-endian:
//!
//! | at | bytes | content |
//! | --- | --- | --- |
//! | 0 | 8 | `STKARRV1` |
//! | 8 | 4 | state: 0 arriving, 1 complete |
//! | 12 | 4 | beat: counts arrivals; waiters sleep on it (`futex(2)`) |
//! | 16 | 8 | length of the file |
//! | 24 | 8 | length of a chunk |
//! | 32 | 32 | identity: what is being fetched |
//! | 64 | 8 | inode of the part file that this map speaks of; 0 until that is made |
//! | 72 | 16 | boot in which the bits were made or verified: `random/boot_id` (proc(5)), in binary |
//! | 88 | 40 | zero |
//! | 128 | 8 x ceil(chunks / 64) | a bit for each chunk, the lowest first |
//! | .. | 16 x chunks | XXH3-128 of each chunk that has arrived |

use std::ops::Range;

use crate::digest::CHUNK_BYTES;

pub(super) const MAGIC: [u8; 8] = *b"STKARRV1";
pub(super) const STATE_AT: usize = 8;
pub(super) const BEAT_AT: usize = 12;
pub(super) const FILE_BYTES_AT: usize = 16;
pub(super) const CHUNK_BYTES_AT: usize = 24;
pub(super) const IDENTITY_AT: usize = 32;
pub(super) const INODE_AT: usize = 64;
pub(super) const BOOT_AT: usize = 72;
pub(super) const BOOT_BYTES: usize = 16;
/// How many bytes say what a map is.
pub(super) const HEAD_BYTES: usize = 128;
const DIGEST_BYTES: usize = 16;
const WORD_BITS: usize = 64;
pub(super) const COMPLETE: u32 = 1;
/// Above any file that a machine can hold; keeps a corrupt length from becoming a huge mapping.
pub const MAX_FILE_BYTES: u64 = 1 << 50;

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

    /// The chunks that a range of bytes touches.
    pub fn chunks_of(&self, begin: u64, size_bytes: u64) -> Range<usize> {
        let end = begin.saturating_add(size_bytes).min(self.file_bytes).div_ceil(CHUNK_BYTES);
        (begin / CHUNK_BYTES) as usize..end as usize
    }

    fn words(&self) -> usize {
        self.chunks().div_ceil(WORD_BITS)
    }

    /// Where the word with a chunk's bit is.
    pub(super) fn word_at(&self, chunk: usize) -> usize {
        assert!(chunk < self.chunks());
        HEAD_BYTES + chunk / WORD_BITS * size_of::<u64>()
    }

    /// Where a chunk's digest is.
    pub(super) fn digest_at(&self, chunk: usize) -> usize {
        assert!(chunk < self.chunks());
        HEAD_BYTES + self.words() * size_of::<u64>() + chunk * DIGEST_BYTES
    }

    /// Length of the map.
    pub(super) fn map_bytes(&self) -> usize {
        HEAD_BYTES + self.words() * size_of::<u64>() + self.chunks() * DIGEST_BYTES
    }
}

/// A chunk's bit in its word.
pub(super) fn bit(chunk: usize) -> u64 {
    1 << (chunk % WORD_BITS)
}

/// What a map says before its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// What is being fetched.
    pub subject: Subject,
    /// The part file's inode.
    pub inode: u64,
}

/// Reads the head of a map; `None` if these bytes, of a map of `map_bytes`, are none.
pub fn parse(head: &[u8], map_bytes: u64) -> Option<Head> {
    let number = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
    let identity = head.get(IDENTITY_AT..INODE_AT)?.try_into().ok()?;
    let subject = Subject { file_bytes: number(FILE_BYTES_AT)?, identity };
    let sound = head[..MAGIC.len()] == MAGIC
        && number(CHUNK_BYTES_AT)? == CHUNK_BYTES
        && subject.file_bytes <= MAX_FILE_BYTES
        && subject.map_bytes() as u64 == map_bytes;
    Some(Head { subject, inode: number(INODE_AT)? }).filter(|_| sound)
}
