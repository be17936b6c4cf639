use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use super::*;
use crate::digest::digest;
use crate::fixture::write_bytes;
use crate::populate::populate_in_pieces;

const CHUNK: usize = CHUNK_BYTES as usize;

/// Four chunks and a bit: `a` ends in the second, `b`, `c` and `d` follow.
fn checkpoint_file() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("w.safetensors");
    let data = |seed: usize, length| (0..length).map(|i| ((i * 7 + seed) % 251) as u8).collect();
    let tensors = [
        ("a", data(1, CHUNK + 5)),
        ("b", data(2, 100)),
        ("c", data(3, 2 * CHUNK)),
        ("d", data(4, CHUNK)),
    ];
    write_bytes(&path, &tensors);
    (root, path)
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

fn opened(path: &Path, known: &[FileDigest]) -> (Checkpoint, Arc<Mapping>) {
    let checkpoint = Checkpoint::open_verified(path, Some(known)).unwrap();
    let mapping = Arc::new(Mapping::of_shard(&checkpoint.shards[0]).unwrap());
    (checkpoint, mapping)
}

#[test]
fn each_chunk_is_compared_once_whatever_the_pieces() {
    let (_root, path) = checkpoint_file();
    let known = digest(&path, |_| Ok(())).unwrap().files;
    for piece_bytes in [CHUNK_BYTES, 100_000, 3 * CHUNK_BYTES] {
        let (checkpoint, mapping) = opened(&path, &known);
        let verification = checkpoint.shards[0].verification.as_ref().unwrap();
        let total = known[0].size_bytes;
        for _ in 0..2 {
            let mappings = [Arc::clone(&mapping)];
            assert_eq!(populate_in_pieces(&mappings, 3, piece_bytes, |_| Ok(())), Ok(total));
            assert_eq!(verification.spent().0, total);
        }
        assert!((0..5).all(|chunk| verification.is_verified(chunk)));
    }
}

#[test]
fn a_flipped_bit_names_chunk_and_tensors() {
    let (_root, path) = checkpoint_file();
    let known = digest(&path, |_| Ok(())).unwrap().files;
    flip(&path, CHUNK_BYTES + 1);
    let (checkpoint, mapping) = opened(&path, &known);
    let error =
        populate_in_pieces(&[Arc::clone(&mapping)], 2, CHUNK_BYTES, |_| Ok(())).unwrap_err();
    assert_eq!((error.offset, error.tensor.as_deref()), (Some(CHUNK_BYTES), Some("a")));
    let Kind::ChunkMismatch { chunk: 1, tensors, .. } = &error.kind else { panic!("{error}") };
    assert_eq!(*tensors.0, ["a", "b", "c"]);
    assert!(error.to_string().contains(r#"tensor "a": chunk 1, with "b", "c" is corrupt"#));
    // The others are as good as before, and the bad one is bad each time.
    let whole = |begin| verify_range(&mapping, begin, CHUNK_BYTES, 2, |_| Ok(()));
    assert_eq!(whole(3 * CHUNK_BYTES), Ok(()));
    assert_eq!(whole(CHUNK_BYTES), Err(error));
    assert!(!checkpoint.shards[0].verification.as_ref().unwrap().is_verified(1));
}

#[test]
fn what_a_device_reads_is_compared_before_it_is_given_out() {
    let (_root, path) = checkpoint_file();
    let known = digest(&path, |_| Ok(())).unwrap().files;
    flip(&path, 2 * CHUNK_BYTES);
    let (_checkpoint, mapping) = opened(&path, &known);
    let advice = Advice::default();
    mapping.read(CHUNK_BYTES + 5, &mut [0; 100], &advice).unwrap();
    let mut slot = [7; 100];
    let error = mapping.read(3 * CHUNK_BYTES - 50, &mut slot, &advice).unwrap_err();
    assert!(matches!(error.kind, Kind::ChunkMismatch { chunk: 2, .. }), "{error}");
    assert_eq!(slot, [7; 100]);
}

#[test]
fn a_range_without_end_is_all_chunks_behind_its_begin() {
    let (_root, path) = checkpoint_file();
    let known = digest(&path, |_| Ok(())).unwrap().files;
    let (checkpoint, mapping) = opened(&path, &known);
    let verification = checkpoint.shards[0].verification.as_ref().unwrap();
    assert_eq!(verification.chunks_of(CHUNK_BYTES, u64::MAX), 1..5, "wrapped it would be none");
    assert_eq!(verification.chunks_of(2 * CHUNK_BYTES - 1, u64::MAX), 1..5);
    assert!(verification.chunks_of(u64::MAX, u64::MAX).is_empty());
    verify_range(&mapping, CHUNK_BYTES, u64::MAX, 2, |_| Ok(())).unwrap();
    assert_eq!(verification.spent().0, known[0].size_bytes, "and the header's, that led there");
}

#[test]
#[should_panic(expected = "the range lies in the file")]
fn a_read_beyond_64_bits_is_never_tried() {
    let (_root, path) = checkpoint_file();
    let known = digest(&path, |_| Ok(())).unwrap().files;
    let (_checkpoint, mapping) = opened(&path, &known);
    let _ = mapping.read(u64::MAX, &mut [0; 2], &Advice::default());
}

#[test]
fn what_was_found_right_may_be_written_to() {
    let (_root, path) = checkpoint_file();
    let known = digest(&path, |_| Ok(())).unwrap().files;
    let (_checkpoint, mapping) = opened(&path, &known);
    verify_range(&mapping, 0, 1, 1, |_| Ok(())).unwrap();
    // SAFETY: the first byte of a writable mapping that nobody else uses.
    unsafe { *mapping.address().as_ptr() ^= 1 };
    assert!(populate_in_pieces(&[Arc::clone(&mapping)], 2, CHUNK_BYTES, |_| Ok(())).is_ok());
}

#[test]
fn digests_must_be_those_of_the_file() {
    let (_root, path) = checkpoint_file();
    let known = digest(&path, |_| Ok(())).unwrap().files;
    let refused =
        |known: Option<&[FileDigest]>| Checkpoint::open_verified(&path, known).unwrap_err().kind;
    assert_eq!(refused(None), Kind::DigestsMissing);
    let other = |name: &str| FileDigest { name: name.into(), ..known[0].clone() };
    assert_eq!(refused(Some(&[other("x"), other("y")])), Kind::FileUnexpected);
    assert!(Checkpoint::open_verified(&path, Some(&[other("renamed")])).is_ok());
    let mut long = known.clone();
    long[0].size_bytes += 1;
    assert!(matches!(refused(Some(&long)), Kind::LengthMismatch { .. }));
    let mut few = known.clone();
    few[0].chunks.pop();
    assert!(matches!(refused(Some(&few)), Kind::DigestInvalid { .. }));
}

#[test]
fn a_sidecar_alone_gives_the_digest_of_its_file() {
    let (root, path) = checkpoint_file();
    let laid = root.path().join("laid");
    crate::layout::layout(&path, &laid, |_, _| Ok(())).unwrap();
    let weights = laid.join("model.safetensors");
    let known = digest(&weights, |_| Ok(())).unwrap().files;
    let sidecar = laid.join("model.stx");
    assert_eq!(sidecar_digest(&sidecar), Ok(known[0].clone()));
    assert!(Checkpoint::open_verified(&laid, None).unwrap().shards[0].verification.is_some());

    let bytes = fs::read(&sidecar).unwrap();
    for place in [8, 12, 20, 48, 52, bytes.len() / 2, bytes.len() - 1] {
        flip(&sidecar, place as u64);
        let error = sidecar_digest(&sidecar).unwrap_err();
        assert!(matches!(error.kind, Kind::SidecarInvalid { .. }), "{error}");
        flip(&sidecar, place as u64);
    }
    for length in [0, 79, bytes.len() - 1] {
        File::create(&sidecar).unwrap().write_all_at(&bytes[..length], 0).unwrap();
        assert!(sidecar_digest(&sidecar).is_err());
    }
    fs::remove_file(&sidecar).unwrap();
    assert_eq!(sidecar_digest(&sidecar).unwrap_err().kind, Kind::NotFound);
}
