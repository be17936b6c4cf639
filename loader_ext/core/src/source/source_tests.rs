use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::arena::Arena;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind};
use crate::evict::evict;
use crate::fixture::write_bytes;
use crate::populate::PIECE_BYTES;

const THREADS: usize = 3;

/// A checkpoint of two files on the disk of the repository, one longer than a piece.
fn checkpoint() -> (TempDir, Checkpoint) {
    let root = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let long: Vec<u8> = (0..PIECE_BYTES as usize + 4099).map(|at| (at % 253) as u8).collect();
    write_bytes(&root.path().join("1.safetensors"), &[("a", vec![7; 3]), ("b", long)]);
    write_bytes(&root.path().join("2.safetensors"), &[("c", vec![1, 2, 3])]);
    let checkpoint = Checkpoint::open(root.path()).unwrap();
    (root, checkpoint)
}

/// Reads the files of a checkpoint by what `open` makes of each.
fn read(
    checkpoint: &Checkpoint,
    open: impl Fn(&Shard) -> Box<dyn Source>,
    watch: impl FnMut(u64) -> Result<()>,
) -> Result<Vec<Arc<Arena>>> {
    let sources: Vec<_> = checkpoint.shards.iter().map(open).collect();
    image::read(&checkpoint.shards, &sources, THREADS, watch)
}

fn bytes(image: &Arena) -> &[u8] {
    // SAFETY: the whole arena is initialised, and no test writes to it any more.
    unsafe { std::slice::from_raw_parts(image.address().as_ptr(), image.size_bytes()) }
}

#[test]
fn images_are_the_files_by_whatever_back_end() {
    let (_root, checkpoint) = checkpoint();
    for backend in Backend::ALL {
        if let Some(reason) = probe::attempt(backend, &checkpoint).unwrap() {
            eprintln!("skipped: {} is refused here ({reason})", backend.name());
            continue;
        }
        let mut seen = Vec::new();
        let watch = |done| {
            seen.push(done);
            Ok(())
        };
        let images =
            read(&checkpoint, |shard| open(backend, shard, &mut None).unwrap(), watch).unwrap();
        for (shard, image) in checkpoint.shards.iter().zip(&images) {
            assert!(bytes(image) == fs::read(&shard.path).unwrap(), "{}", backend.name());
            assert_eq!(image.address().as_ptr() as usize % (2 << 20), 0);
        }
        assert!(seen.is_sorted());
        assert_eq!(seen.last(), Some(&checkpoint.checkpoint_bytes()));
    }
}

/// A source whose disk fails at one byte.
struct Torn(Box<dyn Source>, u64);

impl Source for Torn {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        if (offset..offset + into.len() as u64).contains(&self.1) {
            return Err(torn(self.1));
        }
        self.0.read(offset, into)
    }
}

fn torn(at: u64) -> Error {
    let kind = Kind::Io { action: "read", reason: "torn".into(), errno: Some(libc::EIO) };
    Error::new(Path::new("f"), kind).at(at)
}

#[test]
fn a_disk_that_fails_in_the_middle_fails_the_load() {
    let (_root, checkpoint) = checkpoint();
    let open = |shard: &Shard| -> Box<dyn Source> {
        Box::new(Torn(open(Backend::Pread, shard, &mut None).unwrap(), PIECE_BYTES + 5))
    };
    assert_eq!(read(&checkpoint, open, |_| Ok(())).unwrap_err(), torn(PIECE_BYTES + 5));
}

#[test]
fn the_watcher_stops_a_read() {
    let (_root, checkpoint) = checkpoint();
    let cancelled = Error::new(Path::new("f"), Kind::Cancelled);
    let open = |shard: &Shard| open(Backend::Pread, shard, &mut None).unwrap();
    let outcome = read(&checkpoint, open, |_| Err(cancelled.clone()));
    assert_eq!(outcome.unwrap_err(), cancelled);
}

#[test]
fn a_device_gets_what_is_cached_from_the_page_cache_and_the_rest_past_it() {
    let (root, checkpoint) = checkpoint();
    let choose = |sink| probe::choose(&checkpoint, Wanted::Auto, sink).unwrap().backend;
    assert_eq!((choose(Sink::Host), choose(Sink::Device)), (Backend::Populate, Backend::Populate));
    evict(root.path()).unwrap();
    assert_eq!(choose(Sink::Host), Backend::Populate);
    let direct = probe::choose(&checkpoint, Wanted::Direct, Sink::Host).unwrap();
    evict(root.path()).unwrap();
    assert_eq!(probe::choose(&checkpoint, Wanted::Auto, Sink::Device), Ok(direct));
}

#[test]
fn a_file_that_changed_is_no_reason_for_another_back_end() {
    let (_root, checkpoint) = checkpoint();
    let shard = &checkpoint.shards[0];
    File::options().write(true).open(&shard.path).unwrap().set_len(20).unwrap();
    for backend in [Backend::Populate, Backend::DirectPread] {
        let error = probe::attempt(backend, &checkpoint).unwrap_err();
        assert!(matches!(error.kind, Kind::FileChanged { found_bytes: 20, .. }), "{error}");
    }
}
