//! A ring of pinned slots: the bounded buffer between those who read and those who copy.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex};

use super::context::{Context, Event, Pinned, Stream};
use super::library::Address;
use crate::error::Result;

/// How many slots a ring has, and how long each is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// At least 1; those beyond the number of readers are what copies may lag behind.
    pub slots: usize,
    /// At least a page, a power of two.
    pub slot_bytes: usize,
}

/// 64 MiB in all: enough to hide a copy engine's latency, and the most that a load may cost beyond
/// the checkpoint's own pages. 8 MiB are what one `madvise` brings in (`populate::PIECE_BYTES`).
pub const DEFAULT_SHAPE: Shape = Shape { slots: 8, slot_bytes: 8 << 20 };

/// When a slot may be filled again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reuse {
    /// When the events behind all copies from it are done.
    AfterEvents,
    /// At once, which is wrong: tests show with it that they would see a lost wait.
    #[cfg(test)]
    Unsynchronised,
}

/// Pinned memory, and a mark for each lane that says when the lane's copies from it are done.
#[derive(Debug)]
pub struct Slot {
    events: Vec<Event>,
    queued: Vec<bool>,
    holds_bytes: u64,
    memory: Pinned,
}

impl Slot {
    /// The memory, for whoever fills it.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `Ring::next` hands a slot out when its copies are done (but for the test that
        // breaks just this on purpose), and to one thread at a time.
        unsafe { self.memory.bytes() }
    }

    /// Queues a copy of the first `size_bytes` on a lane's stream, whose context is current.
    ///
    /// # Safety
    /// Until the stream is synchronised or the ring hands the slot out again, nobody writes to its
    /// bytes, and the target is `size_bytes` of the lane's device memory that nobody else uses.
    pub unsafe fn send(
        &mut self,
        lane: usize,
        stream: &Stream,
        target: Address,
        size_bytes: usize,
    ) -> Result<()> {
        // SAFETY: the slot is not filled, nor its memory freed, before the event recorded here is
        // done; if recording fails, all streams are synchronised before anything is handed out or
        // freed (`Pipeline::copy`). The caller answers for the bytes until then, and the target.
        unsafe { stream.copy(target, &self.memory, size_bytes) }?;
        self.queued[lane] = true;
        self.events[lane].record(stream)
    }

    /// Says how many bytes of the load the slot holds from now on.
    pub fn hold(&mut self, size_bytes: u64) {
        self.holds_bytes = size_bytes;
    }

    /// Waits for its copies; returns the bytes that have so arrived.
    fn wait(&mut self) -> Result<u64> {
        for (event, queued) in self.events.iter().zip(&mut self.queued) {
            if *queued {
                event.synchronize()?;
                *queued = false;
            }
        }
        Ok(mem::take(&mut self.holds_bytes))
    }
}

/// Slots in the order in which their copies were queued.
#[derive(Debug)]
pub struct Ring {
    slots: Vec<Mutex<Slot>>,
    order: Mutex<VecDeque<usize>>,
    shape: Shape,
    pub(super) reuse: Reuse,
}

impl Ring {
    /// Pins all slots, once, for copies to each of the contexts (at least one).
    pub fn new(contexts: &[Arc<Context>], shape: Shape) -> Result<Self> {
        assert!(shape.slots > 0 && shape.slot_bytes.is_power_of_two());
        let slot = |_| {
            let events = contexts.iter().map(Event::new).collect::<Result<Vec<_>>>()?;
            let memory = Pinned::new(&contexts[0], shape.slot_bytes)?;
            let queued = vec![false; contexts.len()];
            Ok(Mutex::new(Slot { events, queued, holds_bytes: 0, memory }))
        };
        let slots = (0..shape.slots).map(slot).collect::<Result<Vec<_>>>()?;
        let order = Mutex::new((0..shape.slots).collect());
        Ok(Self { slots, order, shape, reuse: Reuse::AfterEvents })
    }

    /// Its slots.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Hands the oldest slot to `fill` once its copies are done. Returns the bytes that have so
    /// arrived, those that the slot held before.
    ///
    /// At most as many threads as there are slots may be in here: each holds one, so one is left.
    pub fn next(&self, fill: impl FnOnce(&mut Slot) -> Result<()>) -> Result<u64> {
        let order = || self.order.lock().expect("no holder of this lock panics");
        let number = order().pop_front().expect("there are as many slots as threads");
        let mut slot = self.slots[number].lock().expect("who panics with a slot ends the load");
        let arrived = match self.reuse {
            Reuse::AfterEvents => slot.wait(),
            #[cfg(test)]
            Reuse::Unsynchronised => Ok(mem::take(&mut slot.holds_bytes)),
        };
        let outcome = arrived.and_then(|arrived| fill(&mut slot).map(|()| arrived));
        drop(slot);
        order().push_back(number);
        outcome
    }

    /// Forgets what the slots hold, after all streams were synchronised; returns those bytes.
    pub fn empty(&mut self) -> u64 {
        let mut bytes = 0;
        for slot in &mut self.slots {
            let slot = slot.get_mut().expect("who panics with a slot ends the load");
            slot.queued.fill(false);
            bytes += mem::take(&mut slot.holds_bytes);
        }
        bytes
    }

    /// Frees the slots; or leaves their memory pinned if a copy may still be under way.
    pub fn release(&mut self, settled: bool) {
        for slot in self.slots.drain(..) {
            let slot = slot.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
            if !settled {
                slot.memory.abandon();
            }
        }
    }
}
