//! Long work as pieces: bounded threads, progress and cancellation on the calling thread.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::error::Result;

/// The most threads that any piece of work gets; more never read faster in our measurements.
pub const MAX_THREADS: usize = 32;

/// How often the caller is asked whether to go on while it waits for the other threads.
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// What became of a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is done; so much is added to the sum.
    Done(u64),
    /// It waits for something and is to be tried again. It has waited a little already.
    Again,
}

/// Does the work `0..count` on `threads` threads and returns the sum of what each piece returned.
///
/// The caller is one of the threads, and between its own pieces, and while it waits for the others
/// at the end, it calls `watch` with the sum so far: so a caller that waits for a lock stops nobody
/// else.
/// `scratch` makes what one thread keeps between its pieces. The first error, of a piece or of
/// `watch`, stops everyone after the piece at hand and is returned.
pub fn run<S>(
    count: usize,
    threads: usize,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> Result<Step> + Sync,
    mut watch: impl FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let next = AtomicUsize::new(0);
    let done = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let first_error = Mutex::new(None);
    let fail = |error| {
        stop.store(true, Ordering::Relaxed);
        first_error.lock().expect("no holder of this lock panics").get_or_insert(error);
    };
    let drain = |watch: &mut dyn FnMut(u64) -> Result<()>| {
        let mut state = scratch();
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            let mut step = Ok(Step::Again);
            while step == Ok(Step::Again) && !stop.load(Ordering::Relaxed) {
                step = work(&mut state, index).and_then(|step| {
                    let amount = if let Step::Done(amount) = step { amount } else { 0 };
                    watch(done.fetch_add(amount, Ordering::Relaxed) + amount).map(|()| step)
                });
            }
            if let Err(error) = step {
                fail(error);
            }
        }
    };
    let caller = thread::current();
    let helpers = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 1..threads.min(MAX_THREADS).min(count) {
            let help = || {
                let _leaving = Leaving { helpers: &helpers, caller: &caller };
                drain(&mut |_| Ok(()));
            };
            // Without another thread (a container's limit of processes) the caller does it all.
            helpers.fetch_add(1, Ordering::Relaxed);
            if thread::Builder::new().spawn_scoped(scope, help).is_err() {
                helpers.fetch_sub(1, Ordering::Relaxed);
                break;
            }
        }
        drain(&mut watch);
        while helpers.load(Ordering::Acquire) > 0 {
            thread::park_timeout(WATCH_EVERY);
            if !stop.load(Ordering::Relaxed)
                && let Err(error) = watch(done.load(Ordering::Relaxed))
            {
                fail(error);
            }
        }
    });
    if let Some(error) = first_error.into_inner().expect("all threads have ended") {
        return Err(error);
    }
    let total = done.into_inner();
    watch(total)?;
    Ok(total)
}

/// Tells the caller that a helper has ended, also one that panics: nobody would wake it else.
struct Leaving<'a> {
    helpers: &'a AtomicUsize,
    caller: &'a thread::Thread,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.helpers.fetch_sub(1, Ordering::Release);
        self.caller.unpark();
    }
}

/// Threads for work that a processor limits.
pub fn processor_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};
    use std::path::Path;

    #[test]
    fn every_piece_is_done_once() {
        for threads in [1, 2, 7] {
            let seen: Vec<AtomicU64> = (0..100).map(|_| AtomicU64::new(0)).collect();
            let mut last = 0;
            let total = run(
                100,
                threads,
                || (),
                |(), index| {
                    let before = seen[index].fetch_add(1, Ordering::Relaxed);
                    Ok(Step::Done(before + index as u64))
                },
                |done| {
                    assert!(done >= last);
                    last = done;
                    Ok(())
                },
            );
            assert_eq!(total, Ok(4950));
            assert_eq!(last, 4950);
            assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn the_first_error_stops_all() {
        let calls = AtomicUsize::new(0);
        let error = Error::new(Path::new("x"), Kind::Cancelled);
        let outcome = run(
            1000,
            1,
            || (),
            |(), _| Ok(Step::Done(calls.fetch_add(1, Ordering::Relaxed) as u64)),
            |_| Err(error.clone()),
        );
        assert_eq!(outcome, Err(error));
        assert_eq!(calls.into_inner(), 1);
    }

    #[test]
    fn what_waits_is_tried_again_and_watched_meanwhile() {
        let (mut tries, watched) = (0, AtomicUsize::new(0));
        let work = |tries: &mut u64, _| {
            *tries += 1;
            Ok(if *tries < 3 { Step::Again } else { Step::Done(*tries) })
        };
        let watch = |_| {
            watched.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        assert_eq!(run(1, 1, || 0, work, watch), Ok(3));
        assert_eq!(watched.into_inner(), 4, "two tries, the end of the piece, the end of all");
        let never = |tries: &mut u64, _| {
            *tries += 1;
            Ok(Step::Again)
        };
        let error = Error::new(Path::new("x"), Kind::Cancelled);
        let outcome = run(
            2,
            2,
            || 0,
            never,
            |_| {
                tries += 1;
                if tries < 9 { Ok(()) } else { Err(error.clone()) }
            },
        );
        assert_eq!(outcome, Err(error), "who waits can be stopped");
    }

    #[test]
    fn a_caller_without_pieces_watches_the_others() {
        let stopped = AtomicBool::new(false);
        let caller = thread::current().id();
        // Ends only when the caller, who has nothing to do, has seen that the other one waits.
        let work = |(): &mut (), index| {
            let waits = index == 0 && !stopped.load(Ordering::Relaxed);
            Ok(if waits { Step::Again } else { Step::Done(1) })
        };
        let mut calls = 0;
        let watch = |_| {
            assert_eq!(thread::current().id(), caller);
            calls += 1;
            // The caller may have taken the piece that waits: then this ends it too.
            stopped.store(calls > 3, Ordering::Relaxed);
            Ok(())
        };
        assert_eq!(run(2, 2, || (), work, watch), Ok(2));
        assert!(calls > 3);
    }

    #[test]
    fn no_pieces_is_no_work() {
        assert_eq!(run(0, 4, || (), |(), _| Ok(Step::Done(1)), |_| Ok(())), Ok(0));
    }
}
