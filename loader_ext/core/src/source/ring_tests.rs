use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread;

use super::*;

/// A ring, or none where a sandbox forbids it, which `loader_ext/tests` has its own tests of.
fn ring() -> Option<Ring> {
    Ring::new().map_err(|error| eprintln!("skipped: io_uring is refused here ({error})")).ok()
}

fn temporary(size_bytes: usize) -> (File, Vec<u8>) {
    let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let bytes: Vec<u8> = (0..size_bytes).map(|at| (at % 251) as u8 ^ (at >> 12) as u8).collect();
    file.write_all_at(&bytes, 0).unwrap();
    (file, bytes)
}

#[test]
fn more_requests_than_the_queue_holds_bring_every_byte_to_its_place() {
    let Some(mut ring) = ring() else { return };
    let (file, bytes) = temporary((2 * QUEUE_DEPTH + 3) * REQUEST_BYTES + 77);
    for (offset, size_bytes) in [(0, bytes.len()), (12_345, 5_000_000), (1, 1), (0, 0)] {
        let mut found = vec![0; size_bytes];
        assert_eq!(ring.read(&file, offset as u64, &mut found).unwrap(), size_bytes);
        assert!(found == bytes[offset..offset + size_bytes], "{offset} {size_bytes}");
    }
}

#[test]
fn the_files_end_is_told() {
    let Some(mut ring) = ring() else { return };
    for size_bytes in [0, 1, 4096, 5000, REQUEST_BYTES, 3 * REQUEST_BYTES + 5000] {
        let (file, bytes) = temporary(size_bytes);
        let mut found = vec![0; 5 * REQUEST_BYTES];
        assert_eq!(ring.read(&file, 0, &mut found).unwrap(), size_bytes);
        assert!(found[..size_bytes] == bytes);
    }
}

/// What a process has not mapped is a real file's range that the kernel fails to read.
#[test]
fn a_read_that_fails_is_its_error() {
    let Some(mut ring) = ring() else { return };
    let memory = File::open("/proc/self/mem").unwrap();
    let error = ring.read(&memory, 0, &mut vec![0; 3 * REQUEST_BYTES]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
}

/// The mutation: without the wait in `drop` the byte comes when nobody expects it any more.
#[test]
fn memory_is_not_given_back_before_the_kernel_is_done_with_it() {
    let Some(mut ring) = ring() else { return };
    let (reader, mut writer) = io::pipe().unwrap();
    let file = File::from(OwnedFd::from(reader));
    let (submitted, heard) = mpsc::channel();
    let reading = thread::spawn(move || {
        let mut target = [0];
        let mut flight = Flight::new(&mut ring.0, &mut target);
        flight.request(&file, 0, 0..1, 0);
        flight.ring.submit().unwrap();
        submitted.send(()).unwrap();
        drop(flight);
        target
    });
    heard.recv().unwrap();
    writer.write_all(&[7]).unwrap();
    assert_eq!(reading.join().unwrap(), [7]);
}

#[test]
fn a_request_that_was_never_submitted_is_not_waited_for() {
    let Some(mut ring) = ring() else { return };
    let (reader, _writer) = io::pipe().unwrap();
    let file = File::from(OwnedFd::from(reader));
    let mut target = [0];
    let mut flight = Flight::new(&mut ring.0, &mut target);
    flight.request(&file, 0, 0..1, 0);
    drop(flight);
}

#[test]
fn a_ring_that_failed_is_not_used_again() {
    let Ok(rings) = Rings::new() else { return };
    let (file, bytes) = temporary(9000);
    let memory = File::open("/proc/self/mem").unwrap();
    let mut found = vec![0; 9000];
    assert!(rings.read(&memory, 0, &mut found).is_err());
    assert!(rings.0.lock().unwrap().is_empty());
    for _ in 0..2 {
        assert_eq!(rings.read(&file, 0, &mut found).unwrap(), 9000);
        assert!(found == bytes);
        assert_eq!(rings.0.lock().unwrap().len(), 1);
    }
}
