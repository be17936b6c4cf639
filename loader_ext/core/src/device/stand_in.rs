//! Tests' hand on the stand-in for the driver (`fake_cuda/`): one machine for each value.

use std::env;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::mem;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use tempfile::TempDir;

use super::driver::Driver;
use super::library::{Handle, Library, Status};
use crate::error::Result;

/// When the stand-in does its copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    Eager = 0,
    Lazy = 1,
    Random = 2,
}

/// What is alive in the stand-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Living {
    pub contexts: u64,
    pub streams: u64,
    pub events: u64,
    pub allocations: u64,
    pub pinned: u64,
}

/// A machine of its own: the library is copied, and the linker takes another file for another one.
pub struct StandIn {
    library: Library,
    directory: TempDir,
}

impl StandIn {
    pub fn new(devices: usize, schedule: Schedule, seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("libcuda.so.1");
        fs::copy(built(), &path).unwrap();
        let stand_in = Self { library: Library::open(&path).unwrap(), directory };
        // SAFETY: the type is the one in `fake_cuda/src/control.rs`.
        let configure: extern "C" fn(usize, c_int, u64) =
            unsafe { stand_in.function(c"fake_cuda_configure") };
        configure(devices, schedule as c_int, seed);
        stand_in
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("libcuda.so.1")
    }

    pub fn driver(&self) -> Result<Arc<Driver>> {
        Driver::open(Some(&self.path())).map(Arc::new)
    }

    pub fn fail_call(&self, symbol: &str, nth: u64, status: Status) {
        let symbol = CString::new(symbol).unwrap();
        // SAFETY: as in `new`.
        let fail: extern "C" fn(*const c_char, u64, Status) =
            unsafe { self.function(c"fake_cuda_fail_call") };
        fail(symbol.as_ptr(), nth, status);
    }

    pub fn fail_copy(&self, nth: u64, status: Status, sticky: bool) {
        // SAFETY: as in `new`.
        let fail: extern "C" fn(u64, Status, bool) =
            unsafe { self.function(c"fake_cuda_fail_copy") };
        fail(nth, status, sticky);
    }

    pub fn calls(&self, symbol: &str) -> u64 {
        let symbol = CString::new(symbol).unwrap();
        // SAFETY: as in `new`.
        let calls: extern "C" fn(*const c_char) -> u64 =
            unsafe { self.function(c"fake_cuda_calls") };
        calls(symbol.as_ptr())
    }

    pub fn living(&self) -> Living {
        let mut living = Living::default();
        // SAFETY: as in `new`; it writes five numbers.
        let count: extern "C" fn(*mut Living) = unsafe { self.function(c"fake_cuda_living") };
        count(&mut living);
        living
    }

    /// How often the driver was misused, and how for the first time.
    pub fn misuse(&self) -> (u64, String) {
        let mut text = [0; 200];
        // SAFETY: as in `new`; it writes at most as many bytes as it is told.
        let misuse: extern "C" fn(*mut c_char, usize) -> u64 =
            unsafe { self.function(c"fake_cuda_misuse") };
        let count = misuse(text.as_mut_ptr(), text.len());
        // SAFETY: what it writes ends with a zero.
        (count, unsafe { CStr::from_ptr(text.as_ptr()) }.to_str().unwrap().to_owned())
    }

    /// Does what a program with a context of its own would: retains a device and makes it current.
    pub fn enter(&self, device: c_int) {
        let mut context: Handle = std::ptr::null_mut();
        // SAFETY: the types are those of the driver API.
        unsafe {
            let init: extern "C" fn(u32) -> Status = self.function(c"cuInit");
            let retain: extern "C" fn(*mut Handle, c_int) -> Status =
                self.function(c"cuDevicePrimaryCtxRetain");
            let set: extern "C" fn(Handle) -> Status = self.function(c"cuCtxSetCurrent");
            assert_eq!((init(0), retain(&mut context, device), set(context)), (0, 0, 0));
        }
    }

    /// The context that is current on this thread.
    pub fn current(&self) -> usize {
        let mut context: Handle = std::ptr::null_mut();
        // SAFETY: the type is that of the driver API.
        let get: extern "C" fn(*mut Handle) -> Status =
            unsafe { self.function(c"cuCtxGetCurrent") };
        assert_eq!(get(&mut context), 0);
        context as usize
    }

    /// Memory of the device whose context is current.
    pub fn allocate(&self, size_bytes: usize) -> u64 {
        let mut address = 0;
        // SAFETY: the type is that of the driver API.
        let allocate: extern "C" fn(*mut u64, usize) -> Status =
            unsafe { self.function(c"cuMemAlloc_v2") };
        assert_eq!(allocate(&mut address, size_bytes), 0);
        address
    }

    /// What device memory holds now; waits for nothing.
    pub fn read(&self, address: u64, size_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; size_bytes];
        // SAFETY: the type is that of the driver API; the place is long enough.
        let read: extern "C" fn(*mut c_void, u64, usize) -> Status =
            unsafe { self.function(c"cuMemcpyDtoH_v2") };
        assert_eq!(read(bytes.as_mut_ptr().cast(), address, size_bytes), 0);
        bytes
    }

    /// An exported function.
    ///
    /// # Safety
    /// `F` is the type of a function pointer, that of the function.
    pub unsafe fn function<F: Copy>(&self, name: &'static CStr) -> F {
        let address = self.library.symbol(name).unwrap();
        assert_eq!(size_of::<F>(), size_of::<NonNull<c_void>>());
        // SAFETY: both are as long as a pointer (above); the caller answers for the type.
        unsafe { mem::transmute_copy(&address) }
    }
}

/// The shared object, which cargo builds beside this test binary as a dev-dependency.
fn built() -> PathBuf {
    let binary = env::current_exe().unwrap();
    let path = binary.parent().map(|deps: &Path| deps.join("libstoker_fake_cuda.so"));
    path.filter(|path| path.exists()).expect("cargo builds the stand-in before the tests")
}
