use std::thread;

use proptest::prelude::*;

use super::*;

const FOREVER: Duration = Duration::from_secs(60);

fn subject(chunks: u64) -> Subject {
    Subject { file_bytes: chunks * CHUNK_BYTES - 5, identity: [7; 32] }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("map");
    (folder, path)
}

#[test]
fn what_arrived_is_seen_by_others_and_kept() {
    let (_folder, path) = folder();
    let writer = Arrival::write(&path, subject(130)).unwrap();
    let watcher = Arrival::watch(&path).unwrap();
    assert_eq!(watcher.subject(), subject(130));
    for chunk in [0, 63, 64, 129] {
        assert!(!watcher.has(chunk));
        writer.arrived(chunk, chunk as u128 + (1 << 100));
        assert!(watcher.has(chunk));
        assert_eq!(watcher.digest(chunk), chunk as u128 + (1 << 100));
    }
    drop(writer);
    let again = Arrival::write(&path, subject(130)).unwrap();
    assert_eq!((0..130).filter(|chunk| again.has(*chunk)).collect::<Vec<_>>(), [0, 63, 64, 129]);
    again.lost(63);
    assert!(!watcher.has(63));
    assert!(!watcher.is_complete());
    again.complete();
    assert!(watcher.is_complete());
}

#[test]
fn another_subject_begins_anew_and_leaves_waiters_alone() {
    let (_folder, path) = folder();
    Arrival::write(&path, subject(3)).unwrap().arrived(1, 9);
    let watcher = Arrival::watch(&path).unwrap();
    let other = Subject { identity: [8; 32], ..subject(3) };
    let writer = Arrival::write(&path, other).unwrap();
    assert!(!writer.has(1));
    assert!(watcher.has(1), "the old map is still mapped, whole");
}

#[test]
fn there_is_one_writer() {
    let (_folder, path) = folder();
    let writer = Arrival::write(&path, subject(1)).unwrap();
    let refused = Arrival::write(&path, subject(1)).unwrap_err();
    assert_eq!(refused.kind, Kind::FetchBusy);
    drop(writer);
    Arrival::write(&path, subject(1)).unwrap();
}

#[test]
fn a_waiter_wakes_when_its_chunks_are_there() {
    let (_folder, path) = folder();
    let writer = Arrival::write(&path, subject(4)).unwrap();
    let watcher = Arrival::watch(&path).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| watcher.wait(1..3, FOREVER));
        writer.arrived(2, 1);
        writer.arrived(3, 1);
        assert!(!waiting.is_finished());
        writer.arrived(1, 1);
        assert_eq!(waiting.join().unwrap(), Ok(()));
    });
    assert_eq!(watcher.wait(0..1, Duration::ZERO).unwrap_err().kind, Kind::WaitTimeout);
}

#[test]
fn a_waiter_is_told_when_the_writer_is_gone() {
    let (_folder, path) = folder();
    let writer = Arrival::write(&path, subject(2)).unwrap();
    writer.arrived(0, 1);
    let watcher = Arrival::watch(&path).unwrap();
    drop(writer);
    assert_eq!(watcher.wait(0..1, FOREVER), Ok(()));
    assert_eq!(watcher.wait(0..2, FOREVER).unwrap_err().kind, Kind::FetchAbandoned);
}

#[test]
fn what_is_no_map_is_refused() {
    let (_folder, path) = folder();
    drop(Arrival::write(&path, subject(2)).unwrap());
    let sound = fs::read(&path).unwrap();
    for at in [0, 17, 24] {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x40;
        fs::write(&path, bytes).unwrap();
        assert_eq!(Arrival::watch(&path).unwrap_err().kind, Kind::ArrivalInvalid, "byte {at}");
    }
    for length in [0, 10, sound.len() - 1] {
        fs::write(&path, &sound[..length]).unwrap();
        assert_eq!(Arrival::watch(&path).unwrap_err().kind, Kind::ArrivalInvalid, "{length}");
    }
    // For a writer, it is one to be made anew.
    let writer = Arrival::write(&path, subject(2)).unwrap();
    assert!(!writer.has(0));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(head in proptest::collection::vec(any::<u8>(), 0..80), length: u64) {
        if let Some(found) = parse(&head, length) {
            prop_assert_eq!(found.map_bytes() as u64, length);
        }
    }

    #[test]
    fn a_head_with_the_magic_never_overflows(file_bytes: u64, length: u64) {
        let mut head = MAGIC.to_vec();
        head.extend([0; 8]);
        head.extend(file_bytes.to_le_bytes());
        head.extend(CHUNK_BYTES.to_le_bytes());
        head.extend([0; 32]);
        let found = parse(&head, length);
        prop_assert!(found.is_none() || file_bytes <= MAX_FILE_BYTES);
    }
}
