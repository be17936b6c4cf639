//! The pipeline: readers fill slots, and two streams a device carry them away meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::context::{Context, Stream};
use super::driver::Driver;
use super::library::Address;
use super::numa::{self, Bound, Processors};
use super::ring::{Ring, Shape};
use crate::arrival::Silence;
use crate::error::Result;
use crate::pieces::{self, Step};
use crate::source::Source;

/// Two, so that one copy is queued behind the one that runs, and the engine never idles.
pub const STREAMS_PER_DEVICE: usize = 2;

/// A range of a source and the places that get it; for several devices it is read once.
pub struct Transfer<'a> {
    /// What is read.
    pub source: &'a dyn Source,
    /// The first byte.
    pub offset: u64,
    /// How many.
    pub size_bytes: u64,
    /// Where they go: a device by its place in the pipeline's list, and an address there.
    pub destinations: Vec<(usize, Address)>,
}

/// One device of a pipeline.
#[derive(Debug)]
struct Lane {
    context: Arc<Context>,
    streams: [Stream; STREAMS_PER_DEVICE],
}

/// What a slot carries at a time: never across a multiple of the slot's length in the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    transfer: usize,
    offset: u64,
    size_bytes: usize,
}

/// Devices with their streams, and the ring that feeds them. It may carry one load after another.
#[derive(Debug)]
pub struct Pipeline {
    ring: Ring,
    lanes: Vec<Lane>,
    /// Those next to the devices, where there is such a thing.
    processors: Option<Processors>,
    /// False if a device did not say that its copies have ended.
    settled: AtomicBool,
    driver: Arc<Driver>,
}

impl Pipeline {
    /// Retains the primary contexts of the devices (at least one) and pins the ring.
    ///
    /// The calling thread's current context is what it was afterwards, as for every call here.
    /// Errors: `DeviceUnknown`, `DriverCall`.
    pub fn new(driver: &Arc<Driver>, ordinals: &[u32], shape: Shape) -> Result<Self> {
        let _current = driver.keep_current()?;
        let contexts = ordinals.iter().map(|&ordinal| Context::retain(driver, ordinal));
        let contexts = contexts.collect::<Result<Vec<_>>>()?;
        let lane = |context: &Arc<Context>| {
            let streams = [Stream::new(context)?, Stream::new(context)?];
            Ok(Lane { context: Arc::clone(context), streams })
        };
        let lanes = contexts.iter().map(lane).collect::<Result<Vec<_>>>()?;
        let addresses = contexts.iter().map(|context| context.pci_address());
        let addresses = addresses.collect::<Result<Vec<_>>>()?;
        let processors = Processors::next_to(Path::new(numa::SYSFS), &addresses);
        // Memory belongs to the node of the thread that pins it.
        let _bound = Bound::to(processors.as_ref());
        let ring = Ring::new(&contexts, shape)?;
        let settled = AtomicBool::new(true);
        Ok(Self { ring, lanes, processors, settled, driver: Arc::clone(driver) })
    }

    /// Copies everything, or fails; returns the bytes that were read.
    ///
    /// When this returns, well or not, no copy is under way any more (unless a device refuses to
    /// say so, which is then the error). After an error the destinations hold anything. `watch`
    /// sees the bytes that have arrived everywhere and may stop it. Errors: `DeviceAddress` before
    /// anything is copied, `DriverCall`, those of the sources, and whatever `watch` returns.
    ///
    /// # Safety
    /// Each destination is `size_bytes` of memory that nobody else uses until this returns.
    pub unsafe fn copy(
        &mut self,
        transfers: &[Transfer<'_>],
        threads: usize,
        mut watch: impl FnMut(u64) -> Result<()>,
    ) -> Result<u64> {
        let driver = Arc::clone(&self.driver);
        let current = driver.keep_current()?;
        // Whoever watches may run anything, and asks for memory of what is current, too.
        let mut outside = |bytes| current.restore().and_then(|()| watch(bytes));
        // SAFETY: the caller's promise is passed on.
        let outcome = unsafe { self.carry(transfers, threads, &mut outside) };
        drop(current);
        let bytes = outcome?;
        driver.heard()?;
        watch(bytes)?;
        Ok(bytes)
    }

    /// Gives everything back. Errors: `DriverCall` if the driver refuses something.
    pub fn close(self) -> Result<()> {
        let driver = Arc::clone(&self.driver);
        drop(self);
        driver.heard()
    }

    /// # Safety
    /// As for [`Pipeline::copy`].
    unsafe fn carry(
        &mut self,
        transfers: &[Transfer<'_>],
        threads: usize,
        watch: impl FnMut(u64) -> Result<()>,
    ) -> Result<u64> {
        // No bytes are nowhere: PyTorch gives an empty tensor the address 0.
        for transfer in transfers.iter().filter(|transfer| transfer.size_bytes > 0) {
            for &(lane, address) in &transfer.destinations {
                self.lanes[lane].context.check_range(address, transfer.size_bytes)?;
            }
        }
        let Shape { slots, slot_bytes } = self.ring.shape();
        let chunks = chunks(transfers, slot_bytes);
        // Every stream has a slot to copy from while the readers fill theirs.
        let readers = slots.saturating_sub(STREAMS_PER_DEVICE).clamp(1, threads.max(1));
        let flight = Flight(self);
        let arrived = pieces::run(
            chunks.len(),
            readers,
            || (Bound::to(flight.0.processors.as_ref()), Silence::default()),
            |(_, silence), number| {
                let chunk = chunks[number];
                let transfer = &transfers[chunk.transfer];
                // Before it takes a slot: whoever waits for bytes must not hold up the others.
                if !transfer.source.is_ready(chunk.offset, chunk.size_bytes as u64, silence)? {
                    return Ok(Step::Again);
                }
                // SAFETY: the flight ends before this function does, so the caller's promise
                // holds as long as any copy runs.
                unsafe { flight.0.send(transfer, chunk, number) }.map(Step::Done)
            },
            watch,
        );
        let settled = flight.0.settle();
        drop(flight);
        let rest = self.ring.empty();
        let bytes = arrived? + rest;
        settled?;
        assert_eq!(bytes, transfers.iter().map(|transfer| transfer.size_bytes).sum::<u64>());
        Ok(bytes)
    }

    /// Reads a chunk into the next free slot and queues its copies; returns what has arrived.
    ///
    /// # Safety
    /// As for [`Pipeline::copy`], until the pipeline is settled.
    unsafe fn send(&self, transfer: &Transfer<'_>, chunk: Chunk, number: usize) -> Result<u64> {
        self.ring.next(|slot| {
            transfer.source.read(chunk.offset, &mut slot.bytes()[..chunk.size_bytes])?;
            slot.hold(chunk.size_bytes as u64);
            for &(lane, address) in &transfer.destinations {
                let Lane { context, streams } = &self.lanes[lane];
                context.make_current()?;
                let stream = &streams[number % STREAMS_PER_DEVICE];
                let target = address + (chunk.offset - transfer.offset);
                // SAFETY: the chunk lies within the transfer, so its target lies within the
                // destination that the caller answers for. The slot was filled above.
                unsafe { slot.send(lane, stream, target, chunk.size_bytes) }?;
            }
            Ok(())
        })
    }

    /// Waits until no device copies any more, even where one of them reports a failure.
    fn settle(&self) -> Result<()> {
        let mut outcome = Ok(());
        for Lane { context, streams } in &self.lanes {
            let waited = context
                .make_current()
                .and_then(|()| streams.iter().try_for_each(Stream::synchronize));
            if let Err(error) = waited {
                // A failure says nothing about the copies behind it: ask for all of the context.
                if context.synchronize().is_err() {
                    self.settled.store(false, Ordering::Relaxed);
                }
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let driver = Arc::clone(&self.driver);
        let current = driver.keep_current();
        self.ring.release(*self.settled.get_mut());
        self.lanes.clear();
        driver.note(current.map(drop));
    }
}

/// Copies under way: a reader that panics must not leave before they have ended.
struct Flight<'a>(&'a Pipeline);

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.driver.note(self.0.settle());
        }
    }
}

/// Cuts transfers into chunks.
fn chunks(transfers: &[Transfer<'_>], slot_bytes: usize) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for (number, transfer) in transfers.iter().enumerate() {
        let end = transfer.offset + transfer.size_bytes;
        let mut offset = transfer.offset;
        while offset < end {
            let boundary = (offset + 1).next_multiple_of(slot_bytes as u64);
            let size_bytes = (boundary.min(end) - offset) as usize;
            chunks.push(Chunk { transfer: number, offset, size_bytes });
            offset += size_bytes as u64;
        }
    }
    chunks
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
