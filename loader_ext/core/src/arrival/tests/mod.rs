mod names;

use std::fs;
use std::ops::Range;
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::head::{MAX_FILE_BYTES, parse};
use super::waiting::WAIT_SLICE;
use super::*;

const FOREVER: Duration = Duration::from_secs(60);

fn subject(chunks: u64) -> Subject {
    Subject { file_bytes: chunks * CHUNK_BYTES - 5, identity: [7; 32] }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    (folder, path)
}

fn write(path: &Path, subject: Subject) -> Arrival {
    Arrival::write(path, subject).unwrap().0
}

fn wait(arrival: &Arrival, chunks: Range<usize>, patience: Duration) -> Result<()> {
    arrival.wait(chunks, patience, &mut || Ok(()))
}

#[test]
fn what_arrived_is_seen_by_others_and_kept() {
    let (_folder, path) = folder();
    let writer = write(&path, subject(130));
    let watcher = Arrival::watch(&path).unwrap();
    assert_eq!(watcher.subject(), subject(130));
    for chunk in [0, 63, 64, 129] {
        assert!(!watcher.has(chunk));
        writer.arrived(chunk, chunk as u128 + (1 << 100));
        assert!(watcher.has(chunk));
        assert_eq!(watcher.digest(chunk), chunk as u128 + (1 << 100));
    }
    drop(writer);
    let again = write(&path, subject(130));
    assert_eq!((0..130).filter(|chunk| again.has(*chunk)).collect::<Vec<_>>(), [0, 63, 64, 129]);
    again.lost(63);
    assert!(!watcher.has(63));
    assert!(!watcher.is_complete());
    again.complete();
    assert!(watcher.is_complete());
}

#[test]
fn that_all_chunks_are_there_is_not_that_the_file_is_complete() {
    let (_folder, path) = folder();
    let writer = write(&path, subject(1));
    let watcher = Arrival::watch(&path).unwrap();
    writer.arrived(0, 9);
    let patience = Duration::from_millis(50);
    wait(&watcher, 0..1, patience).unwrap();
    let waited = watcher.wait_complete(patience, &mut || Ok(())).unwrap_err();
    assert!(matches!(waited.kind, Kind::WaitTimeout));
    writer.complete();
    drop(writer);
    watcher.wait_complete(patience, &mut || Ok(())).unwrap();
}

#[test]
fn another_subject_begins_anew_and_leaves_waiters_alone() {
    let (_folder, path) = folder();
    write(&path, subject(3)).arrived(1, 9);
    let watcher = Arrival::watch(&path).unwrap();
    let mut seen = File::open(part_path(&path)).unwrap();
    let other = Subject { identity: [8; 32], ..subject(3) };
    let (writer, part) = Arrival::write(&path, other).unwrap();
    assert!(!writer.has(1));
    assert!(watcher.has(1), "the old map is still mapped, whole");
    part.write_all_at(b"others", 0).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut seen, &mut bytes).unwrap();
    assert_eq!(bytes, b"", "and its part is not written by another fetch");
    assert!(watcher.open(&path).unwrap().is_none(), "nor found under the name any more");
}

#[test]
fn a_part_that_was_removed_takes_its_map_along() {
    let (_folder, path) = folder();
    write(&path, subject(3)).arrived(1, 9);
    let watcher = Arrival::watch(&path).unwrap();
    fs::remove_file(part_path(&path)).unwrap();
    let writer = write(&path, subject(3));
    assert!(!writer.has(1));
    writer.arrived(0, 1);
    assert!(!watcher.has(0), "who has the old part open must not believe the new map");
}

#[test]
fn there_is_one_writer() {
    let (_folder, path) = folder();
    let writer = write(&path, subject(1));
    let refused = Arrival::write(&path, subject(1)).unwrap_err();
    assert_eq!(refused.kind, Kind::FetchBusy);
    drop(writer);
    write(&path, subject(1));
}

#[test]
fn a_waiter_wakes_when_its_chunks_are_there() {
    let (_folder, path) = folder();
    let writer = write(&path, subject(4));
    let watcher = Arrival::watch(&path).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(&watcher, 1..3, FOREVER));
        writer.arrived(2, 1);
        writer.arrived(3, 1);
        assert!(!waiting.is_finished());
        writer.arrived(1, 1);
        assert_eq!(waiting.join().unwrap(), Ok(()));
    });
    assert_eq!(wait(&watcher, 0..1, Duration::ZERO).unwrap_err().kind, Kind::WaitTimeout);
}

#[test]
fn who_waits_can_stop_and_is_patient_while_anything_arrives() {
    let (_folder, path) = folder();
    let writer = write(&path, subject(4));
    let watcher = Arrival::watch(&path).unwrap();
    let stop = Error::new(&path, Kind::Cancelled);
    let stopped = watcher.wait(0..1, FOREVER, &mut || Err(stop.clone()));
    assert_eq!(stopped, Err(stop));
    // Each look at the watch is an arrival: however short, patience does not end before chunk 0.
    let mut coming = vec![0, 3, 2, 1];
    let outcome = watcher.wait(0..1, WAIT_SLICE * 2, &mut || {
        writer.arrived(coming.pop().unwrap(), 1);
        Ok(())
    });
    assert_eq!(outcome, Ok(()));
    assert!(coming.is_empty());
}

#[test]
fn the_silence_of_one_part_is_not_that_of_the_next() {
    let (_one, first) = folder();
    let (_two, second) = folder();
    let _writers = (write(&first, subject(1)), write(&second, subject(1)));
    let patience = WAIT_SLICE * 3 / 2;
    let mut silence = Silence::default();
    let mut wait_once =
        |path: &Path| Arrival::watch(path).unwrap().wait_briefly(0..1, patience, &mut silence);
    assert_eq!(wait_once(&first), Ok(false));
    assert_eq!(wait_once(&first), Ok(false));
    assert_eq!(wait_once(&second), Ok(false), "both are at beat 0, but this one was not heard yet");
}

#[test]
fn a_waiter_is_told_when_the_writer_is_gone() {
    let (_folder, path) = folder();
    let writer = write(&path, subject(2));
    writer.arrived(0, 1);
    let watcher = Arrival::watch(&path).unwrap();
    drop(writer);
    assert_eq!(wait(&watcher, 0..1, FOREVER), Ok(()));
    assert_eq!(wait(&watcher, 0..2, FOREVER).unwrap_err().kind, Kind::FetchAbandoned);
}

/// Makes a map one that another boot of the machine left, as after a loss of power.
fn age(path: &Path) {
    let map = OpenOptions::new().write(true).open(map_path(path)).unwrap();
    map.write_all_at(&[0xA5; BOOT_BYTES], BOOT_AT as u64).unwrap();
}

#[test]
fn the_bits_of_another_boot_are_claims_until_someone_vouches() {
    let (_folder, path) = folder();
    let writer = write(&path, subject(3));
    writer.arrived(0, 1);
    writer.arrived(1, 2);
    drop(writer);
    age(&path);
    let watcher = Arrival::watch(&path).unwrap();
    assert!(!watcher.has(0) && watcher.claims(0));
    assert_eq!(watcher.missing_bytes(), subject(3).file_bytes);
    assert_eq!(wait(&watcher, 0..1, FOREVER).unwrap_err().kind, Kind::FetchAbandoned);

    let writer = write(&path, subject(3));
    assert!(writer.claims(0) && writer.claims(1), "there is something to verify");
    assert!(!watcher.has(0), "who has it open only sees what was looked at");
    writer.lost(1);
    writer.arrived(0, 1);
    assert!(!watcher.has(0));
    writer.vouch();
    assert!(watcher.has(0) && !watcher.has(1) && !watcher.has(2));
    assert_eq!(wait(&watcher, 0..1, FOREVER), Ok(()));
}

#[test]
fn vouching_wakes_who_waits() {
    let (_folder, path) = folder();
    write(&path, subject(1)).arrived(0, 1);
    age(&path);
    let writer = write(&path, subject(1));
    let watcher = Arrival::watch(&path).unwrap();
    let mut looked = false;
    let outcome = watcher.wait(0..1, FOREVER, &mut || {
        looked = true;
        writer.vouch();
        Ok(())
    });
    assert_eq!(outcome, Ok(()));
    assert!(looked, "it had to wait");
}

#[test]
fn where_no_boot_is_known_only_a_complete_file_is_believed() {
    let (_folder, path) = folder();
    let mut writer = write(&path, subject(2));
    writer.boot = [0; BOOT_BYTES];
    writer.vouch();
    writer.arrived(0, 1);
    let mut watcher = Arrival::watch(&path).unwrap();
    watcher.boot = [0; BOOT_BYTES];
    assert!(!watcher.has(0) && writer.claims(0));
    assert_eq!(wait(&watcher, 0..1, Duration::ZERO).unwrap_err().kind, Kind::WaitTimeout);
    writer.complete();
    drop(writer);
    assert_eq!(wait(&watcher, 0..2, FOREVER), Ok(()));
}

#[test]
fn this_boot_has_a_name_of_its_own() {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let hex: String = boot_id().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, text.trim().replace('-', ""));
    assert_ne!(boot_id(), [0; BOOT_BYTES]);
}

#[test]
fn what_is_no_map_is_refused() {
    let (_folder, path) = folder();
    drop(write(&path, subject(2)));
    let map = map_path(&path);
    let sound = fs::read(&map).unwrap();
    for at in [0, 19, 24] {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x40;
        fs::write(&map, bytes).unwrap();
        assert_eq!(Arrival::watch(&path).unwrap_err().kind, Kind::ArrivalInvalid, "byte {at}");
    }
    for length in [0, 10, sound.len() - 1] {
        fs::write(&map, &sound[..length]).unwrap();
        assert_eq!(Arrival::watch(&path).unwrap_err().kind, Kind::ArrivalInvalid, "{length}");
    }
    // For a writer, it is one to be made anew.
    let writer = write(&path, subject(2));
    assert!(!writer.has(0));
}

#[test]
fn a_range_without_end_is_all_chunks_behind_its_begin() {
    for file_bytes in [MAX_FILE_BYTES, u64::MAX] {
        let subject = Subject { file_bytes, identity: [7; 32] };
        let chunks = subject.chunks();
        assert_eq!(subject.chunks_of(3 * CHUNK_BYTES, u64::MAX), 3..chunks);
        assert_eq!(subject.chunks_of(4 * CHUNK_BYTES - 1, u64::MAX), 3..chunks);
        assert_eq!(subject.chunks_of(file_bytes - 1, u64::MAX), chunks - 1..chunks);
        assert!(subject.chunks_of(u64::MAX, 0).len() <= 1);
        let (begin, length) = subject.chunk(chunks - 1);
        assert_eq!(begin + length, file_bytes);
        assert!(subject.word_at(chunks - 1) < subject.digest_at(0));
        assert_eq!(subject.digest_at(chunks - 1) + 16, subject.map_bytes());
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(head in proptest::collection::vec(any::<u8>(), 0..140), length: u64) {
        if let Some(found) = parse(&head, length) {
            prop_assert_eq!(found.subject.map_bytes() as u64, length);
        }
    }

    #[test]
    fn a_head_with_the_magic_never_overflows(file_bytes: u64, length: u64) {
        let mut head = MAGIC.to_vec();
        head.extend([0; 8]);
        head.extend(file_bytes.to_le_bytes());
        head.extend(CHUNK_BYTES.to_le_bytes());
        head.extend([0; 96]);
        let found = parse(&head, length);
        prop_assert!(found.is_none() || file_bytes <= MAX_FILE_BYTES);
    }
}
