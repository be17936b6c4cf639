//! Reads by io_uring(7): one thread keeps several requests in flight.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use io_uring::{IoUring, opcode, types};

use super::blocks::{Progress, progress};

/// Requests in flight of one reader. With the readers of a load (4 or more) that is more than any
/// disk of ours needs to be busy.
pub const QUEUE_DEPTH: usize = 8;
/// What one request reads: the depth times this is a piece of a load (`populate::PIECE_BYTES`).
pub const REQUEST_BYTES: usize = 1 << 20;
/// How often a request that the kernel has no room for at the moment is made again.
const MAX_TRIES: u32 = 16;

/// A queue of requests to the kernel, for one read at a time.
pub struct Ring(IoUring);

impl Ring {
    /// Errors: what io_uring_setup(2) says, `EPERM` where a sandbox forbids it.
    pub fn new() -> io::Result<Self> {
        // A child of this process would share the queues.
        IoUring::builder().dontfork().build(QUEUE_DEPTH as u32).map(Self)
    }

    /// Fills `into` from `offset` on; returns the bytes, fewer only where the file ends.
    ///
    /// When it returns, well or not, the kernel writes no more to `into`. After an error the ring
    /// may hold requests that were never made, and is not to be used again.
    pub fn read(&mut self, file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let size_bytes = into.len();
        let mut end = size_bytes;
        let mut flight = Flight::new(&mut self.0, into);
        let begins = (0..size_bytes).step_by(REQUEST_BYTES);
        let mut parts: Vec<Range<usize>> =
            begins.map(|begin| begin..size_bytes.min(begin + REQUEST_BYTES)).collect();
        let mut waiting: VecDeque<usize> = (0..parts.len()).collect();
        let mut tries = 0;
        loop {
            while flight.requests < QUEUE_DEPTH
                && let Some(number) = waiting.pop_front()
            {
                flight.request(file, offset, parts[number].clone(), number);
            }
            if flight.requests == 0 {
                return Ok(end);
            }
            flight.wait(&mut tries)?;
            while let Some((number, result)) = flight.answer() {
                let part = &mut parts[number];
                match result.map(|read_bytes| progress(part.len(), read_bytes)) {
                    Ok(Progress::Done) => {}
                    Ok(Progress::Short(bytes)) => {
                        part.start += bytes;
                        waiting.push_back(number);
                    }
                    Ok(Progress::Ended(bytes)) => end = end.min(part.start + bytes),
                    Err(error) if is_passing(&error) && tries < MAX_TRIES => {
                        tries += 1;
                        waiting.push_back(number);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// Whether the kernel would take the same request another time.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::EINTR))
}

/// Requests under way, and the memory that the kernel writes to meanwhile: nobody else has it
/// before this is dropped, which waits for all of them.
struct Flight<'a> {
    ring: &'a mut IoUring,
    requests: usize,
    start: *mut u8,
    size_bytes: usize,
    _target: PhantomData<&'a mut [u8]>,
}

impl<'a> Flight<'a> {
    fn new(ring: &'a mut IoUring, target: &'a mut [u8]) -> Self {
        let (start, size_bytes) = (target.as_mut_ptr(), target.len());
        Self { ring, requests: 0, start, size_bytes, _target: PhantomData }
    }

    /// Queues a read of `part` of the target.
    fn request(&mut self, file: &File, offset: u64, part: Range<usize>, number: usize) {
        assert!(part.start <= part.end && part.end <= self.size_bytes);
        let target = self.start.wrapping_add(part.start);
        let read = opcode::Read::new(types::Fd(file.as_raw_fd()), target, part.len() as u32)
            .offset(offset + part.start as u64)
            .build()
            .user_data(number as u64);
        // SAFETY: the kernel writes to `part` of the target (above) until it answers. That memory
        // is mutably borrowed as long as `self` lives, which hands it to nobody and, when it is
        // dropped, first waits for every answer. The descriptor is open now; the kernel takes a
        // reference when it is submitted, which `file` outlives or which never happens
        // (`Ring::read`: a ring that failed is dropped, and what it still queues with it).
        let pushed = unsafe { self.ring.submission().push(&read) };
        pushed.expect("the queue is as long as there are requests");
        self.requests += 1;
    }

    /// Submits what is queued and sleeps until something was answered, or a signal came.
    fn wait(&mut self, tries: &mut u32) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) if is_passing(&error) && *tries < MAX_TRIES => {
                *tries += 1;
                Ok(())
            }
            waited => waited.map(drop),
        }
    }

    /// The next answer: which request, and how many bytes it read.
    fn answer(&mut self) -> Option<(usize, io::Result<usize>)> {
        let answer = self.ring.completion().next()?;
        self.requests -= 1;
        let read = usize::try_from(answer.result());
        let result = read.map_err(|_| io::Error::from_raw_os_error(-answer.result()));
        Some((answer.user_data() as usize, result))
    }
}

impl Drop for Flight<'_> {
    /// Waits until the kernel is done with the target. It is asked by poll(2), which works even if
    /// it takes no more calls to the ring.
    fn drop(&mut self) {
        // The kernel never saw these, and will not: the queue is read by io_uring_enter(2) alone.
        let unseen = self.ring.submission().len();
        while self.requests > unseen {
            if self.answer().is_none() {
                let mut ring =
                    libc::pollfd { fd: self.ring.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one entry, alive during the call. Whatever it returns, the queue of
                // answers is looked at again: what was submitted is answered some time.
                unsafe { libc::poll(&raw mut ring, 1, -1) };
            }
        }
    }
}

/// Rings that are not in use, one for each reader in the end.
pub struct Rings(Mutex<Vec<Ring>>);

impl Rings {
    /// With the first one, so that a machine that refuses them says so now.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Mutex::new(vec![Ring::new()?])))
    }

    /// [`Ring::read`] by a ring of its own.
    pub fn read(&self, file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let idle = || self.0.lock().expect("no holder of this lock panics");
        let kept = idle().pop();
        let mut ring = kept.map_or_else(Ring::new, Ok)?;
        let read = ring.read(file, offset, into)?;
        idle().push(ring);
        Ok(read)
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
