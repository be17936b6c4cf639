//! What tests say to the stand-in and ask of it: exported functions beside the driver API.

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use crate::machine::{CallFault, CopyFault, MACHINE};
use crate::status::Status;
use crate::stream::Schedule;

/// The numbers that `fake_cuda_living` writes.
const KINDS: usize = 5;

/// Sets the devices, the schedule (0 eager, 1 lazy, 2 random) and the seed of streams made later.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_configure(devices: usize, schedule: c_int, seed: u64) {
    let mut state = MACHINE.lock();
    state.devices = devices;
    state.schedule = match schedule {
        0 => Schedule::Eager,
        1 => Schedule::Lazy,
        _ => Schedule::Random,
    };
    state.seed = seed;
}

/// Lets memory of the host pass for memory of whatever device is asked for.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_unify() {
    MACHINE.lock().memory.unified = true;
}

/// Makes the n-th call of a symbol from now on return a status; n counts from 1.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_fail_call(symbol: *const c_char, nth: u64, status: Status) {
    // SAFETY: the test passes a string that ends with a zero.
    let symbol = unsafe { CStr::from_ptr(symbol) }.to_string_lossy().into_owned();
    MACHINE.lock().call_fault = Some(CallFault { symbol, calls_left: nth, status });
}

/// Makes the n-th copy from now on fail while it runs; the next call that waits reports it, and
/// if `sticky` every later one.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_fail_copy(nth: u64, status: Status, sticky: bool) {
    MACHINE.lock().copy_fault = Some(CopyFault { copies_left: nth, status, sticky });
}

/// Gives all memory back to the system, at the end of a test; false if copies are still queued.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_forget() -> bool {
    let mut state = MACHINE.lock();
    let idle = state.all_streams().all(|stream| stream.is_idle());
    if idle {
        state.memory.forget();
    }
    idle
}

/// Calls of a symbol so far.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_calls(symbol: *const c_char) -> u64 {
    // SAFETY: the test passes a string that ends with a zero.
    let symbol = unsafe { CStr::from_ptr(symbol) }.to_string_lossy();
    MACHINE.lock().calls.get(&*symbol).copied().unwrap_or(0)
}

/// Writes what is alive: retained contexts, streams, events, device and pinned allocations.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_living(counts: *mut u64) {
    let state = MACHINE.lock();
    let (allocations, pinned) = state.memory.living();
    let found: [usize; KINDS] = [
        state.retains.values().sum(),
        state.streams.len(),
        state.events.len(),
        allocations,
        pinned,
    ];
    for (index, count) in found.into_iter().enumerate() {
        // SAFETY: the test has room for KINDS numbers.
        unsafe { ptr::write(counts.add(index), count as u64) };
    }
}

/// Counts misuse so far, writes to freed memory included, and describes the first of it.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_misuse(text: *mut c_char, capacity: usize) -> u64 {
    let state = MACHINE.lock();
    let late = state.memory.written_after_free();
    let first = match (state.misuses.first(), late) {
        (Some(first), _) => first.as_str(),
        (None, 0) => "",
        (None, _) => "freed memory was written to",
    };
    let length = first.len().min(capacity.saturating_sub(1));
    if capacity > 0 {
        // SAFETY: the test has room for `capacity` bytes; `length` and the zero are no more.
        unsafe {
            ptr::copy_nonoverlapping(first.as_ptr().cast(), text, length);
            ptr::write(text.add(length), 0);
        }
    }
    (state.misuses.len() + late) as u64
}
