use std::io::ErrorKind;

use super::*;
use crate::error::{Error, Kind};
use crate::parallel::load;
use crate::parallel::read::tests::{counting, expected, numbers, plan};
use crate::source::probe;

/// The back ends that this machine lets read here, without the one that packs only what it must.
fn backends(checkpoint: &Checkpoint) -> Vec<Backend> {
    let works = |backend: &Backend| probe::attempt(*backend, checkpoint).unwrap().is_none();
    let backends: Vec<Backend> = Backend::ALL.into_iter().skip(1).filter(works).collect();
    assert!(backends.contains(&Backend::Pread), "it needs nothing");
    backends
}

#[test]
fn every_rank_gets_its_numbers_by_every_back_end() {
    // Not in /tmp, which may be a tmpfs: O_DIRECT is refused there.
    let root = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let checkpoint = counting(root.path());
    for backend in backends(&checkpoint) {
        for (rank, world_size) in [(0, 1), (0, 2), (1, 2)] {
            let mut seen = (0, 0);
            let watch = |done, total| {
                seen = (done, total);
                Ok(())
            };
            let share = (rank, world_size);
            let loaded = load(&checkpoint, &plan(), backend, share, 3, watch).unwrap();
            assert_eq!(seen.0, seen.1);
            assert_eq!(loaded.parts.len(), 7);
            for part in &loaded.parts {
                let wanted = expected(&part.tensor.name, &part.tensor.shape, rank, world_size);
                assert_eq!(numbers(&loaded, part), wanted, "{backend:?} {}", part.tensor.name);
                assert!(part.packed.is_some());
            }
        }
    }
}

#[test]
fn a_file_that_became_shorter_is_an_error() {
    let root = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let checkpoint = counting(root.path());
    for backend in backends(&checkpoint) {
        let watch = |done, _| match done {
            0 => Ok(()),
            _ => Err(Error::io(root.path(), "watch", &ErrorKind::Other.into())),
        };
        let stopped = load(&checkpoint, &plan(), backend, (0, 2), 1, watch).unwrap_err();
        assert!(matches!(stopped.kind, Kind::Io { action: "watch", .. }), "the watcher stops it");
    }
    let backends = backends(&checkpoint);
    let file = std::fs::File::options().write(true).open(&checkpoint.shards[1].path).unwrap();
    file.set_len(checkpoint.shards[1].file_bytes - 1).unwrap();
    for backend in backends {
        let failed = load(&checkpoint, &plan(), backend, (1, 2), 2, |_, _| Ok(())).unwrap_err();
        assert!(matches!(failed.kind, Kind::FileChanged { .. }), "{failed}");
    }
}
