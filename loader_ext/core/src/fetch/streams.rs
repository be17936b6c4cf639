//! Streams at work: each asks the ledger what to do, brings that range, and learns from failure.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use reqwest::Client;
use tokio::{sync::Notify, time};

use super::backoff::{MAX_BACKOFF, backoff};
use super::ledger::{Ledger, Next};
use super::origin::{self, Failure, Origin};
use super::part::{Outcome, Part};
use super::{Limits, MAX_STREAMS, WATCH_EVERY, Wanted};
use crate::error::{Error, Kind, Result};
use crate::pieces;

/// Chunks with wrong bytes after which an origin is not asked any more.
const MAX_CORRUPT: u32 = 2;

/// Brings every chunk that is missing; returns the bytes by origin and the seconds.
///
/// Each thread has connections of its own and drives its share of the streams; the caller is one
/// of them, and calls `watch` beside.
pub fn run(
    wanted: &Wanted,
    part: &Part,
    limits: &Limits,
    watch: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<(Vec<u64>, f64)> {
    let began = Instant::now();
    let count = wanted.origins.len() * limits.streams.clamp(1, MAX_STREAMS);
    let threads = pieces::processor_threads().min(count).max(1);
    let shared = Shared::new(wanted, part, limits, count);
    let origins = wanted.origins.len();
    let lane =
        move |first: usize| (first..count).step_by(threads).map(move |index| index % origins);
    thread::scope(|scope| {
        for first in 1..threads {
            let shared = &shared;
            let help = move || {
                if let Err(error) = drive(shared, lane(first), &mut |_, _| Ok(())) {
                    shared.stop(error);
                }
            };
            if let Err(error) = thread::Builder::new().spawn_scoped(scope, help) {
                shared.stop(Error::io(part.path(), "starting a thread", &error));
            }
        }
        if let Err(error) = drive(&shared, lane(0), watch) {
            shared.stop(error);
        }
    });
    shared.outcome(began)
}

/// Runs streams on this thread until those of all threads have ended.
fn drive(
    shared: &Shared<'_>,
    origins: impl Iterator<Item = usize>,
    watch: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let path = shared.part.path();
    let client = origin::client(path, shared.limits.stall, shared.origins)?;
    let streams =
        futures_util::future::join_all(origins.map(|origin| shared.stream(&client, origin)));
    origin::drive(path, async {
        tokio::pin!(streams);
        let mut own_ended = false;
        loop {
            let changed = shared.changed.notified();
            // A thread that failed leaves streams that never end.
            let ended = shared.running.load(Ordering::Acquire) == 0
                || (own_ended && shared.lock().fatal.is_some());
            watch(shared.there_bytes.load(Ordering::Relaxed), shared.part.subject().file_bytes)?;
            if ended {
                return Ok(());
            }
            tokio::select! {
                _ = &mut streams, if !own_ended => own_ended = true,
                () = changed => {}
                () = time::sleep(WATCH_EVERY) => {}
            }
        }
    })
}

#[derive(Debug, Clone, Default)]
struct Health {
    brought_bytes: u64,
    corrupt: u32,
    /// Why it is not asked any more.
    dropped: Option<Kind>,
}

struct State {
    ledger: Ledger,
    /// How often each chunk was asked for.
    attempts: Vec<u32>,
    health: Vec<Health>,
    /// Why a chunk could not be brought, the last time.
    error: Option<Kind>,
    /// Nothing can go on: the disk failed, or a chunk was asked for too often.
    fatal: Option<Error>,
}

struct Shared<'a> {
    origins: &'a [Origin],
    part: &'a Part,
    limits: &'a Limits,
    there_bytes: AtomicU64,
    state: Mutex<State>,
    /// Streams that have not ended.
    running: AtomicUsize,
    /// Something happened that who waits wants to know.
    changed: Notify,
}

/// Tells who waits that a stream has ended.
struct Ends<'a>(&'a Shared<'a>);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_waiters();
    }
}

/// Why a chunk was not brought.
enum Trouble {
    Origin(Failure),
    Corrupt(Error),
    Disk(Error),
}

impl<'a> Shared<'a> {
    fn new(wanted: &'a Wanted, part: &'a Part, limits: &'a Limits, streams: usize) -> Self {
        let chunks = part.subject().chunks();
        let there_bytes = (0..chunks)
            .filter(|chunk| part.has(*chunk))
            .map(|chunk| part.subject().chunk(chunk).1)
            .sum();
        Self {
            origins: &wanted.origins,
            part,
            limits,
            there_bytes: AtomicU64::new(there_bytes),
            state: Mutex::new(State {
                ledger: Ledger::new((0..chunks).map(|chunk| part.has(chunk)), limits.hedge_after),
                attempts: vec![0; chunks],
                health: vec![Health::default(); wanted.origins.len()],
                error: None,
                fatal: None,
            }),
            running: AtomicUsize::new(streams),
            changed: Notify::new(),
        }
    }

    /// One stream to its end. Whatever that is, even a panic, it counts as ended.
    fn stream<'b>(&'b self, client: &'b Client, origin: usize) -> impl Future<Output = ()> + 'b {
        let ends = Ends(self);
        async move {
            let _ends = ends;
            self.work(client, origin).await;
        }
    }

    async fn work(&self, client: &Client, origin: usize) {
        let mut failures = 0;
        loop {
            // No change is missed from here on, even before this is awaited.
            let changed = self.changed.notified();
            let (chunk, hedging) = match self.next(origin) {
                Next::Finished => break,
                Next::Take(chunk) => (chunk, false),
                Next::Hedge(chunk) => (chunk, true),
                Next::Wait(None) => {
                    changed.await;
                    continue;
                }
                Next::Wait(Some(until)) => {
                    // Ends with a change or with the time: both are looked at.
                    let _ = time::timeout_at(until.into(), changed).await;
                    continue;
                }
            };
            let brought = tokio::select! {
                brought = self.bring(client, origin, chunk, hedging) => brought,
                () = self.until(|state| state.ledger.is_done(chunk)) => Ok(Outcome::Late),
            };
            let pause = self.settle(origin, chunk, brought, &mut failures);
            self.changed.notify_waiters();
            if let Some(pause) = pause {
                // Ends with the time, or when there is nothing left to do.
                let _ = time::timeout(pause, self.until(|state| state.ledger.is_finished())).await;
            }
        }
    }

    fn next(&self, origin: usize) -> Next {
        let mut state = self.lock();
        if state.fatal.is_some() || state.health[origin].dropped.is_some() {
            return Next::Finished;
        }
        state.ledger.next(origin, Instant::now())
    }

    /// Returns when this is so, or nothing is wanted any more.
    async fn until(&self, so: impl Fn(&State) -> bool) {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.lock();
                if state.fatal.is_some() || so(&state) {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Ends everything with this error, unless another one was first.
    fn stop(&self, error: Error) {
        self.lock().fatal.get_or_insert(error);
        self.changed.notify_waiters();
    }

    async fn bring(
        &self,
        client: &Client,
        origin: usize,
        chunk: usize,
        hedging: bool,
    ) -> std::result::Result<Outcome, Trouble> {
        let from = &self.origins[origin];
        let subject = self.part.subject();
        let (begin, length) = subject.chunk(chunk);
        let mut response = origin::range(client, from, (begin, length), subject.file_bytes)
            .await
            .map_err(Trouble::Origin)?;
        // Two streams bring the chunk: what this one brings is kept aside until it is verified,
        // or it could overwrite what the other has verified already.
        let mut aside = hedging.then(|| Vec::with_capacity(length as usize));
        let mut writer = self.part.writer(chunk);
        let mut come = 0;
        while let Some(bytes) =
            response.chunk().await.map_err(|error| Trouble::Origin(origin::lost(from, &error)))?
        {
            come += bytes.len() as u64;
            if come > length {
                return Err(Trouble::Origin(origin::wrong_length(from)));
            }
            match &mut aside {
                Some(aside) => aside.extend_from_slice(&bytes),
                // Into the page cache, which takes microseconds.
                None if writer.push(&bytes).map_err(Trouble::Disk)? == Outcome::Late => {
                    return Ok(Outcome::Late);
                }
                None => {}
            }
        }
        if come != length {
            return Err(Trouble::Origin(origin::wrong_length(from)));
        }
        let sealed = match aside {
            Some(bytes) => self.part.replace(chunk, &bytes),
            None => writer.finish(),
        };
        sealed.map_err(|error| match error.kind {
            Kind::ChunkMismatch { .. } => Trouble::Corrupt(error),
            _ => Trouble::Disk(error),
        })
    }

    /// Enters what became of a chunk; returns how long the stream is to pause.
    fn settle(
        &self,
        origin: usize,
        chunk: usize,
        brought: std::result::Result<Outcome, Trouble>,
        failures: &mut u32,
    ) -> Option<Duration> {
        let mut state = self.lock();
        let state = &mut *state;
        let trouble = match brought {
            Ok(outcome) => {
                *failures = 0;
                let length = self.part.subject().chunk(chunk).1;
                if outcome == Outcome::Sealed && state.ledger.arrived(chunk) {
                    state.health[origin].brought_bytes += length;
                    self.there_bytes.fetch_add(length, Ordering::Relaxed);
                } else {
                    state.ledger.failed(chunk, origin);
                }
                return None;
            }
            Err(trouble) => trouble,
        };
        state.ledger.failed(chunk, origin);
        if state.ledger.is_done(chunk) {
            return None;
        }
        let health = &mut state.health[origin];
        let mut pause = None;
        let kind = match trouble {
            Trouble::Disk(error) => {
                state.fatal.get_or_insert(error);
                return None;
            }
            Trouble::Corrupt(error) => {
                health.corrupt += 1;
                if health.corrupt >= MAX_CORRUPT {
                    health.dropped = Some(error.kind.clone());
                }
                error.kind
            }
            Trouble::Origin(Failure::Permanent(kind)) => {
                health.dropped = Some(kind.clone());
                kind
            }
            Trouble::Origin(Failure::Transient(kind, asked)) => {
                *failures += 1;
                pause = Some(asked.unwrap_or_default().min(MAX_BACKOFF).max(backoff(*failures)));
                kind
            }
        };
        state.attempts[chunk] += 1;
        if state.attempts[chunk] >= self.limits.attempts {
            state.fatal.get_or_insert_with(|| self.error(chunk, kind.clone()));
        }
        if state.health.iter().all(|health| health.dropped.is_some()) {
            state.fatal.get_or_insert_with(|| self.error(chunk, kind.clone()));
        }
        state.error = Some(kind);
        pause
    }

    fn outcome(&self, began: Instant) -> Result<(Vec<u64>, f64)> {
        let state = self.lock();
        if let Some(error) = &state.fatal {
            return Err(error.clone());
        }
        let missing = (0..state.attempts.len()).find(|chunk| !state.ledger.is_done(*chunk));
        if let Some(chunk) = missing {
            let kind = state.error.clone().unwrap_or(Kind::NoSource);
            return Err(self.error(chunk, kind));
        }
        let by_origin = state.health.iter().map(|health| health.brought_bytes).collect();
        Ok((by_origin, began.elapsed().as_secs_f64()))
    }

    fn error(&self, chunk: usize, kind: Kind) -> Error {
        Error::new(self.part.path(), kind).at(self.part.subject().chunk(chunk).0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}
