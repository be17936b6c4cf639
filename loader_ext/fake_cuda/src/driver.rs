//! The exported part of the driver API, under the names and versions that `cuda.h` links to.
//!
//! Each function is `code(inner())`: what `?` returns early is the `CUresult`.

#![allow(non_snake_case, reason = "the names are the API's")]

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::Arc;

use crate::machine::{Event, Handle, MACHINE, State};
use crate::status::{INVALID_DEVICE, INVALID_HANDLE, INVALID_VALUE, SUCCESS, Status, describe};
use crate::stream::{Copy, Stream};

const MEMORY_TYPE: c_int = 2;
const MEMORY_TYPE_DEVICE: c_uint = 2;
const DEVICE_ORDINAL: c_int = 9;
// Only what the loader asks for: other flags are right for others, and a mistake here.
const HOST_PORTABLE: c_uint = 1;
const STREAM_NON_BLOCKING: c_uint = 1;
const EVENT_BLOCKING_SYNC: c_uint = 1;
const EVENT_DISABLE_TIMING: c_uint = 2;

thread_local! {
    /// The context that is current on this thread; 0 is none.
    static CURRENT: Cell<Handle> = const { Cell::new(0) };
}

fn code(outcome: Result<(), Status>) -> Status {
    outcome.err().unwrap_or(SUCCESS)
}

/// Gives a result to the caller.
fn give<T>(place: *mut T, value: T) -> Result<(), Status> {
    if place.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the API's callers pass a place for the result, as its documentation asks.
    unsafe { ptr::write(place, value) };
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: c_uint) -> Status {
    code((|| {
        let mut state = MACHINE.enter("cuInit")?;
        state.initialized = true;
        if flags == 0 { Ok(()) } else { Err(INVALID_VALUE) }
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(status: Status, name: *mut *const c_char) -> Status {
    code((|| {
        drop(MACHINE.enter("cuGetErrorName")?);
        give(name, describe(status).ok_or(INVALID_VALUE)?.0.as_ptr())
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(status: Status, text: *mut *const c_char) -> Status {
    code((|| {
        drop(MACHINE.enter("cuGetErrorString")?);
        give(text, describe(status).ok_or(INVALID_VALUE)?.1.as_ptr())
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    code((|| give(count, MACHINE.enter("cuDeviceGetCount")?.devices as c_int))())
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Status {
    code((|| {
        let state = MACHINE.enter("cuDeviceGet")?;
        let known = usize::try_from(ordinal).is_ok_and(|ordinal| ordinal < state.devices);
        if known { give(device, ordinal) } else { Err(INVALID_DEVICE) }
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetPCIBusId(text: *mut c_char, capacity: c_int, device: c_int) -> Status {
    code((|| {
        drop(MACHINE.enter("cuDeviceGetPCIBusId")?);
        // No machine has this domain, so nobody finds a NUMA node for it.
        let name = format!("FFFF:FF:{device:02X}.0\0");
        if (capacity as usize) < name.len() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller has room for `capacity` bytes, and those are no more.
        unsafe { ptr::copy_nonoverlapping(name.as_ptr().cast(), text, name.len()) };
        Ok(())
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) -> Status {
    code((|| {
        let mut state = MACHINE.enter("cuDevicePrimaryCtxRetain")?;
        let device = usize::try_from(device).map_err(|_| INVALID_DEVICE)?;
        if device >= state.devices {
            return Err(INVALID_DEVICE);
        }
        *state.retains.entry(device).or_default() += 1;
        give(context, State::context(device))
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Status {
    code((|| {
        let mut state = MACHINE.enter("cuDevicePrimaryCtxRelease_v2")?;
        match state.retains.get_mut(&(device as usize)) {
            Some(retains) if *retains > 0 => {
                *retains -= 1;
                let device = device as usize;
                let last = *retains == 0;
                let used = state.streams.values().any(|stream| stream.device == device)
                    || state.events.values().any(|event| event.device == device);
                if last && used {
                    state.misuse(SUCCESS, "a context died before its streams or events".into());
                }
                Ok(())
            }
            _ => Err(state.misuse(INVALID_DEVICE, "a context released too often".into())),
        }
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: Handle) -> Status {
    code((|| {
        let mut state = MACHINE.enter("cuCtxSetCurrent")?;
        if context != 0 {
            state.current(context, "cuCtxSetCurrent")?;
        }
        CURRENT.set(context);
        Ok(())
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(context: *mut Handle) -> Status {
    code((|| {
        drop(MACHINE.enter("cuCtxGetCurrent")?);
        give(context, CURRENT.get())
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> Status {
    code((|| {
        let mut state = MACHINE.enter("cuCtxSynchronize")?;
        let device = state.current(CURRENT.get(), "cuCtxSynchronize")?;
        let all: Vec<Arc<Stream>> =
            state.all_streams().filter(|stream| stream.device == device).cloned().collect();
        drop(state);
        all.iter().for_each(|stream| stream.wait(stream.last()));
        MACHINE.lock().take_failure(device)
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(address: *mut u64, size_bytes: usize) -> Status {
    code((|| {
        let mut state = MACHINE.enter("cuMemAlloc_v2")?;
        let device = state.current(CURRENT.get(), "cuMemAlloc_v2")?;
        give(address, state.memory.allocate(device, size_bytes))
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> Status {
    code(release("cuMemFree_v2", address, false))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(place: *mut *mut c_void, size_bytes: usize, flags: c_uint) -> Status {
    code((|| {
        let mut state = MACHINE.enter("cuMemHostAlloc")?;
        state.current(CURRENT.get(), "cuMemHostAlloc")?;
        if flags != HOST_PORTABLE {
            return Err(state.misuse(INVALID_VALUE, "memory that one device alone knows".into()));
        }
        give(place, state.memory.pin(size_bytes).cast())
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(start: *mut c_void) -> Status {
    code(release("cuMemFreeHost", start as u64, true))
}

fn release(symbol: &'static str, address: u64, pinned: bool) -> Result<(), Status> {
    let mut state = MACHINE.enter(symbol)?;
    state.current(CURRENT.get(), symbol)?;
    if state.is_pending(address, state.memory.size_bytes(address)) {
        // The real driver waits here; who relies on that has lost track of its copies.
        state.misuse(SUCCESS, format!("{symbol} while a copy is pending"));
    }
    if !state.memory.free(address, pinned) {
        return Err(state.misuse(INVALID_VALUE, format!("{symbol} of what is not allocated")));
    }
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn cuPointerGetAttribute(place: *mut c_void, attribute: c_int, address: u64) -> Status {
    code((|| {
        let state = MACHINE.enter("cuPointerGetAttribute")?;
        let device = match state.memory.device_at(address) {
            None if state.memory.unified => state.device_of(CURRENT.get()),
            found => found,
        };
        let device = device.ok_or(INVALID_VALUE)?;
        match attribute {
            MEMORY_TYPE => give(place.cast::<c_uint>(), MEMORY_TYPE_DEVICE),
            DEVICE_ORDINAL => give(place.cast::<c_int>(), device as c_int),
            _ => Err(INVALID_VALUE),
        }
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(
    target: u64,
    source: *const c_void,
    size_bytes: usize,
    stream: Handle,
) -> Status {
    code((|| {
        const SYMBOL: &str = "cuMemcpyHtoDAsync_v2";
        let mut state = MACHINE.enter(SYMBOL)?;
        let device = state.current(CURRENT.get(), SYMBOL)?;
        let stream = state.stream(stream, device, SYMBOL)?;
        if !state.memory.holds(target, size_bytes, Some(device)) {
            let what = format!("a copy of {size_bytes} bytes to {target:#x} leaves its allocation");
            return Err(state.misuse(INVALID_VALUE, what));
        }
        if !state.memory.holds(source as u64, size_bytes, None) {
            // The real driver copies such bytes twice, and not asynchronously.
            return Err(state.misuse(INVALID_VALUE, "a copy from memory that is not pinned".into()));
        }
        stream.push(Copy { target, source: source as u64, size_bytes });
        Ok(())
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(target: *mut c_void, source: u64, size_bytes: usize) -> Status {
    code((|| {
        let state = MACHINE.enter("cuMemcpyDtoH_v2")?;
        // It waits for no stream, as the real one waits for none that is non-blocking.
        // SAFETY: the caller has room for `size_bytes`, as the API asks.
        let read = unsafe { state.memory.read(target.cast(), source, size_bytes) };
        if read { Ok(()) } else { Err(INVALID_VALUE) }
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: *mut Handle, flags: c_uint) -> Status {
    code((|| {
        let mut state = MACHINE.enter("cuStreamCreate")?;
        let device = state.current(CURRENT.get(), "cuStreamCreate")?;
        if flags != STREAM_NON_BLOCKING {
            return Err(state.misuse(INVALID_VALUE, "a stream that waits for the default".into()));
        }
        let handle = state.new_handle();
        let seed = state.seed.wrapping_add(handle as u64);
        let fresh = Stream::start(device, state.schedule, seed);
        state.streams.insert(handle, fresh);
        give(stream, handle)
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: Handle) -> Status {
    code((|| {
        let mut state = MACHINE.enter("cuStreamDestroy_v2")?;
        let Some(found) = state.streams.remove(&stream) else {
            return Err(state.misuse(INVALID_HANDLE, "a stream destroyed twice".into()));
        };
        found.close();
        state.closed.push(found);
        Ok(())
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: Handle) -> Status {
    code((|| {
        let mut state = MACHINE.enter("cuStreamSynchronize")?;
        let device = state.current(CURRENT.get(), "cuStreamSynchronize")?;
        let found = state.stream(stream, device, "cuStreamSynchronize")?;
        drop(state);
        found.wait(found.last());
        MACHINE.lock().take_failure(device)
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: *mut Handle, flags: c_uint) -> Status {
    code((|| {
        let mut state = MACHINE.enter("cuEventCreate")?;
        let device = state.current(CURRENT.get(), "cuEventCreate")?;
        if flags != EVENT_BLOCKING_SYNC | EVENT_DISABLE_TIMING {
            return Err(state.misuse(INVALID_VALUE, "an event that spins, or takes times".into()));
        }
        let handle = state.new_handle();
        state.events.insert(handle, Event { device, recorded: None });
        give(event, handle)
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: Handle) -> Status {
    code((|| {
        let mut state = MACHINE.enter("cuEventDestroy_v2")?;
        match state.events.remove(&event) {
            Some(_) => Ok(()),
            None => Err(state.misuse(INVALID_HANDLE, "an event destroyed twice".into())),
        }
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> Status {
    code((|| {
        let mut state = MACHINE.enter("cuEventRecord")?;
        let device = state.current(CURRENT.get(), "cuEventRecord")?;
        let stream = state.stream(stream, device, "cuEventRecord")?;
        match state.events.get_mut(&event) {
            Some(found) if found.device == device => {
                let number = stream.last();
                found.recorded = Some((stream, number));
                Ok(())
            }
            _ => Err(state.misuse(INVALID_HANDLE, "an event recorded in another context".into())),
        }
    })())
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: Handle) -> Status {
    code((|| {
        let mut state = MACHINE.enter("cuEventSynchronize")?;
        state.current(CURRENT.get(), "cuEventSynchronize")?;
        let Some(found) = state.events.get(&event) else {
            return Err(state.misuse(INVALID_HANDLE, "a wait for a dead event".into()));
        };
        let (device, recorded) = (found.device, found.recorded.clone());
        drop(state);
        if let Some((stream, number)) = recorded {
            stream.wait(number);
        }
        MACHINE.lock().take_failure(device)
    })())
}
