//! Lets a process that dies of a mapped file say which one, and where.
//!
//! Reading a page that its file no longer has, or that its disk cannot read, is a SIGBUS; no
//! mapping can turn it into an error. What can be done is to name the file before the process dies:
//! the handler looks the address up in `/proc/self/maps` and leaves the rest to whoever handled the
//! signal before. It only makes system calls and works on its own stack, since it may interrupt
//! anything (signal-safety(7)).

use std::mem::{self, MaybeUninit};
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use crate::error::{Error, Result};

mod maps;
mod words;

use words::Words;

/// Who handled SIGBUS before. Written once, before our handler can run.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// From now on a SIGBUS of a mapped file is explained on standard error before it takes its course.
///
/// For the whole process, and once: a second call changes nothing. Errors: `Io`.
pub fn explain_bus_errors() -> Result<()> {
    let failed = || Error::last_os(Path::new(""), "sigaction");
    let mut before = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the place for the result is ours; without a new action nothing changes.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) } != 0 {
        return Err(failed());
    }
    // SAFETY: the call succeeded, so it was filled in.
    if BEFORE.set(unsafe { before.assume_init() }).is_err() {
        return Ok(());
    }
    // SAFETY: all zeros are an action without flags and an empty mask, but for the handler below.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_flags = libc::SA_SIGINFO;
    action.sa_sigaction = explain as *const () as libc::sighandler_t;
    // SAFETY: the action is complete, and its handler has the type that SA_SIGINFO asks for and
    // does only what a handler may.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(failed()),
    }
}

/// The handler.
extern "C" fn explain(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the address of the calling thread's errno, which lives as long as the thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above. The interrupted code may be about to read it.
    let interrupted = unsafe { *errno };
    // SAFETY: the kernel gives a handler with SA_SIGINFO a filled-in structure.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code == libc::BUS_ADRERR {
        explain_address(address);
    }
    if let Some(before) = BEFORE.get() {
        // SAFETY: it is the action that was in force before; sigaction(2) may be called here.
        unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
    }
    // What faulted does so again after this; what was sent by someone has to be sent again.
    if code <= 0 {
        // SAFETY: raise(3) may be called here; the signal is blocked until this returns.
        unsafe { libc::raise(signal) };
    }
    // SAFETY: as above.
    unsafe { *errno = interrupted };
}

fn explain_address(address: usize) {
    let mut words = Words::default();
    words.say(b"stoker_loader: ");
    let mut place = maps::Place::default();
    if !maps::find(address, &mut place) {
        words.say(b"a page of no file that is mapped now could not be read\n");
        words.write();
        return;
    }
    words.say(place.path());
    words.say(b": byte ");
    words.number(place.offset);
    match place.file_bytes() {
        Some(file_bytes) if file_bytes <= place.offset => {
            words.say(b" is mapped, and the file has only ");
            words.number(file_bytes);
            words.say(b" bytes now: it was truncated while it was open. ");
            words.say(b"Replace checkpoints by renaming, never in place");
        }
        Some(_) => {
            words.say(b" is mapped, and could not be read: its disk failed, or is full");
        }
        None => words.say(b" is mapped, and could not be read: the file is gone from there"),
    }
    words.say(b". The process ends with SIGBUS.\n");
    words.write();
}
