//! What an arrival map needs of the kernel: locks that end with their process, and a sleep that
//! another process ends.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

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
