//! What a device lends, given back when dropped: its primary context, streams, events, memory.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::driver::{Driver, call};
use super::library::{Address, DeviceId, Handle};
use crate::error::{Error, Kind, Result};

/// `CU_STREAM_NON_BLOCKING`: independent of the default stream, on which PyTorch may be at work.
const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING`: whoever waits sleeps instead of spinning.
const EVENT_FLAGS: c_uint = 1 | 2;
/// `CU_MEMHOSTALLOC_PORTABLE`: pinned for every context, since one slot feeds several devices.
const HOST_PORTABLE: c_uint = 1;
/// `CU_POINTER_ATTRIBUTE_MEMORY_TYPE` and `CU_MEMORYTYPE_DEVICE`.
const MEMORY_TYPE: c_int = 2;
const MEMORY_TYPE_DEVICE: c_uint = 2;
/// Longer than any address on the PCI bus, with its zero.
const PCI_ADDRESS_BYTES: usize = 32;
/// `CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL`.
const DEVICE_ORDINAL: c_int = 9;

/// A device's primary context: the one that PyTorch uses too.
#[derive(Debug)]
pub struct Context {
    driver: Arc<Driver>,
    device: DeviceId,
    ordinal: u32,
    handle: Handle,
}

// SAFETY: a context may be made current on any thread, on several at once (CUDA 4.0 and later).
unsafe impl Send for Context {}
// SAFETY: as above; nothing here changes after construction.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of a device. Errors: `DeviceUnknown`, `DriverCall`.
    pub fn retain(driver: &Arc<Driver>, ordinal: u32) -> Result<Arc<Self>> {
        let devices = driver.device_count()?;
        if ordinal >= devices {
            return Err(Error::new(driver.path(), Kind::DeviceUnknown { ordinal, devices }));
        }
        let mut device: DeviceId = 0;
        let mut handle = ptr::null_mut();
        // SAFETY: the places for the results are ours; the ordinal was checked above.
        unsafe {
            call!(driver, cuDeviceGet(&mut device, ordinal as c_int))?;
            call!(driver, cuDevicePrimaryCtxRetain(&mut handle, device))?;
        }
        Ok(Arc::new(Self { driver: Arc::clone(driver), device, ordinal, handle }))
    }

    /// Where the device is on the PCI bus, as the driver writes it ("0000:3B:00.0").
    pub fn pci_address(&self) -> Result<String> {
        let mut text: [c_char; PCI_ADDRESS_BYTES] = [0; PCI_ADDRESS_BYTES];
        let capacity = PCI_ADDRESS_BYTES as c_int;
        // SAFETY: the place for the result is ours and as long as said.
        unsafe {
            call!(self.driver, cuDeviceGetPCIBusId(text.as_mut_ptr(), capacity, self.device))
        }?;
        let bytes: Vec<u8> = text.iter().map(|&byte| byte as u8).take_while(|&b| b != 0).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Makes the calling thread's calls go to this device.
    pub fn make_current(&self) -> Result<()> {
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { call!(self.driver, cuCtxSetCurrent(self.handle)) }
    }

    /// Waits for all that was ever asked of the device in this context.
    pub fn synchronize(&self) -> Result<()> {
        self.make_current()?;
        // SAFETY: it takes no arguments.
        unsafe { call!(self.driver, cuCtxSynchronize()) }
    }

    /// Fails with `DeviceAddress` unless the first and the last byte are memory of this device.
    pub fn check_range(&self, address: Address, size_bytes: u64) -> Result<()> {
        self.make_current()?;
        let last = address.saturating_add(size_bytes.saturating_sub(1));
        if self.owns(address)? && self.owns(last)? {
            return Ok(());
        }
        let kind = Kind::DeviceAddress { ordinal: self.ordinal, address, size_bytes };
        Err(Error::new(self.driver.path(), kind))
    }

    fn owns(&self, address: Address) -> Result<bool> {
        /// `CUDA_ERROR_INVALID_VALUE`: the driver does not know the address at all.
        const INVALID_VALUE: i32 = 1;
        let mut memory_type: c_uint = 0;
        let mut ordinal: c_int = -1;
        // SAFETY: both attributes are 32 bits, and the address is only looked up.
        let asked = unsafe {
            let place = (&raw mut memory_type).cast();
            call!(self.driver, cuPointerGetAttribute(place, MEMORY_TYPE, address)).and_then(|()| {
                let place = (&raw mut ordinal).cast();
                call!(self.driver, cuPointerGetAttribute(place, DEVICE_ORDINAL, address))
            })
        };
        match asked {
            Ok(()) => Ok(memory_type == MEMORY_TYPE_DEVICE && ordinal == self.ordinal as c_int),
            Err(Error { kind: Kind::DriverCall { status: INVALID_VALUE, .. }, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: one release for the one retain; streams, events and memory hold an `Arc` of
        // this value, so they are gone.
        let outcome = unsafe { call!(self.driver, cuDevicePrimaryCtxRelease_v2(self.device)) };
        self.driver.note(outcome);
    }
}

/// A queue of work on a device.
#[derive(Debug)]
pub struct Stream {
    context: Arc<Context>,
    handle: Handle,
}

// SAFETY: streams may be used from any thread in which their context is current.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver serialises what several threads queue.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream in the context, which becomes current.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        context.make_current()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the place for the result is ours.
        unsafe { call!(context.driver, cuStreamCreate(&mut handle, STREAM_NON_BLOCKING)) }?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    /// Queues a copy; the context must be current.
    ///
    /// # Safety
    /// Until the stream has got behind this copy, the source is alive and nobody writes to it, and
    /// the target is `size_bytes` of the device's memory that nobody else uses.
    pub unsafe fn copy(&self, target: Address, source: &Pinned, size_bytes: usize) -> Result<()> {
        assert!(size_bytes <= source.size_bytes);
        let driver = &self.context.driver;
        let start = source.start.as_ptr().cast::<c_void>().cast_const();
        // SAFETY: the source is as long as that (above); the caller answers for the rest.
        unsafe { call!(driver, cuMemcpyHtoDAsync_v2(target, start, size_bytes, self.handle)) }
    }

    /// Waits for all that was queued; the context must be current.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { call!(self.context.driver, cuStreamSynchronize(self.handle)) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let driver = &self.context.driver;
        driver.note(self.context.make_current());
        // SAFETY: nobody else has the handle. The driver lets queued work end by itself.
        driver.note(unsafe { call!(driver, cuStreamDestroy_v2(self.handle)) });
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    handle: Handle,
}

// SAFETY: events may be used from any thread in which their context is current.
unsafe impl Send for Event {}

impl Event {
    /// An event in the context, which becomes current. It counts as done until it is recorded.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        context.make_current()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the place for the result is ours.
        unsafe { call!(context.driver, cuEventCreate(&mut handle, EVENT_FLAGS)) }?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    /// Marks what a stream of the same, current context was asked for so far.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both live, and belong to one context.
        unsafe { call!(self.context.driver, cuEventRecord(self.handle, stream.handle)) }
    }

    /// Waits until the stream got to the mark, in its context, which becomes current.
    pub fn synchronize(&self) -> Result<()> {
        self.context.make_current()?;
        // SAFETY: the event lives as long as `self`.
        unsafe { call!(self.context.driver, cuEventSynchronize(self.handle)) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let driver = &self.context.driver;
        driver.note(self.context.make_current());
        // SAFETY: nobody else has the handle.
        driver.note(unsafe { call!(driver, cuEventDestroy_v2(self.handle)) });
    }
}

/// Memory of the host that no one swaps out, which copy engines read by themselves.
#[derive(Debug)]
pub struct Pinned {
    context: Arc<Context>,
    start: NonNull<u8>,
    size_bytes: usize,
}

// SAFETY: it is plain memory that this value owns.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Pins fresh memory in the context, which becomes current.
    pub fn new(context: &Arc<Context>, size_bytes: usize) -> Result<Self> {
        context.make_current()?;
        let mut start = ptr::null_mut();
        // SAFETY: the place for the result is ours.
        unsafe { call!(context.driver, cuMemHostAlloc(&mut start, size_bytes, HOST_PORTABLE)) }?;
        let start = NonNull::new(start.cast()).expect("a successful allocation is not null");
        Ok(Self { context: Arc::clone(context), start, size_bytes })
    }

    /// Its bytes.
    ///
    /// # Safety
    /// No copy from it is under way.
    pub unsafe fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the memory is ours alone, no copy reads it (the caller's promise), and the driver
        // made it readable and writable. Its bytes come from outside of Rust, which has to take
        // them for initialised whatever they are.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size_bytes) }
    }

    /// Leaves the memory pinned for ever: for when nobody can tell whether a copy reads it still.
    pub fn abandon(self) {
        mem::forget(self);
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let driver = &self.context.driver;
        driver.note(self.context.make_current());
        // SAFETY: the memory came from `cuMemHostAlloc`, and the ring drops it only when no copy
        // is under way.
        driver.note(unsafe { call!(driver, cuMemFreeHost(self.start.as_ptr().cast())) });
    }
}
