//! Which thread computes which rows.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Shares begin at a multiple of this, the rows of the tallest tile.
pub(crate) const ROW_STEP: usize = 8;

/// A range of rows for each thread, taken in blocks from its start; whoever is done helps others,
/// so that a thread that the system has put aside holds up one block and not its whole range.
pub(crate) struct Shares {
    ranges: Vec<Share>,
    block_rows: usize,
}

/// Alone in its cache line, as it is written by its thread all the time.
#[repr(align(64))]
struct Share {
    next: AtomicUsize,
    end: usize,
}

impl Shares {
    /// Deals out `rows` to `threads`.
    pub(crate) fn new(rows: usize, threads: usize, block_rows: usize) -> Self {
        let bound = |thread: usize| (rows * thread / threads).next_multiple_of(ROW_STEP).min(rows);
        let share =
            |thread| Share { next: AtomicUsize::new(bound(thread)), end: bound(thread + 1) };
        Self { ranges: (0..threads).map(share).collect(), block_rows }
    }

    /// The next rows for this thread, its own first; None when all are taken.
    pub(crate) fn take(&self, thread: usize) -> Option<Range<usize>> {
        let threads = self.ranges.len();
        (0..threads).find_map(|other| self.ranges[(thread + other) % threads].take(self.block_rows))
    }
}

impl Share {
    fn take(&self, rows: usize) -> Option<Range<usize>> {
        // Looking first keeps the counter from growing with every thread that finds nothing.
        if self.next.load(Ordering::Relaxed) >= self.end {
            return None;
        }
        let start = self.next.fetch_add(rows, Ordering::Relaxed);
        (start < self.end).then(|| start..self.end.min(start + rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_dealt_out_once() {
        for rows in 0..70 {
            for threads in 1..5 {
                for block_rows in [1, 8, 24] {
                    let shares = Shares::new(rows, threads, block_rows);
                    let mut taken = vec![0; rows];
                    let mut thread = 0;
                    while let Some(range) = shares.take(thread) {
                        assert!(range.len() <= block_rows && !range.is_empty());
                        range.for_each(|row| taken[row] += 1);
                        thread = (thread + 1) % threads;
                    }
                    assert!(taken.iter().all(|times| *times == 1), "{rows} {threads} {taken:?}");
                }
            }
        }
    }

    #[test]
    fn a_thread_takes_its_own_rows_before_others() {
        let shares = Shares::new(64, 2, 16);
        assert_eq!(shares.take(1), Some(32..48));
        assert_eq!(shares.take(1), Some(48..64));
        assert_eq!(shares.take(1), Some(0..16));
        assert_eq!(shares.take(0), Some(16..32));
        assert_eq!(shares.take(0), None);
    }
}
