use std::fs::{self, File};
use std::path::Path;
use std::slice;

use super::*;
use crate::error::Kind;
use crate::evict::evict;
use crate::mapping::HUGE_PAGE_BYTES;
use crate::residency::resident_bytes;

const FILE_BYTES: usize = 3 * PIECE_BYTES as usize + 4321;

fn mapped(path: &Path) -> Arc<Mapping> {
    let data: Vec<u8> = (0..FILE_BYTES).map(|index| (index % 251) as u8).collect();
    fs::write(path, data).unwrap();
    reopened(path)
}

fn reopened(path: &Path) -> Arc<Mapping> {
    let file = Arc::new(File::open(path).unwrap());
    Arc::new(Mapping::new(file, path, FILE_BYTES as u64).unwrap())
}

fn bytes(mapping: &Mapping) -> &[u8] {
    // SAFETY: the mapping is readable over its whole length and outlives the slice.
    unsafe { slice::from_raw_parts(mapping.address().as_ptr(), mapping.size_bytes()) }
}

/// What a kernel leads to that knows neither of the two.
fn unable() -> Advice {
    Advice { populate: AtomicBool::new(false), exactly: AtomicBool::new(false) }
}

#[test]
fn the_bytes_are_the_files_on_a_huge_boundary() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f");
    let mapping = mapped(&path);
    assert_eq!(mapping.address().as_ptr() as usize % HUGE_PAGE_BYTES, 0);
    let mut seen = Vec::new();
    let total = populate(&[Arc::clone(&mapping)], 3, |done| {
        seen.push(done);
        Ok(())
    });
    assert_eq!(total, Ok(FILE_BYTES as u64));
    assert!(seen.is_sorted());
    assert_eq!(seen.last(), Some(&(FILE_BYTES as u64)));
    assert_eq!(bytes(&mapping), fs::read(&path).unwrap());
}

#[test]
fn without_the_advice_pages_are_read_and_touched() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f");
    let mapping = mapped(&path);
    let advice = unable();
    let total = populate_with(&[Arc::clone(&mapping)], 2, PIECE_BYTES, &advice, |_| Ok(()));
    assert_eq!(total, Ok(FILE_BYTES as u64));
    let file = File::open(&path).unwrap();
    assert_eq!(resident_bytes(&file, &path, FILE_BYTES as u64), Ok(FILE_BYTES as u64));
    assert_eq!(bytes(&mapping), fs::read(&path).unwrap());
}

#[test]
fn pieces_of_any_length_and_small_pages_give_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f");
    let mapping = mapped(&path);
    mapping.advise_small_pages();
    for piece_bytes in [0, 100_000, u64::MAX >> 1] {
        let total = populate_in_pieces(&[Arc::clone(&mapping)], 2, piece_bytes, |_| Ok(()));
        assert_eq!(total, Ok(FILE_BYTES as u64));
    }
    assert_eq!(bytes(&mapping), fs::read(&path).unwrap());
}

#[test]
fn a_truncated_file_is_an_error_and_no_signal() {
    for advice in [Advice::default(), unable()] {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        let mapping = mapped(&path);
        File::options().write(true).open(&path).unwrap().set_len(PIECE_BYTES).unwrap();
        let outcome = populate_with(&[mapping], 2, PIECE_BYTES, &advice, |_| Ok(()));
        let kind = outcome.unwrap_err().kind;
        let (expected_bytes, found_bytes) = (FILE_BYTES as u64, PIECE_BYTES);
        assert_eq!(kind, Kind::FileChanged { expected_bytes, found_bytes });
    }
}

#[test]
fn the_watcher_stops_it() {
    let root = tempfile::tempdir().unwrap();
    let mapping = mapped(&root.path().join("f"));
    let error = Error::new(root.path(), Kind::Cancelled);
    assert_eq!(populate(&[mapping], 1, |_| Err(error.clone())), Err(error));
}

#[test]
fn what_is_resident_wants_processors_and_a_disk_a_full_queue() {
    let root = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = root.path().join("f");
    let mappings = [mapped(&path)];
    let cachestat = mappings[0].is_all_resident();
    drop(mappings);
    evict(&path).unwrap();
    let mappings = [reopened(&path)];
    assert_eq!(threads_for(&mappings), default_threads());
    populate(&mappings, default_threads(), |_| Ok(())).unwrap();
    // Kernels before 6.5, and sandboxes, cannot tell.
    assert_eq!(threads_for(&mappings), if cachestat { 1 } else { default_threads() });
}
