//! The driver: its functions, with every failure as a named error.

use std::ffi::{CStr, c_char, c_int};
use std::path::Path;
use std::ptr;
use std::sync::Mutex;

use super::library::{Functions, Handle, Library, SONAME, Status};
use crate::error::{Error, Kind, Result};

/// Calls a function of the driver by its name: `call!(driver, cuInit(0))` is a `Result<()>`.
macro_rules! call {
    ($driver:expr, $name:ident($($argument:expr),* $(,)?)) => {
        $driver.check(stringify!($name), ($driver.functions().$name)($($argument),*))
    };
}
pub(super) use call;

/// The loaded and initialised driver.
#[derive(Debug)]
pub struct Driver {
    library: Library,
    functions: Functions,
    /// The first failure of giving something back, which a `Drop` has nobody to tell.
    unheard: Mutex<Option<Error>>,
}

impl Driver {
    /// Loads and initialises the driver, from where the system has it unless a path is given.
    /// Errors: `DriverMissing`, `DriverOutdated`, `DriverCall` (also where there is no device).
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let library = Library::open(path.unwrap_or(Path::new(SONAME)))?;
        let functions = Functions::find(&library)?;
        let driver = Self { library, functions, unheard: Mutex::new(None) };
        // SAFETY: initialising takes the flags 0 and may be done again at any time.
        unsafe { call!(driver, cuInit(0)) }?;
        Ok(driver)
    }

    /// The library's path.
    pub fn path(&self) -> &Path {
        self.library.path()
    }

    /// The devices that this process may use.
    pub fn device_count(&self) -> Result<u32> {
        let mut count: c_int = 0;
        // SAFETY: the place for the result is ours.
        unsafe { call!(self, cuDeviceGetCount(&mut count)) }?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// Notes the context that is current on this thread, to be so again when the value goes.
    pub fn keep_current(&self) -> Result<Current<'_>> {
        let mut context = ptr::null_mut();
        // SAFETY: the place for the result is ours.
        unsafe { call!(self, cuCtxGetCurrent(&mut context)) }?;
        Ok(Current { driver: self, context })
    }

    pub(super) fn functions(&self) -> &Functions {
        &self.functions
    }

    /// A status as a result that names the call.
    pub(super) fn check(&self, call: &'static str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        let text = |function: unsafe extern "C" fn(Status, *mut *const c_char) -> Status| {
            let mut text = ptr::null();
            // SAFETY: the place for the result is ours.
            let found = unsafe { function(status, &mut text) };
            // SAFETY: a known status has a constant string of the driver's.
            (found == 0 && !text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
        };
        let name = text(self.functions.cuGetErrorName)
            .map_or_else(|| "a CUresult".to_owned(), |name| name.to_string_lossy().into_owned());
        let meaning = text(self.functions.cuGetErrorString).map_or_else(
            || "the driver has no words for it".to_owned(),
            |meaning| meaning.to_string_lossy().into_owned(),
        );
        let reason = format!("{name} ({status}): {meaning}");
        Err(Error::new(self.path(), Kind::DriverCall { call, status, reason }))
    }

    /// Keeps what a `Drop` cannot return until [`Driver::heard`] is called.
    pub(super) fn note(&self, outcome: Result<()>) {
        if let Err(error) = outcome {
            self.unheard.lock().expect("no holder of this lock panics").get_or_insert(error);
        }
    }

    /// The first failure of giving something back since this was last called.
    pub(super) fn heard(&self) -> Result<()> {
        let noted = self.unheard.lock().expect("no holder of this lock panics").take();
        noted.map_or(Ok(()), Err)
    }
}

/// The context that was current on a thread before this crate made others so.
#[must_use = "it restores the context when it is dropped"]
pub struct Current<'a> {
    driver: &'a Driver,
    context: Handle,
}

impl Current<'_> {
    /// Makes it current again, before others follow.
    pub fn restore(&self) -> Result<()> {
        // SAFETY: the context is null or was current a moment ago, on this thread: a handle is
        // not `Send`, so neither is this value.
        unsafe { call!(self.driver, cuCtxSetCurrent(self.context)) }
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        self.driver.note(self.restore());
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
