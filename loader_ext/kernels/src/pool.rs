//! Threads that compute one task after another together with the thread that asks for it.
//!
//! A task is over when the caller finds nothing left to do and everyone who has joined it has
//! left. Threads that are late are not waited for: the gate is closed to them. Whatever work they
//! would have done must therefore be there for anyone to take.

use std::cell::UnsafeCell;
use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a thread looks for the next task, or the caller for stragglers, before it sleeps.
/// Between the products of a decoder lie 20 to 150 us of other work, and waking a thread takes as
/// long; but who spins for longer holds the core that another process needs.
const SPIN: Duration = Duration::from_micros(200);
/// Looks between two readings of the clock.
const LOOKS: usize = 16;
/// The gate's bit that lets threads in; the others count who is inside.
const OPEN: u32 = 1 << 31;

/// What every thread runs, with its number; the caller's is 0.
type Task<'a> = &'a (dyn Fn(usize) + Sync + 'a);

/// A caller and its helpers.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Counts tasks. All of the atomics are sequentially consistent: in each pair of "tell, then
    /// look who sleeps" and "go to sleep, then look again" one must see the other.
    task_number: AtomicU32,
    gate: AtomicU32,
    /// Written while the gate is closed and nobody is inside, read from inside.
    task: UnsafeCell<Option<Task<'static>>>,
    sleeping: AtomicU32,
    caller_sleeps: AtomicBool,
    panicked: AtomicBool,
    /// Guards going to sleep, for both conditions.
    bed: Mutex<()>,
    new_task: Condvar,
    all_left: Condvar,
    stop: AtomicBool,
}

// SAFETY: the task, the only part that is not `Sync` by itself, is written only while no thread
// may read it (see `task`), and what it refers to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; tasks are `Sync`, so that references to them may be sent.
unsafe impl Send for Shared {}

impl Pool {
    /// Starts all threads but the caller's.
    ///
    /// Errors: the system refuses a thread.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            task_number: AtomicU32::new(0),
            gate: AtomicU32::new(0),
            task: UnsafeCell::new(None),
            sleeping: AtomicU32::new(0),
            caller_sleeps: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            bed: Mutex::new(()),
            new_task: Condvar::new(),
            all_left: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        // Filled as it goes: if a thread is refused, dropping the pool ends those before it.
        let mut pool = Self { shared, helpers: Vec::new() };
        for number in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let name = format!("kernels-{number}");
            let helper = thread::Builder::new().name(name).spawn(move || shared.help(number))?;
            pool.helpers.push(helper);
        }
        Ok(pool)
    }

    /// Threads that may run a task.
    pub(crate) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `task` on the calling thread and on all that come in time. One caller at a time.
    ///
    /// Panics if the task did, on whatever thread.
    pub(crate) fn run(&self, task: Task<'_>) {
        if self.helpers.is_empty() {
            return task(0);
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes, and before this function ends, by a panic too,
        // `Closing` waits until nobody uses the task any more.
        let endless = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        // SAFETY: the gate is closed and nobody is inside, as every run ends that way.
        unsafe { *shared.task.get() = Some(endless) };
        shared.gate.store(OPEN, Ordering::SeqCst);
        let closing = Closing(shared);
        shared.task_number.fetch_add(1, Ordering::SeqCst);
        shared.wake();
        task(0);
        drop(closing);
        assert!(!shared.panicked.swap(false, Ordering::SeqCst), "a kernel's helper panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.task_number.fetch_add(1, Ordering::SeqCst);
        self.shared.wake();
        for helper in self.helpers.drain(..) {
            // Its panics were caught and reported where they happened.
            drop(helper.join());
        }
    }
}

/// Ends a task when it goes out of scope.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let shared = self.0;
        shared.gate.fetch_and(!OPEN, Ordering::SeqCst);
        let empty = || shared.gate.load(Ordering::SeqCst) == 0;
        if spin_until(empty) {
            return;
        }
        let mut bed = shared.bed();
        shared.caller_sleeps.store(true, Ordering::SeqCst);
        while !empty() {
            bed = shared.all_left.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        shared.caller_sleeps.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn help(&self, number: usize) {
        let mut seen = 0;
        loop {
            seen = self.next_task(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if self.join() {
                // SAFETY: this thread is inside, so that the caller does not write it.
                let task = unsafe { *self.task.get() };
                if let Some(task) = task
                    && catch_unwind(AssertUnwindSafe(|| task(number))).is_err()
                {
                    self.panicked.store(true, Ordering::SeqCst);
                }
                self.leave();
            }
        }
    }

    /// Waits for another task than number `seen`; its number.
    fn next_task(&self, seen: u32) -> u32 {
        let number = || self.task_number.load(Ordering::SeqCst);
        if !spin_until(|| number() != seen) {
            let mut bed = self.bed();
            self.sleeping.fetch_add(1, Ordering::SeqCst);
            while number() == seen {
                bed = self.new_task.wait(bed).unwrap_or_else(PoisonError::into_inner);
            }
            self.sleeping.fetch_sub(1, Ordering::SeqCst);
        }
        number()
    }

    fn wake(&self) {
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            drop(self.bed()); // whoever is on the way to bed is there now
            self.new_task.notify_all();
        }
    }

    /// Goes inside, if the gate is open.
    fn join(&self) -> bool {
        let inside = |gate: u32| (gate & OPEN != 0).then_some(gate + 1);
        self.gate.fetch_update(Ordering::SeqCst, Ordering::SeqCst, inside).is_ok()
    }

    fn leave(&self) {
        let before = self.gate.fetch_sub(1, Ordering::SeqCst);
        if before == 1 && self.caller_sleeps.load(Ordering::SeqCst) {
            drop(self.bed());
            self.all_left.notify_all();
        }
    }

    fn bed(&self) -> MutexGuard<'_, ()> {
        self.bed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it comes true within `SPIN`.
fn spin_until(done: impl Fn() -> bool) -> bool {
    let mut begun = None;
    loop {
        for _ in 0..LOOKS {
            if done() {
                return true;
            }
            hint::spin_loop();
        }
        if begun.get_or_insert_with(Instant::now).elapsed() > SPIN {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn the_caller_alone_is_enough() {
        let ran = AtomicUsize::new(0);
        Pool::new(1).unwrap().run(&|number| {
            assert_eq!(number, 0);
            ran.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(ran.into_inner(), 1);
    }

    #[test]
    fn everyone_who_joined_has_left_when_run_returns() {
        let pool = Pool::new(4).unwrap();
        for round in 0..2000 {
            let left = AtomicUsize::new(64);
            let done = AtomicUsize::new(0);
            pool.run(&|_| {
                let less = |left: usize| left.checked_sub(1);
                while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
                    done.fetch_add(1, Ordering::SeqCst);
                }
            });
            assert_eq!(done.into_inner(), 64);
            if round % 500 == 0 {
                // All sleep, and have to be woken for the next one.
                while pool.shared.sleeping.load(Ordering::SeqCst) < 3 {
                    thread::yield_now();
                }
            }
        }
    }

    #[test]
    fn a_caller_that_waits_for_long_is_woken() {
        let pool = Pool::new(2).unwrap();
        let inside = AtomicBool::new(false);
        pool.run(&|number| {
            if number == 1 {
                inside.store(true, Ordering::SeqCst);
                while !pool.shared.caller_sleeps.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
            } else {
                while !inside.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
            }
        });
        assert_eq!(pool.shared.gate.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        for panics in [0, 1] {
            let helped = AtomicBool::new(false);
            let run = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|number| {
                    if number == 1 {
                        helped.store(true, Ordering::SeqCst);
                    }
                    while !helped.load(Ordering::SeqCst) {
                        thread::yield_now();
                    }
                    assert_ne!(number, panics, "as the test wants it");
                });
            }));
            assert!(run.is_err());
        }
        let ran = AtomicUsize::new(0);
        pool.run(&|_| {
            ran.fetch_add(1, Ordering::SeqCst);
        });
        assert!(ran.into_inner() >= 1);
    }
}
