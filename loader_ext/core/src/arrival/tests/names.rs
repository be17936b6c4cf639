//! Names: when a map and its part get them, lose them, and whose they are.

use super::*;

#[test]
fn a_map_with_a_name_is_a_whole_one() {
    let (folder, path) = folder();
    let made = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..200 {
                drop(write(&path, subject(2)));
                for name in [map_path(&path), part_path(&path)] {
                    fs::remove_file(name).unwrap();
                }
            }
            made.store(true, Ordering::Release);
        });
        while !made.load(Ordering::Acquire) {
            match Arrival::watch(&path) {
                Ok(watcher) => assert_eq!(watcher.subject(), subject(2)),
                Err(error) => assert_eq!(error.kind, Kind::NotFound),
            }
        }
    });
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn of_writers_that_begin_together_one_does() {
    let (folder, path) = folder();
    for _ in 0..50 {
        let start = Barrier::new(4);
        let begin = || {
            start.wait();
            Arrival::write(&path, subject(2))
        };
        let outcomes: Vec<_> = thread::scope(|scope| {
            let begun: Vec<_> = (0..4).map(|_| scope.spawn(begin)).collect();
            begun.into_iter().map(|begun| begun.join().unwrap()).collect()
        });
        let (mut writers, mut kinds) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            match outcome {
                Ok(writer) => writers.push(writer),
                Err(error) => kinds.push(error.kind),
            }
        }
        assert_eq!(kinds, vec![Kind::FetchBusy; 3]);
        let (writer, part) = writers.pop().unwrap();
        let named = fs::metadata(part_path(&path)).unwrap();
        assert_eq!((part.metadata().unwrap().ino(), writer.head.inode), (named.ino(), named.ino()));
        drop(writer);
        for name in [map_path(&path), part_path(&path)] {
            fs::remove_file(name).unwrap();
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn who_watches_before_the_part_is_made_finds_it() {
    let (_folder, path) = folder();
    let map = Arrival::make(&map_path(&path), subject(2)).unwrap().unwrap();
    let watcher = Arrival::watch(&path).unwrap();
    let (writer, part) = map.begin(&part_path(&path)).unwrap();
    part.set_len(subject(2).file_bytes).unwrap();
    writer.arrived(0, 1);
    wait(&watcher, 0..1, FOREVER).unwrap();
    let found = watcher.open(&path).unwrap().unwrap();
    assert_eq!(found.metadata().unwrap().ino(), part.metadata().unwrap().ino());
}

#[test]
fn the_map_of_a_writer_that_died_after_the_rename_is_swept() {
    let (folder, path) = folder();
    let (writer, part) = Arrival::write(&path, subject(1)).unwrap();
    part.set_len(subject(1).file_bytes).unwrap();
    writer.arrived(0, 1);
    Arrival::sweep(&path);
    fs::rename(part_path(&path), &path).unwrap();
    let watcher = Arrival::watch(&path).unwrap();
    Arrival::sweep(&path);
    assert!(map_path(&path).exists(), "its writer lives");
    drop(writer);
    Arrival::sweep(&path);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(watcher.is_complete());
    assert!(watcher.open(&path).unwrap().is_some(), "who waited finds the file");
    Arrival::sweep(&path);
}

#[test]
fn a_part_beside_a_file_of_another_is_kept() {
    let (folder, path) = folder();
    write(&path, subject(2)).arrived(1, 9);
    fs::write(&path, "of another").unwrap();
    Arrival::sweep(&path);
    fs::remove_file(&path).unwrap();
    assert!(write(&path, subject(2)).has(1));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_part_that_was_given_its_name_by_hand_is_not_taken_for_whole() {
    let (_folder, path) = folder();
    let (writer, part) = Arrival::write(&path, subject(2)).unwrap();
    part.set_len(subject(2).file_bytes).unwrap();
    writer.arrived(0, 1);
    drop(writer);
    fs::rename(part_path(&path), &path).unwrap();
    let watcher = Arrival::watch(&path).unwrap();
    Arrival::sweep(&path);
    assert!(!watcher.is_complete());
    assert_eq!(wait(&watcher, 1..2, FOREVER).unwrap_err().kind, Kind::FetchAbandoned);
    fs::rename(&path, part_path(&path)).unwrap();
    assert!(write(&path, subject(2)).has(0), "and goes on when it has its own again");
}

#[test]
fn a_name_that_leads_elsewhere_is_left_alone() {
    let (folder, path) = folder();
    drop(write(&path, subject(1)));
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    Arrival::sweep(&path);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn who_begins_when_another_is_just_done_is_told() {
    let (folder, path) = folder();
    fs::write(&path, "whole").unwrap();
    let error = Arrival::write(&path, subject(2)).unwrap_err();
    assert_eq!((error.kind, &*error.file), (Kind::DestinationExists, &*path));
    assert_eq!(fs::read(&path).unwrap(), b"whole");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_part_is_found_under_both_names() {
    let (_folder, path) = folder();
    let (_writer, part) = Arrival::write(&path, subject(1)).unwrap();
    let watcher = Arrival::watch(&path).unwrap();
    assert_eq!(watcher.open(&path).unwrap_err().kind, Kind::ArrivalInvalid, "too short");
    part.set_len(subject(1).file_bytes).unwrap();
    assert!(watcher.open(&path).unwrap().is_some());
    fs::rename(part_path(&path), &path).unwrap();
    assert!(watcher.open(&path).unwrap().is_some());
    fs::write(part_path(&path), "another").unwrap();
    assert!(watcher.open(&path).unwrap().is_some());
    fs::remove_file(&path).unwrap();
    assert!(watcher.open(&path).unwrap().is_none());
}

#[test]
fn a_part_that_got_the_number_of_an_older_one_is_not_taken_for_it() {
    let (folder, path) = folder();
    let (writer, part) = Arrival::write(&path, subject(3)).unwrap();
    part.set_len(subject(3).file_bytes).unwrap();
    writer.arrived(0, 9);
    drop(writer);
    let watcher = Arrival::watch(&path).unwrap();
    assert!(watcher.open(&path).unwrap().is_some());
    // What a file system does when it likes: the next part has the inode of the last one.
    let kept = folder.path().join("kept");
    fs::hard_link(part_path(&path), &kept).unwrap();
    let other = Subject { identity: [8; 32], ..subject(3) };
    let writer = write(&path, other);
    fs::rename(&kept, part_path(&path)).unwrap();
    assert!(watcher.has(0), "by the old map");
    assert!(watcher.open(&path).unwrap().is_none());
    drop(writer);
}
