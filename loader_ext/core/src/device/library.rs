//! The driver's shared library, and the functions in it that copying needs.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use crate::error::{Error, Kind, Result};

/// What the dynamic linker knows the driver by; it comes with the driver, not with a toolkit.
pub const SONAME: &str = "libcuda.so.1";

/// `CUresult`: 0 is success.
pub type Status = c_int;
/// `CUdevice`.
pub type DeviceId = c_int;
/// `CUcontext`, `CUstream`, `CUevent`: the driver's own pointers, never followed here.
pub type Handle = *mut c_void;
/// `CUdeviceptr`.
pub type Address = u64;

/// A loaded library. It is never unloaded: the driver keeps threads that run in it.
#[derive(Debug)]
pub struct Library {
    handle: NonNull<c_void>,
    path: PathBuf,
}

// SAFETY: the handle is an opaque number to the dynamic linker, whose calls may come from any
// thread (`dlsym(3)`: MT-Safe).
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// Loads a library by its path, or by its soname from where the linker looks.
    /// Errors: `DriverMissing`.
    pub fn open(path: &Path) -> Result<Self> {
        let missing = |reason| Error::new(path, Kind::DriverMissing { reason });
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| missing("its path has a zero byte".to_owned()))?;
        // SAFETY: the name ends with a zero. Loading runs the library's constructors: the caller
        // chose the library, and the default is the system's own.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        match NonNull::new(handle) {
            Some(handle) => Ok(Self { handle, path: path.to_path_buf() }),
            None => Err(missing(linker_message())),
        }
    }

    /// The path that was loaded.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The address of a function. Errors: `DriverOutdated`.
    pub fn symbol(&self, symbol: &'static CStr) -> Result<NonNull<c_void>> {
        // SAFETY: the handle is that of a loaded library, the name ends with a zero.
        let address = unsafe { libc::dlsym(self.handle.as_ptr(), symbol.as_ptr()) };
        NonNull::new(address).ok_or_else(|| {
            let symbol = symbol.to_str().expect("the names of functions are ASCII");
            Error::new(&self.path, Kind::DriverOutdated { symbol })
        })
    }
}

/// What the dynamic linker says about its last failure on this thread.
fn linker_message() -> String {
    // SAFETY: dlerror returns null, or a string that lives until this thread's next dl call.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return "the dynamic linker gives no reason".to_owned();
    }
    // SAFETY: as above; it is copied before any other call.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}

/// Defines the table of functions: each field has the name that the library exports.
macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        /// The driver's functions, under the names and versions that `cuda.h` links to.
        #[derive(Debug)]
        #[allow(non_snake_case, missing_docs, reason = "the names and meanings are the API's")]
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> Status,)*
        }

        impl Functions {
            /// Every function's name.
            #[cfg(test)]
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// Looks all functions up. Errors: `DriverOutdated` for the first that is not there.
            pub fn find(library: &Library) -> Result<Self> {
                Ok(Self {
                    $($name: {
                        const NAME: &CStr = match CStr::from_bytes_with_nul(
                            concat!(stringify!($name), "\0").as_bytes(),
                        ) {
                            Ok(name) => name,
                            Err(_) => unreachable!(),
                        };
                        let address = library.symbol(NAME)?;
                        // SAFETY: the library exports a function of this name, whose type is the
                        // declared one in every `cuda.h` since 4.0 (primary contexts: since 11.0).
                        unsafe {
                            mem::transmute::<
                                NonNull<c_void>,
                                unsafe extern "C" fn($($argument),*) -> Status,
                            >(address)
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    cuInit(c_uint);
    cuGetErrorName(Status, *mut *const c_char);
    cuGetErrorString(Status, *mut *const c_char);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut DeviceId, c_int);
    cuDeviceGetPCIBusId(*mut c_char, c_int, DeviceId);
    cuDevicePrimaryCtxRetain(*mut Handle, DeviceId);
    cuDevicePrimaryCtxRelease_v2(DeviceId);
    cuCtxGetCurrent(*mut Handle);
    cuCtxSetCurrent(Handle);
    cuCtxSynchronize();
    cuPointerGetAttribute(*mut c_void, c_int, Address);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemcpyHtoDAsync_v2(Address, *const c_void, usize, Handle);
    cuStreamCreate(*mut Handle, c_uint);
    cuStreamDestroy_v2(Handle);
    cuStreamSynchronize(Handle);
    cuEventCreate(*mut Handle, c_uint);
    cuEventRecord(Handle, Handle);
    cuEventSynchronize(Handle);
    cuEventDestroy_v2(Handle);
}
