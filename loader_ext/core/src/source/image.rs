//! Whole files in memory of this process, for whoever does not want them in the page cache.

use std::slice;
use std::sync::Arc;

use super::Source;
use crate::arena::Arena;
use crate::arrival::Silence;
use crate::checkpoint::Shard;
use crate::error::Result;
use crate::pieces::{self, Step};
use crate::populate::PIECE_BYTES;

/// Reads each file into memory of its own, on huge pages, a piece of 8 MiB a thread at a time.
///
/// `sources` are what reads the shards, in their order. `watch` sees the bytes read so far and may
/// stop it. After an error there is no image at all. Errors: those of the sources, `Io` without
/// memory, and whatever `watch` returns.
pub fn read(
    shards: &[Shard],
    sources: &[Box<dyn Source>],
    threads: usize,
    watch: impl FnMut(u64) -> Result<()>,
) -> Result<Vec<Arc<Arena>>> {
    let arenas = shards.iter().map(|shard| Arena::new(&shard.path, shard.file_bytes).map(Arc::new));
    let arenas = arenas.collect::<Result<Vec<_>>>()?;
    let pieces: Vec<(usize, u64, u64)> = shards
        .iter()
        .enumerate()
        .flat_map(|(number, shard)| {
            let end = shard.file_bytes;
            let begins = (0..end).step_by(PIECE_BYTES as usize);
            begins.map(move |begin| (number, begin, PIECE_BYTES.min(end - begin)))
        })
        .collect();
    pieces::run(
        pieces.len(),
        threads,
        Silence::default,
        |silence, index| {
            let (number, begin, size_bytes) = pieces[index];
            let source = &sources[number];
            if !source.is_ready(begin, size_bytes, silence)? {
                return Ok(Step::Again);
            }
            let start = arenas[number].address().as_ptr().wrapping_add(begin as usize);
            // SAFETY: the piece lies within the arena, which is as long as the file and lives as
            // long as this function. Its memory is initialised (zeroes). Pieces are disjoint, each
            // is read by one thread (`pieces::run`), and nobody has seen the arena yet.
            let target = unsafe { slice::from_raw_parts_mut(start, size_bytes as usize) };
            source.read(begin, target)?;
            Ok(Step::Done(size_bytes))
        },
        watch,
    )?;
    Ok(arenas)
}
