//! A rank's share in memory of this process: read by any back end, and all of it packed.

use std::ptr;
use std::sync::Arc;

use super::plan::Plan;
use super::read::{Copy, GAP_BYTES, Loaded, copies, deal};
use crate::arena::Arena;
use crate::arrival::Silence;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::pieces::{self, Step};
use crate::populate::PIECE_BYTES;
use crate::source::{self, BLOCK_BYTES, Backend, Source};

/// What a thread reads at a time: a piece and the rest of the blocks at both of its ends.
const SCRATCH_BYTES: usize = PIECE_BYTES as usize + 2 * BLOCK_BYTES;

/// Plans a rank's share of all tensors, reads it by a back end, and packs it.
///
/// Whole blocks are read, so that those past the page cache go straight to memory: about 4 KiB too
/// many a range, and up to [`GAP_BYTES`] between two. Memory beyond the share is [`SCRATCH_BYTES`] a
/// thread. Waits, `watch` and errors are those of [`super::read::read`].
pub fn read<'a>(
    checkpoint: &'a Checkpoint,
    plan: &Plan,
    backend: Backend,
    share: (u64, u64),
    threads: usize,
    mut watch: impl FnMut(u64, u64) -> Result<()>,
) -> Result<Loaded<'a>> {
    let (parts, packed_bytes) = deal(checkpoint, plan, share, |_| true)?;
    let arena = Arc::new(Arena::new(&checkpoint.path, packed_bytes as u64)?);
    let sources = source::open_all(backend, &checkpoint.shards)?;
    let copies: Vec<Copy> = parts.iter().flat_map(copies).collect();
    let total = copies.iter().map(Copy::size_bytes).sum();
    pieces::run(
        copies.len(),
        threads,
        || (Silence::default(), Scratch::new()),
        |(silence, scratch), index| {
            let copy = &copies[index];
            let source = &*sources[copy.shard];
            if !source.is_ready(copy.source, copy.span_bytes(), silence)? {
                return Ok(Step::Again);
            }
            let file_bytes = checkpoint.shards[copy.shard].file_bytes;
            fill(copy, &arena, &mut File { source, file_bytes, scratch })?;
            Ok(Step::Done(copy.size_bytes()))
        },
        |done| watch(done, total),
    )?;
    Ok(Loaded::packed(parts, arena))
}

/// Reads the runs of a copy, near ones at once, and packs them.
fn fill(copy: &Copy, arena: &Arena, file: &mut File<'_>) -> Result<()> {
    let target = |run: u64| copy.target + run as usize * copy.target_step;
    if copy.source_step > copy.run_bytes + GAP_BYTES {
        return (0..copy.runs).try_for_each(|run| {
            let bytes = file.read(copy.source + run * copy.source_step, copy.run_bytes)?;
            pack(arena, target(run), bytes);
            Ok(())
        });
    }
    let bytes = file.read(copy.source, copy.span_bytes())?;
    for run in 0..copy.runs {
        let begin = (run * copy.source_step) as usize;
        pack(arena, target(run), &bytes[begin..begin + copy.run_bytes as usize]);
    }
    Ok(())
}

fn pack(arena: &Arena, target: usize, bytes: &[u8]) {
    assert!(target + bytes.len() <= arena.size_bytes());
    // SAFETY: the target lies within the arena (above), which nobody has seen yet; the copies of a
    // load go to disjoint ranges of it, each from one thread. The bytes are a thread's own.
    unsafe {
        ptr::copy_nonoverlapping(bytes.as_ptr(), arena.address().as_ptr().add(target), bytes.len());
    }
}

/// Memory of a thread that begins on a block.
struct Scratch {
    memory: Vec<u8>,
    first: usize,
}

impl Scratch {
    fn new() -> Self {
        let memory = vec![0; SCRATCH_BYTES + BLOCK_BYTES];
        let first = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self { memory, first }
    }
}

/// A file that a thread reads.
struct File<'a> {
    source: &'a dyn Source,
    file_bytes: u64,
    scratch: &'a mut Scratch,
}

impl File<'_> {
    /// The bytes of a range, which is no longer than a piece.
    fn read(&mut self, offset: u64, size_bytes: u64) -> Result<&[u8]> {
        let block = BLOCK_BYTES as u64;
        let lead = offset % block;
        let begin = offset - lead;
        let end = (offset + size_bytes).next_multiple_of(block).min(self.file_bytes);
        let blocks = &mut self.scratch.memory[self.scratch.first..][..(end - begin) as usize];
        self.source.read(begin, blocks)?;
        Ok(&blocks[lead as usize..][..size_bytes as usize])
    }
}

#[cfg(test)]
#[path = "copied_tests.rs"]
mod tests;
