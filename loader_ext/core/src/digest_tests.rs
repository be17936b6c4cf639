use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_128;

use super::*;

fn find(path: &Path) -> Digest {
    digest(path, |_| Ok(())).unwrap()
}

fn check(path: &Path, expected: &Digest) -> Result<()> {
    verify(path, expected, |_| Ok(()))
}

fn tree() -> (tempfile::TempDir, Digest) {
    let root = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..2 * CHUNK_BYTES + 5).map(|index| (index % 253) as u8).collect();
    fs::write(root.path().join("weights"), data).unwrap();
    fs::create_dir(root.path().join("sub")).unwrap();
    fs::write(root.path().join("sub/config.json"), b"{}").unwrap();
    fs::write(root.path().join("empty"), b"").unwrap();
    let digest = find(root.path());
    (root, digest)
}

#[test]
fn every_chunk_has_its_hash() {
    let (root, digest) = tree();
    let names: Vec<_> = digest.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["empty", "sub/config.json", "weights"]);
    assert_eq!(digest.files[0].chunks, []);
    assert_eq!(digest.files[1].chunks, [xxh3_128(b"{}")]);
    let data = fs::read(root.path().join("weights")).unwrap();
    let chunks: Vec<u128> = data.chunks(CHUNK_BYTES as usize).map(xxh3_128).collect();
    assert_eq!(digest.files[2].chunks, chunks);
    assert_eq!(check(root.path(), &digest), Ok(()));
    assert_eq!(verify_root(root.path(), &digest.root, |_| Ok(())), Ok(()));
}

#[test]
fn the_root_of_a_file_is_as_documented() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f");
    fs::write(&path, b"abc").unwrap();
    let mut text = b"stoker digest 1\n\0".to_vec();
    text.extend(3u64.to_le_bytes());
    text.extend(xxh3_128(b"abc").to_be_bytes());
    assert_eq!(find(&path).root, format!("blake3:{}", blake3::hash(&text)));
    fs::rename(&path, root.path().join("g")).unwrap();
    assert_eq!(find(&root.path().join("g")).root, format!("blake3:{}", blake3::hash(&text)));
}

#[test]
fn the_root_depends_on_names_lengths_and_bytes() {
    let (root, before) = tree();
    fs::rename(root.path().join("empty"), root.path().join("hollow")).unwrap();
    let renamed = find(root.path());
    assert_ne!(renamed.root, before.root);
    fs::write(root.path().join("hollow"), b"1").unwrap();
    assert_ne!(find(root.path()).root, renamed.root);
}

#[test]
fn a_flipped_bit_names_file_and_chunk() {
    let (root, digest) = tree();
    let path = root.path().join("weights");
    let mut data = fs::read(&path).unwrap();
    for index in [CHUNK_BYTES as usize, 2 * CHUNK_BYTES as usize + 4] {
        data[index] ^= 1;
    }
    fs::write(&path, data).unwrap();
    let error = check(root.path(), &digest).unwrap_err();
    assert!(matches!(error.kind, Kind::ChunkMismatch { chunk: 1, .. }), "{error}");
    assert_eq!((error.file, error.offset), (path, Some(CHUNK_BYTES)));
    let root_error = verify_root(root.path(), &digest.root, |_| Ok(())).unwrap_err();
    assert_eq!(root_error.kind.code(), "root_mismatch");
}

#[test]
fn names_and_lengths_come_first() {
    let (root, digest) = tree();
    fs::write(root.path().join("more"), b"").unwrap();
    let error = check(root.path(), &digest).unwrap_err();
    assert_eq!((error.kind, error.file), (Kind::FileUnexpected, root.path().join("more")));
    fs::remove_file(root.path().join("more")).unwrap();
    fs::write(root.path().join("empty"), b"1").unwrap();
    let (expected_bytes, found_bytes) = (0, 1);
    let error = check(root.path(), &digest).unwrap_err();
    assert_eq!(error.kind, Kind::LengthMismatch { expected_bytes, found_bytes });
    fs::remove_file(root.path().join("empty")).unwrap();
    let error = check(root.path(), &digest).unwrap_err();
    assert_eq!((error.kind, error.file), (Kind::FileMissing, root.path().join("empty")));
}

#[test]
fn what_is_no_digest_is_refused() {
    let (root, digest) = tree();
    for text in ["", "blake3:", "blake3:zz", &digest.root[7..]] {
        let error = verify_root(root.path(), text, |_| Ok(())).unwrap_err();
        assert_eq!(error.kind.code(), "digest_invalid");
    }
    let mut reversed = digest.clone();
    reversed.files.reverse();
    assert_eq!(check(root.path(), &reversed).unwrap_err().kind.code(), "digest_invalid");
    let mut forged = digest.clone();
    forged.files[1].chunks.clear();
    forged.root = format!("blake3:{}", "0".repeat(64));
    assert_eq!(check(root.path(), &forged).unwrap_err().kind.code(), "root_mismatch");
    symlink("weights", root.path().join("link")).unwrap();
    let error = super::digest(root.path(), |_| Ok(())).unwrap_err();
    assert_eq!(error.kind, Kind::SymlinkRefused);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn a_stream_digests_like_a_file_whatever_its_pieces(
        pieces in prop::collection::vec(0usize..6_000_000, 0..5),
    ) {
        let data: Vec<u8> = (0..pieces.iter().sum()).map(|index| (index % 241) as u8).collect();
        let mut stream = StreamDigest::default();
        let mut rest = data.as_slice();
        for size in pieces {
            let (now, later) = rest.split_at(size);
            stream.update(now);
            rest = later;
        }
        let chunks: Vec<u128> = data.chunks(CHUNK_BYTES as usize).map(xxh3_128).collect();
        let wanted = FileDigest { name: "f".into(), size_bytes: data.len() as u64, chunks };
        prop_assert_eq!(stream.finish("f".into()), wanted);
    }
}
