//! The one machine of a loaded library: devices, handles, planned faults, and counted misuse.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use crate::memory::Memory;
use crate::status::{INVALID_CONTEXT, INVALID_HANDLE, NOT_INITIALIZED, Status};
use crate::stream::{Copy, Schedule, Stream};

/// The machine. A library of C functions has no other place for what they share.
pub static MACHINE: LazyLock<Machine> = LazyLock::new(|| Machine(Mutex::new(State::new())));

pub struct Machine(Mutex<State>);

/// Streams, events and contexts as callers know them.
pub type Handle = usize;
/// Contexts are numbered from here by device, to be unlike any other handle.
const FIRST_CONTEXT: Handle = 0xC000_0000;

/// What an event stands for: a stream's copies up to a number; `None` before it is recorded.
pub struct Event {
    pub device: usize,
    pub recorded: Option<(Arc<Stream>, u64)>,
}

/// The next calls of a symbol, one of which fails.
pub struct CallFault {
    pub symbol: String,
    pub calls_left: u64,
    pub status: Status,
}

/// The next copies, one of which fails while it runs.
pub struct CopyFault {
    pub copies_left: u64,
    pub status: Status,
    pub sticky: bool,
}

/// A copy's failure that a context's next synchronising call reports.
#[derive(Clone, Copy)]
pub struct Failure {
    pub status: Status,
    pub sticky: bool,
}

pub struct State {
    pub devices: usize,
    pub schedule: Schedule,
    pub seed: u64,
    pub initialized: bool,
    pub retains: HashMap<usize, usize>,
    pub memory: Memory,
    pub streams: HashMap<Handle, Arc<Stream>>,
    /// Destroyed streams, which may still have copies to do.
    pub closed: Vec<Arc<Stream>>,
    pub events: HashMap<Handle, Event>,
    pub calls: HashMap<&'static str, u64>,
    pub call_fault: Option<CallFault>,
    pub copy_fault: Option<CopyFault>,
    pub failures: HashMap<usize, Failure>,
    pub misuses: Vec<String>,
    handles: Handle,
}

impl Machine {
    /// The machine for a call that cannot fail.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// The machine for a call of the driver API: counted, and failed if that was planned.
    pub fn enter(&self, symbol: &'static str) -> Result<MutexGuard<'_, State>, Status> {
        let mut state = self.lock();
        *state.calls.entry(symbol).or_default() += 1;
        if let Some(fault) = state.call_fault.as_mut().filter(|fault| fault.symbol == symbol) {
            fault.calls_left -= 1;
            if fault.calls_left == 0 {
                let status = fault.status;
                state.call_fault = None;
                return Err(status);
            }
        }
        if !state.initialized && symbol != "cuInit" && !symbol.starts_with("cuGetError") {
            return Err(state.misuse(NOT_INITIALIZED, format!("{symbol} before cuInit")));
        }
        Ok(state)
    }

    /// Does a copy, on its stream's thread.
    pub fn perform(&self, device: usize, copy: Copy) {
        let mut state = self.lock();
        if let Some(fault) = state.copy_fault.as_mut() {
            fault.copies_left -= 1;
            if fault.copies_left == 0 {
                let failure = Failure { status: fault.status, sticky: fault.sticky };
                state.copy_fault = None;
                state.failures.insert(device, failure);
            }
        }
        // A context that has failed does nothing more.
        if !state.failures.contains_key(&device) {
            // SAFETY: the source was pinned memory when the copy was queued, and the stand-in
            // gives no memory back to the system while copies are queued.
            unsafe { state.memory.write(copy.target, copy.source as *const u8, copy.size_bytes) };
        }
    }
}

impl State {
    fn new() -> Self {
        Self {
            devices: 1,
            schedule: Schedule::Eager,
            seed: 0,
            initialized: false,
            retains: HashMap::new(),
            memory: Memory::default(),
            streams: HashMap::new(),
            closed: Vec::new(),
            events: HashMap::new(),
            calls: HashMap::new(),
            call_fault: None,
            copy_fault: None,
            failures: HashMap::new(),
            misuses: Vec::new(),
            handles: 0,
        }
    }

    /// Notes what no caller should do, and returns the status that tells it so.
    pub fn misuse(&mut self, status: Status, what: String) -> Status {
        self.misuses.push(what);
        status
    }

    /// A handle that was never given out.
    pub fn new_handle(&mut self) -> Handle {
        self.handles += 1;
        self.handles
    }

    /// The handle of a device's primary context.
    pub fn context(device: usize) -> Handle {
        FIRST_CONTEXT + device
    }

    /// The device of a retained context.
    pub fn device_of(&self, context: Handle) -> Option<usize> {
        let device = context.checked_sub(FIRST_CONTEXT)?;
        self.retains.get(&device).filter(|&&retains| retains > 0).map(|_| device)
    }

    /// The device of the caller's current context, which `symbol` needs.
    pub fn current(&mut self, context: Handle, symbol: &str) -> Result<usize, Status> {
        match self.device_of(context) {
            Some(device) => Ok(device),
            None => Err(self.misuse(INVALID_CONTEXT, format!("{symbol} without a context"))),
        }
    }

    /// A living stream of the device whose context is current.
    pub fn stream(
        &mut self,
        stream: Handle,
        device: usize,
        symbol: &str,
    ) -> Result<Arc<Stream>, Status> {
        match self.streams.get(&stream) {
            Some(found) if found.device == device => Ok(Arc::clone(found)),
            Some(_) => Err(self.misuse(INVALID_HANDLE, format!("{symbol} in another context"))),
            None => Err(self.misuse(INVALID_HANDLE, format!("{symbol} on a dead stream"))),
        }
    }

    /// The failure of a device, told once unless it is sticky.
    pub fn take_failure(&mut self, device: usize) -> Result<(), Status> {
        match self.failures.get(&device).copied() {
            Some(failure) => {
                if !failure.sticky {
                    self.failures.remove(&device);
                }
                Err(failure.status)
            }
            None => Ok(()),
        }
    }

    /// Whether a copy of any stream, closed ones included, still touches the bytes.
    pub fn is_pending(&self, start: u64, size_bytes: usize) -> bool {
        self.all_streams().any(|stream| stream.is_pending(start, size_bytes))
    }

    /// Living and closed streams.
    pub fn all_streams(&self) -> impl Iterator<Item = &Arc<Stream>> {
        self.streams.values().chain(&self.closed)
    }
}
