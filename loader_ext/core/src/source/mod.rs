//! Where the bytes of a file come from: one interface, and one back end a file.
//!
//! [`PageCache`] brings pages in by `MADV_POPULATE_READ` and copies from them, [`Buffered`] reads
//! through the page cache, [`Direct`] past it (`O_DIRECT`), by io_uring ([`ring`]) or by `pread`.
//! [`backend`] says which one a load takes and is pure; [`probe`] finds out what this machine and
//! this file allow by trying, never by a version. [`image`] reads whole files into memory.

pub mod backend;
mod blocks;
mod buffered;
mod checked;
mod direct;
pub mod image;
mod page_cache;
pub mod probe;
pub mod ring;

use std::sync::Arc;

use self::ring::Rings;
use crate::arrival::Silence;
use crate::checkpoint::Shard;
use crate::error::Result;
use crate::mapping::Mapping;
use crate::pieces;

pub use backend::{Backend, Cached, Choice, Sink, Wanted};
pub use blocks::BLOCK_BYTES;
pub use buffered::Buffered;
pub use checked::CheckedFile;
pub use direct::Direct;
pub use page_cache::PageCache;

/// The fewest threads that read into memory: each has several requests under way, or is helped by
/// the kernel's read-ahead.
const MIN_THREADS: usize = 4;

/// Threads for reading by a source unless the caller knows better.
pub fn default_threads() -> usize {
    pieces::processor_threads().max(MIN_THREADS)
}

/// Something that answers ranged reads, from several threads at once.
pub trait Source: Send + Sync {
    /// Whether a range can be read; waits a little if it is still on its way.
    fn is_ready(&self, _offset: u64, _size_bytes: u64, _silence: &mut Silence) -> Result<bool> {
        Ok(true)
    }

    /// Fills `into` with the bytes from `offset` on, all of them.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()>;
}

/// Opens a shard by a back end, which makes `rings` if it needs them and there are none. Nothing is
/// read. Errors: `FileChanged`, `Io`.
fn open(
    backend: Backend,
    shard: &Shard,
    rings: &mut Option<Arc<Rings>>,
) -> Result<Box<dyn Source>> {
    Ok(match backend {
        Backend::Populate => Box::new(PageCache::new(Mapping::of_shard(shard)?.into())?),
        Backend::IoUring => Box::new(Direct::by_ring(CheckedFile::of_shard(shard)?, rings)?),
        Backend::DirectPread => Box::new(Direct::by_pread(CheckedFile::of_shard(shard)?)?),
        Backend::Pread => Box::new(Buffered::new(CheckedFile::of_shard(shard)?)),
    })
}

/// Opens all shards of a checkpoint by a back end, in their order.
pub fn open_all(backend: Backend, shards: &[Shard]) -> Result<Vec<Box<dyn Source>>> {
    // One set for all: each ring is a descriptor, and some checkpoints have hundreds of shards.
    let mut rings = None;
    shards.iter().map(|shard| open(backend, shard, &mut rings)).collect()
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
