//! A stream: a queue of copies and the thread that does them, as late as its schedule says.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use crate::machine::MACHINE;

/// The longest that a copy is held back by chance.
const MAX_DELAY_US: u64 = 300;

/// When copies are done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// As soon as the thread gets to them.
    Eager,
    /// Not before somebody waits for them, as late as the API allows.
    Lazy,
    /// Each copy at once, after a delay, or as lazily as that; drawn from the machine's seed.
    Random,
}

/// A copy from pinned memory to a device.
#[derive(Clone, Copy)]
pub struct Copy {
    pub target: u64,
    pub source: u64,
    pub size_bytes: usize,
}

impl Copy {
    /// Whether it reads or writes any of the bytes.
    pub fn touches(&self, start: u64, size_bytes: usize) -> bool {
        let meets = |address| address < start + size_bytes as u64 && start < address + self.len();
        meets(self.target) || meets(self.source)
    }

    fn len(&self) -> u64 {
        self.size_bytes as u64
    }
}

/// Copies in order. They are numbered from 1, so "up to number n" is what an event means.
pub struct Stream {
    /// The device whose context it belongs to.
    pub device: usize,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    queue: VecDeque<Copy>,
    done: u64,
    wanted: u64,
    closing: bool,
}

/// What a copy waits for.
#[derive(PartialEq, Eq)]
enum Patience {
    None,
    Delay(Duration),
    UntilWanted,
}

impl Stream {
    /// A stream whose thread ends when it is closed and empty.
    pub fn start(device: usize, schedule: Schedule, seed: u64) -> Arc<Self> {
        let progress = Mutex::new(Progress::default());
        let stream = Arc::new(Self { device, progress, changed: Condvar::new() });
        let worker = Arc::clone(&stream);
        thread::spawn(move || worker.run(schedule, seed));
        stream
    }

    /// Queues a copy.
    pub fn push(&self, copy: Copy) {
        self.lock().queue.push_back(copy);
        self.changed.notify_all();
    }

    /// The number of the last copy so far.
    pub fn last(&self) -> u64 {
        let progress = self.lock();
        progress.done + progress.queue.len() as u64
    }

    /// Waits for all copies up to a number.
    pub fn wait(&self, number: u64) {
        let mut progress = self.lock();
        progress.wanted = progress.wanted.max(number);
        self.changed.notify_all();
        while progress.done < number {
            progress = self.changed.wait(progress).expect("no holder of this lock panics");
        }
    }

    /// Lets the thread end once everything is done, as the real driver does.
    pub fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_all();
    }

    /// Whether a copy that is not done touches any of the bytes.
    pub fn is_pending(&self, start: u64, size_bytes: usize) -> bool {
        self.lock().queue.iter().any(|copy| copy.touches(start, size_bytes))
    }

    /// Whether no copy is queued.
    pub fn is_idle(&self) -> bool {
        self.lock().queue.is_empty()
    }

    fn run(&self, schedule: Schedule, seed: u64) {
        let mut state = seed;
        let mut progress = self.lock();
        loop {
            let Some(&copy) = progress.queue.front() else {
                if progress.closing {
                    return;
                }
                progress = self.changed.wait(progress).expect("no holder of this lock panics");
                continue;
            };
            match patience(schedule, &mut state) {
                Patience::None => drop(progress),
                Patience::Delay(time) => {
                    drop(progress);
                    thread::sleep(time);
                }
                Patience::UntilWanted => {
                    while progress.wanted <= progress.done && !progress.closing {
                        progress = self.changed.wait(progress).expect("as above");
                    }
                    drop(progress);
                }
            }
            MACHINE.perform(self.device, copy);
            progress = self.lock();
            // Only now: what is at the front of the queue is pending.
            progress.queue.pop_front();
            progress.done += 1;
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("no holder of this lock panics")
    }
}

fn patience(schedule: Schedule, state: &mut u64) -> Patience {
    match schedule {
        Schedule::Eager => Patience::None,
        Schedule::Lazy => Patience::UntilWanted,
        Schedule::Random => match next(state) % 3 {
            0 => Patience::None,
            1 => Patience::Delay(Duration::from_micros(next(state) % MAX_DELAY_US)),
            _ => Patience::UntilWanted,
        },
    }
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
