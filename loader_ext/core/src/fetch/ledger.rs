//! Who fetches which chunk next: pure bookkeeping, without a clock or a connection of its own.
//!
//! Chunks go out in order, so that a reader that begins at the front is served first. When none is
//! left to hand out, a free stream takes over a chunk that another one has had for long (*hedging*:
//! J. Dean, L. A. Barroso, "The Tail at Scale", CACM 2013): the first to bring it wins.

use std::time::{Duration, Instant};

/// Streams that may have one chunk at the same time; one more where all of them are of one source,
/// and the free one is not.
const MAX_HOLDERS: usize = 2;

/// What a stream is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Fetch this chunk; nobody else does.
    Take(usize),
    /// Fetch this chunk as well: who does is slow.
    Hedge(usize),
    /// Ask again when something changes, or at this time.
    Wait(Option<Instant>),
    /// All chunks are there.
    Finished,
}

#[derive(Debug, Clone)]
enum State {
    Missing,
    /// Sources that fetch it, and since when the first does.
    InFlight(Vec<usize>, Instant),
    Done,
}

/// The chunks of one file, and who has them.
#[derive(Debug)]
pub struct Ledger {
    chunks: Vec<State>,
    /// No chunk before this one is missing.
    front: usize,
    done: usize,
    hedge_after: Duration,
}

impl Ledger {
    /// `done` says which chunks are there already.
    pub fn new(done: impl IntoIterator<Item = bool>, hedge_after: Duration) -> Self {
        let chunks: Vec<State> =
            done.into_iter().map(|done| if done { State::Done } else { State::Missing }).collect();
        let count = chunks.iter().filter(|state| matches!(state, State::Done)).count();
        Self { chunks, front: 0, done: count, hedge_after }
    }

    /// What a free stream of `source` is to do.
    pub fn next(&mut self, source: usize, now: Instant) -> Next {
        if self.is_finished() {
            return Next::Finished;
        }
        while let Some(state) = self.chunks.get_mut(self.front) {
            if matches!(state, State::Missing) {
                *state = State::InFlight(vec![source], now);
                self.front += 1;
                return Next::Take(self.front - 1);
            }
            self.front += 1;
        }
        self.hedge(source, now)
    }

    /// A stream brought a chunk; false if another one was faster.
    pub fn arrived(&mut self, chunk: usize) -> bool {
        let first = !matches!(self.chunks[chunk], State::Done);
        if first {
            self.chunks[chunk] = State::Done;
            self.done += 1;
        }
        first
    }

    /// A stream of `source` could not bring a chunk: it is missing unless another one has it.
    pub fn failed(&mut self, chunk: usize, source: usize) {
        if let State::InFlight(holders, _) = &mut self.chunks[chunk] {
            if let Some(position) = holders.iter().position(|holder| *holder == source) {
                holders.swap_remove(position);
            }
            if holders.is_empty() {
                self.chunks[chunk] = State::Missing;
                self.front = self.front.min(chunk);
            }
        }
    }

    /// Whether a chunk is there.
    pub fn is_done(&self, chunk: usize) -> bool {
        matches!(self.chunks[chunk], State::Done)
    }

    /// Whether all chunks are there.
    pub fn is_finished(&self) -> bool {
        self.done == self.chunks.len()
    }

    /// The chunk that is longest in flight with too few holders, once it is slow.
    fn hedge(&mut self, source: usize, now: Instant) -> Next {
        let slow_at = |since: Instant| since + self.hedge_after;
        let may_join = |holders: &[usize]| {
            let of_one = holders.iter().all(|holder| *holder == holders[0]);
            holders.len() < MAX_HOLDERS
                || (holders.len() == MAX_HOLDERS && of_one && holders[0] != source)
        };
        let oldest = self
            .chunks
            .iter()
            .enumerate()
            .filter_map(|(chunk, state)| match state {
                State::InFlight(holders, since) if may_join(holders) => Some((*since, chunk)),
                _ => None,
            })
            .min();
        match oldest {
            None => Next::Wait(None),
            Some((since, _)) if slow_at(since) > now => Next::Wait(Some(slow_at(since))),
            Some((_, chunk)) => {
                if let State::InFlight(holders, _) = &mut self.chunks[chunk] {
                    holders.push(source);
                }
                Next::Hedge(chunk)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEDGE: Duration = Duration::from_secs(1);

    fn ledger(chunks: usize) -> (Ledger, Instant) {
        (Ledger::new(vec![false; chunks], HEDGE), Instant::now())
    }

    #[test]
    fn chunks_go_out_in_order_and_once() {
        let (mut ledger, now) = ledger(3);
        let taken: Vec<_> = (0..3).map(|source| ledger.next(source, now)).collect();
        assert_eq!(taken, [Next::Take(0), Next::Take(1), Next::Take(2)]);
        assert_eq!(ledger.next(0, now), Next::Wait(Some(now + HEDGE)));
    }

    #[test]
    fn what_is_there_is_not_fetched() {
        let now = Instant::now();
        let mut ledger = Ledger::new([true, false, true], HEDGE);
        assert_eq!(ledger.next(0, now), Next::Take(1));
        assert!(ledger.arrived(1));
        assert_eq!(ledger.next(0, now), Next::Finished);
        assert_eq!(Ledger::new([], HEDGE).next(0, now), Next::Finished);
    }

    #[test]
    fn a_slow_chunk_is_hedged_once_and_the_first_wins() {
        let (mut ledger, now) = ledger(1);
        assert_eq!(ledger.next(0, now), Next::Take(0));
        assert_eq!(ledger.next(1, now + HEDGE), Next::Hedge(0));
        assert_eq!(ledger.next(2, now + 9 * HEDGE), Next::Wait(None), "two sources are enough");
        assert!(ledger.arrived(0));
        assert!(!ledger.arrived(0));
        ledger.failed(0, 1);
        assert!(ledger.is_done(0));
    }

    #[test]
    fn a_slow_source_cannot_keep_a_chunk_to_itself() {
        let (mut ledger, now) = ledger(1);
        assert_eq!(ledger.next(0, now), Next::Take(0));
        assert_eq!(ledger.next(0, now + HEDGE), Next::Hedge(0));
        assert_eq!(ledger.next(0, now + HEDGE), Next::Wait(None));
        assert_eq!(ledger.next(1, now + HEDGE), Next::Hedge(0), "another source may be faster");
        assert_eq!(ledger.next(2, now + HEDGE), Next::Wait(None));
    }

    #[test]
    fn a_failed_chunk_is_next_unless_another_has_it() {
        let (mut ledger, now) = ledger(2);
        assert_eq!((ledger.next(0, now), ledger.next(1, now)), (Next::Take(0), Next::Take(1)));
        ledger.failed(0, 0);
        assert_eq!(ledger.next(1, now), Next::Take(0));
        assert_eq!(ledger.next(0, now + HEDGE), Next::Hedge(0), "taken first, so slow first");
        ledger.failed(0, 1);
        assert_eq!(ledger.next(1, now + HEDGE), Next::Hedge(0));
    }

    proptest! {
        /// Whatever fails and however late, every chunk arrives, none is handed to more than
        /// `MAX_HOLDERS` and one, and nobody waits without end while something is missing.
        #[test]
        fn every_chunk_arrives(
            chunks in 0usize..12,
            steps in proptest::collection::vec((0usize..3, any::<bool>(), 0u64..3), 0..200),
        ) {
            let (mut ledger, mut now) = ledger(chunks);
            let mut flying: Vec<(usize, usize)> = Vec::new();
            let mut there = vec![false; chunks];
            for (source, fails, seconds) in steps {
                now += Duration::from_secs(seconds);
                match ledger.next(source, now) {
                    Next::Take(chunk) | Next::Hedge(chunk) => {
                        prop_assert!(!there[chunk]);
                        flying.push((chunk, source));
                        let holders = flying.iter().filter(|held| held.0 == chunk).count();
                        prop_assert!(holders <= MAX_HOLDERS + 1);
                    }
                    Next::Wait(_) => prop_assert!(!flying.is_empty()),
                    Next::Finished => prop_assert!(there.iter().all(|there| *there)),
                }
                if !flying.is_empty() && flying.len() > 1 {
                    let (chunk, holder) = flying.remove(0);
                    if fails {
                        ledger.failed(chunk, holder);
                    } else {
                        prop_assert_eq!(ledger.arrived(chunk), !there[chunk]);
                        there[chunk] = true;
                    }
                }
            }
            for (chunk, _) in flying {
                ledger.arrived(chunk);
                there[chunk] = true;
            }
            while let Next::Take(chunk) = ledger.next(0, now) {
                prop_assert!(ledger.arrived(chunk));
                there[chunk] = true;
            }
            prop_assert!(there.iter().all(|there| *there));
        }
    }
}
