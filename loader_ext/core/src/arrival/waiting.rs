//! Waiting on a map, by whoever reads a file while it arrives.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Arrival;
use super::head::BEAT_AT;
use super::kernel::{futex_wait, is_locked};
use crate::error::{Error, Kind, Result};

/// How often a waiter makes sure that the writer lives and that it is still to wait.
pub(super) const WAIT_SLICE: Duration = Duration::from_millis(100);

impl Arrival {
    /// Waits until all of `chunks` are there, and calls `watch` now and then, which may stop it.
    ///
    /// Errors: `FetchAbandoned` if the writer is gone before, `WaitTimeout` if nothing at all
    /// arrives for as long as `patience`.
    pub fn wait(
        &self,
        chunks: Range<usize>,
        patience: Duration,
        watch: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut silence = Silence::default();
        while !self.wait_briefly(chunks.clone(), patience, &mut silence)? {
            watch()?;
        }
        Ok(())
    }

    /// Waits until the file stands at its final name. Errors: as `wait`.
    pub fn wait_complete(
        &self,
        patience: Duration,
        watch: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut silence = Silence::default();
        while !self.wait_for(&|| self.is_complete(), patience, &mut silence)? {
            watch()?;
        }
        Ok(())
    }

    /// Waits a little, no longer than until something arrives; true if all of `chunks` are there.
    /// Errors: as `wait`, with `silence` kept by the caller between its calls.
    pub fn wait_briefly(
        &self,
        chunks: Range<usize>,
        patience: Duration,
        silence: &mut Silence,
    ) -> Result<bool> {
        // Complete is said last of all, when the file is durable: it needs no belief in bits.
        let all = || self.is_complete() || chunks.clone().all(|chunk| self.has(chunk));
        self.wait_for(&all, patience, silence)
    }

    fn wait_for(
        &self,
        there: &dyn Fn() -> bool,
        patience: Duration,
        silence: &mut Silence,
    ) -> Result<bool> {
        let beat = self.load(BEAT_AT);
        if there() {
            return Ok(true);
        }
        if silence.lasts(self.head.inode, beat) >= patience {
            return Err(Error::new(&self.path, Kind::WaitTimeout));
        }
        futex_wait(self.number(BEAT_AT), beat, WAIT_SLICE);
        let written = is_locked(&self.file);
        // Looked at after the lock: what came before the writer left counts all the same.
        match there() {
            true => Ok(true),
            false if written => Ok(false),
            false => Err(Error::new(&self.path, Kind::FetchAbandoned)),
        }
    }
}

/// Since when one who waits has seen nothing arrive, of one part after another.
#[derive(Debug, Default)]
pub struct Silence(Option<((u64, u32), Instant)>);

impl Silence {
    /// How long a part, by its inode, has been at this beat.
    fn lasts(&mut self, inode: u64, beat: u32) -> Duration {
        let now = (inode, beat);
        let since = match self.0 {
            Some((heard, since)) if heard == now => since,
            _ => Instant::now(),
        };
        self.0 = Some((now, since));
        since.elapsed()
    }
}

/// A file on its way, and for how long nothing of it may arrive.
#[derive(Debug, Clone)]
pub struct Arriving {
    /// Its map.
    pub arrival: Arc<Arrival>,
    /// The longest silence.
    pub patience: Duration,
}
