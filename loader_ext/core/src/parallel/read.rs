//! Brings in what a rank needs: pages for views, copies of strided runs, by bounded threads.

use std::any::Any;
use std::ptr;
use std::sync::Arc;

use crate::arena::{ALIGNMENT_BYTES, Arena};
use crate::arrival::Silence;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::header::TensorRecord;
use crate::mapping::{Mapping, page_bytes};
use crate::parallel::plan::{Plan, Slice};
use crate::pieces::{self, Step};
use crate::populate::{Advice, PIECE_BYTES};

/// A gap in the file that is read rather than stepped over: at gigabytes a second it takes about
/// as long as a request of its own.
pub const GAP_BYTES: u64 = 256 << 10;

/// One tensor of a rank.
#[derive(Debug)]
pub struct Part<'a> {
    /// The number of its shard.
    pub shard: usize,
    /// The tensor that it is a part of.
    pub tensor: &'a TensorRecord,
    /// Which part.
    pub slice: Slice,
    /// Where it begins in the arena, or `None` if it is a view of the file.
    pub packed: Option<usize>,
}

/// What a rank got.
#[derive(Debug)]
pub struct Loaded<'a> {
    /// The tensors in file order.
    pub parts: Vec<Part<'a>>,
    views: Vec<Option<Arc<Mapping>>>,
    arena: Arc<Arena>,
}

impl<'a> Loaded<'a> {
    /// Parts that are all in an arena.
    pub(super) fn packed(parts: Vec<Part<'a>>, arena: Arc<Arena>) -> Self {
        Self { parts, views: Vec::new(), arena }
    }

    /// Where one of the parts begins, and what keeps its memory valid and writable.
    pub fn memory(&self, part: &Part) -> (*mut u8, Arc<dyn Any + Send + Sync>) {
        if let Some(offset) = part.packed {
            let address = self.arena.address().as_ptr().wrapping_add(offset);
            return (address, Arc::clone(&self.arena) as _);
        }
        let range = part.slice.contiguous().expect("a part that is not packed is in one piece");
        let view = self.views[part.shard].as_ref().expect("a shard with views is mapped");
        let address = view.address().as_ptr().wrapping_add(range.start as usize);
        (address, Arc::clone(view) as _)
    }
}

/// Plans a rank's share of all tensors, brings in the pages of its views, and packs the rest.
///
/// Of a file that is still on its way it waits for the chunks that the rank needs. `watch` sees
/// `(bytes done, bytes in all)` and may stop it. Errors: those of [`Plan::check`] and
/// [`Plan::slice`], before any byte is read; `FileChanged`, `FetchAbandoned`, `WaitTimeout`,
/// `ChunkMismatch`, `Io`, and whatever `watch` returns.
pub fn read<'a>(
    checkpoint: &'a Checkpoint,
    plan: &Plan,
    share: (u64, u64),
    threads: usize,
    mut watch: impl FnMut(u64, u64) -> Result<()>,
) -> Result<Loaded<'a>> {
    let (parts, packed_bytes) =
        deal(checkpoint, plan, share, |slice| slice.contiguous().is_none())?;
    let arena = Arc::new(Arena::new(&checkpoint.path, packed_bytes as u64)?);
    // Two mappings of a file: nobody ever writes to the one that is copied from, as a handler may
    // to its tensors, and the pages that only a copy needed are unmapped with it.
    let views = map_shards(checkpoint, |shard| {
        parts.iter().any(|part| part.shard == shard && part.packed.is_none())
    })?;
    let sources = map_shards(checkpoint, |shard| {
        parts.iter().any(|part| part.shard == shard && part.packed.is_some())
    })?;
    let pages = pages_of_views(checkpoint, &parts);
    let copies: Vec<Copy> = parts.iter().flat_map(copies).collect();

    let total = pages.iter().map(|pages| pages.size_bytes).sum::<u64>()
        + copies.iter().map(Copy::size_bytes).sum::<u64>();
    let advice = Advice::default();
    pieces::run(
        pages.len() + copies.len(),
        threads,
        Silence::default,
        |silence, index| {
            if let Some(pages) = pages.get(index) {
                let view = views[pages.shard].as_ref().expect("a shard with views is mapped");
                if !view.has_arrived(pages.begin, pages.size_bytes, silence)? {
                    return Ok(Step::Again);
                }
                bring_in_pages(view, pages.begin, pages.size_bytes, &advice)?;
                return Ok(Step::Done(pages.size_bytes));
            }
            let copy = &copies[index - pages.len()];
            let source = sources[copy.shard].as_ref().expect("a packed part's shard is mapped");
            // No chunk lies between two of its runs: they are apart by less, or it has one.
            if !source.has_arrived(copy.source, copy.span_bytes(), silence)? {
                return Ok(Step::Again);
            }
            copy.populate(source, &advice)?;
            copy.run(source, &arena);
            Ok(Step::Done(copy.size_bytes()))
        },
        |done| watch(done, total),
    )?;
    Ok(Loaded { parts, views, arena })
}

/// The parts of a rank, those that are packed with their places in an arena; and its length.
pub(super) fn deal<'a>(
    checkpoint: &'a Checkpoint,
    plan: &Plan,
    (rank, world_size): (u64, u64),
    is_packed: impl Fn(&Slice) -> bool,
) -> Result<(Vec<Part<'a>>, usize)> {
    plan.check(&checkpoint.path, rank, world_size)?;
    let mut parts = Vec::new();
    let mut packed_bytes = 0;
    for (number, shard) in checkpoint.shards.iter().enumerate() {
        for tensor in &shard.header.tensors {
            let slice = plan.slice(&shard.path, tensor, rank, world_size)?;
            let packed = is_packed(&slice).then_some(packed_bytes);
            if packed.is_some() {
                packed_bytes += (slice.size_bytes() as usize).next_multiple_of(ALIGNMENT_BYTES);
            }
            parts.push(Part { shard: number, tensor, slice, packed });
        }
    }
    Ok((parts, packed_bytes))
}

fn map_shards(
    checkpoint: &Checkpoint,
    is_needed: impl Fn(usize) -> bool,
) -> Result<Vec<Option<Arc<Mapping>>>> {
    let map = |(number, shard)| -> Result<Option<Arc<Mapping>>> {
        if !is_needed(number) {
            return Ok(None);
        }
        let mapping = Mapping::of_shard(shard)?;
        mapping.read_exactly(true)?;
        Ok(Some(Arc::new(mapping)))
    };
    checkpoint.shards.iter().enumerate().map(map).collect()
}

/// Brings in a range of bytes, and no pages but its own.
fn bring_in_pages(mapping: &Mapping, offset: u64, size_bytes: u64, advice: &Advice) -> Result<()> {
    let page = page_bytes() as u64;
    let begin = offset / page * page;
    let end = (offset + size_bytes).next_multiple_of(page).min(mapping.size_bytes() as u64);
    mapping.bring_in(begin, end - begin, advice)
}

/// A range of a shard that begins on a page.
struct Pages {
    shard: usize,
    begin: u64,
    size_bytes: u64,
}

/// The pages of all views in file order, near ones together, in pieces.
fn pages_of_views(checkpoint: &Checkpoint, parts: &[Part]) -> Vec<Pages> {
    let page = page_bytes() as u64;
    let mut merged: Vec<Pages> = Vec::new();
    for part in parts {
        let Some(range) = part.slice.contiguous().filter(|range| !range.is_empty()) else {
            continue;
        };
        let begin = range.start / page * page;
        let end = range.end.next_multiple_of(page).min(checkpoint.shards[part.shard].file_bytes);
        match merged.last_mut() {
            Some(last)
                if last.shard == part.shard
                    && begin <= last.begin + last.size_bytes + GAP_BYTES =>
            {
                last.size_bytes = end - last.begin;
            }
            _ => merged.push(Pages { shard: part.shard, begin, size_bytes: end - begin }),
        }
    }
    let split = |pages: Pages| {
        (0..pages.size_bytes).step_by(PIECE_BYTES as usize).map(move |offset| Pages {
            shard: pages.shard,
            begin: pages.begin + offset,
            size_bytes: PIECE_BYTES.min(pages.size_bytes - offset),
        })
    };
    merged.into_iter().flat_map(split).collect()
}

/// Equal runs at equal distances in a file, and where they go in the arena.
pub(super) struct Copy {
    pub(super) shard: usize,
    pub(super) source: u64,
    pub(super) source_step: u64,
    pub(super) target: usize,
    pub(super) target_step: usize,
    pub(super) runs: u64,
    pub(super) run_bytes: u64,
}

/// The copies that pack a part, each of about a piece of the file; none for a view.
pub(super) fn copies(part: &Part) -> Vec<Copy> {
    let (Some(packed), slice) = (part.packed, &part.slice) else { return Vec::new() };
    let target_step = (slice.size_bytes() / slice.lines) as usize;
    let mut copies = Vec::new();
    let mut target = packed;
    for run in &slice.runs {
        let run_bytes = run.end - run.start;
        let whole = Copy {
            shard: part.shard,
            source: slice.offset_bytes + run.start,
            source_step: slice.line_bytes,
            target,
            target_step,
            runs: slice.lines,
            run_bytes,
        };
        copies.extend(whole.split());
        target += run_bytes as usize;
    }
    copies
}

impl Copy {
    pub(super) fn size_bytes(&self) -> u64 {
        self.runs * self.run_bytes
    }

    /// From the beginning of the first run to the end of the last, in the file.
    pub(super) fn span_bytes(&self) -> u64 {
        (self.runs - 1) * self.source_step + self.run_bytes
    }

    /// The same in pieces: some lines each, or a piece of a line that is longer than that.
    fn split(&self) -> Vec<Copy> {
        let lines = (PIECE_BYTES / self.source_step).max(1);
        let piece = PIECE_BYTES.min(self.run_bytes);
        let mut pieces = Vec::new();
        for line in (0..self.runs).step_by(lines as usize) {
            for offset in (0..self.run_bytes).step_by(piece as usize) {
                pieces.push(Copy {
                    source: self.source + line * self.source_step + offset,
                    target: self.target + line as usize * self.target_step + offset as usize,
                    runs: lines.min(self.runs - line),
                    run_bytes: piece.min(self.run_bytes - offset),
                    ..*self
                });
            }
        }
        pieces
    }

    /// Brings in the pages of the runs, and with them gaps that are not worth a step.
    fn populate(&self, source: &Mapping, advice: &Advice) -> Result<()> {
        if self.source_step <= self.run_bytes + GAP_BYTES {
            return bring_in_pages(source, self.source, self.span_bytes(), advice);
        }
        (0..self.runs).try_for_each(|run| {
            let begin = self.source + run * self.source_step;
            bring_in_pages(source, begin, self.run_bytes, advice)
        })
    }

    fn run(&self, source: &Mapping, arena: &Arena) {
        let last = self.runs - 1;
        let source_end = self.source + last * self.source_step + self.run_bytes;
        let target_end = self.target + last as usize * self.target_step + self.run_bytes as usize;
        assert!(source_end <= source.size_bytes() as u64 && target_end <= arena.size_bytes());
        for run in 0..self.runs {
            let from = self.source + run * self.source_step;
            let to = self.target + run as usize * self.target_step;
            // SAFETY: both ranges are inside their memory (above: the last one ends furthest).
            // `source` is private to this load and nobody writes to it. The copies of a load are
            // to disjoint ranges of the arena, each run by one thread, and nobody has seen the
            // arena yet.
            unsafe {
                ptr::copy_nonoverlapping(
                    source.address().as_ptr().add(from as usize),
                    arena.address().as_ptr().add(to),
                    self.run_bytes as usize,
                );
            }
        }
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
pub(super) mod tests;
