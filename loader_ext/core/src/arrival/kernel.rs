//! What an arrival map needs of the kernel: locks that end with their process, a sleep that another
//! process ends, and room on the disk.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::head::BOOT_BYTES;
use crate::error::{Error, Result};

/// Where the kernel says which boot of the machine this is (random(4)), as a UUID.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What no other boot of any machine has; zeros where a sandbox hides it.
pub fn boot_id() -> [u8; BOOT_BYTES] {
    let text = fs::read_to_string(BOOT_ID).unwrap_or_default();
    let digits = text.trim().replace('-', "");
    u128::from_str_radix(&digits, 16).unwrap_or_default().to_be_bytes()
}

/// Gives a file its length and all its room on the disk, or leaves it as it was.
///
/// So a full disk is found before anything is fetched; and in a mapped file, where a page without
/// room would be a SIGBUS, before it is mapped. Errors: `Io`.
pub fn reserve(file: &File, path: &Path, file_bytes: u64) -> Result<()> {
    let failed = |action, error: &io::Error| Error::io(path, action, error);
    let before = file.metadata().map_err(|error| failed("stat", &error))?.len();
    if file_bytes > 0 {
        let mut code = libc::EINTR;
        while code == libc::EINTR {
            // SAFETY: a call on an open descriptor.
            code = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, file_bytes.cast_signed()) };
        }
        if code != 0 {
            // What it got before it failed would keep the disk full.
            file.set_len(before).map_err(|error| failed("truncate", &error))?;
            return Err(failed("reserve room", &io::Error::from_raw_os_error(code)));
        }
    }
    file.set_len(file_bytes).map_err(|error| failed("truncate", &error))
}

/// Locks for writing, for as long as the file is open: a lock of the open file description
/// (`F_OFD_SETLK`, fcntl(2)), which the kernel takes back when its process is gone.
pub fn lock(file: &File) -> bool {
    control_lock(file, libc::F_OFD_SETLK, libc::F_WRLCK).is_some()
}

/// Takes the lock back.
pub fn unlock(file: &File) {
    control_lock(file, libc::F_OFD_SETLK, libc::F_UNLCK);
}

/// Whether someone else has it locked for writing.
pub fn is_locked(file: &File) -> bool {
    let found = control_lock(file, libc::F_OFD_GETLK, libc::F_RDLCK);
    // Where the kernel does not answer, a wait may be long but never ends too early.
    found.is_none_or(|lock| i32::from(lock.l_type) != libc::F_UNLCK)
}

fn control_lock(file: &File, command: i32, kind: i32) -> Option<libc::flock> {
    // SAFETY: all zeros are a lock of the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    // SAFETY: a call on an open descriptor, with a lock that outlives it.
    let code = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    (code == 0).then_some(lock)
}

/// Sleeps until the word is not what was expected or its waker calls, or the time is over.
pub fn futex_wait(word: &AtomicU32, expected: u32, timeout: Duration) {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().cast_signed(),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: the word and the timeout outlive the call. Not `FUTEX_PRIVATE_FLAG`: waiters are
    // other processes. Every return (woken, changed, timed out, interrupted) is looked at again.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, &timeout) };
}

/// Ends the sleep of all who wait on the word.
pub fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word outlives the call; waking nobody is fine.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
