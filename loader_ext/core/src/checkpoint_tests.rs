use std::os::unix::fs::symlink;

use super::*;
use crate::fixture::write_bytes;

fn code_of(path: &Path) -> &'static str {
    Checkpoint::open(path).expect_err("the checkpoint is broken").kind.code()
}

fn two_shards(root: &Path, index: &str) {
    write_bytes(&root.join("x-1.safetensors"), &[("a", vec![1; 3])]);
    write_bytes(&root.join("x-2.safetensors"), &[("b", vec![2; 5])]);
    fs::write(root.join(INDEX_FILE), index).unwrap();
}

#[test]
fn a_single_file_wins_over_shards() {
    let root = tempfile::tempdir().unwrap();
    two_shards(root.path(), "not even JSON");
    write_bytes(&root.path().join(SINGLE_FILE), &[("c", vec![1; 7])]);
    let checkpoint = Checkpoint::open(root.path()).unwrap();
    assert_eq!(checkpoint.shards.len(), 1);
    assert_eq!(checkpoint.shards[0].header.tensors[0].name, "c");
}

#[test]
fn shards_by_index_or_by_name() {
    let root = tempfile::tempdir().unwrap();
    let map = r#"{"weight_map":{"a":"x-1.safetensors","b":"x-2.safetensors"}}"#;
    two_shards(root.path(), map);
    assert_eq!(Checkpoint::open(root.path()).unwrap().shards.len(), 2);
    fs::remove_file(root.path().join(INDEX_FILE)).unwrap();
    let checkpoint = Checkpoint::open(root.path()).unwrap();
    let names: Vec<_> = checkpoint.shards.iter().map(|shard| shard.name.as_str()).collect();
    assert_eq!(names, ["x-1.safetensors", "x-2.safetensors"]);
}

#[test]
fn index_rules() {
    let cases = [
        ("{", "index_invalid"),
        (r#"{"weight_map":{}}"#, "index_invalid"),
        (r#"{"weight_map":{"a":1}}"#, "index_invalid"),
        (r#"{"weight_map":{"a":"../x-1.safetensors"}}"#, "index_invalid"),
        (r#"{"weight_map":{"a":"x-1.bin"}}"#, "index_invalid"),
        (r#"{"weight_map":{"a":"x-1.safetensors","a":"x-1.safetensors"}}"#, "index_invalid"),
        (r#"{"weight_map":{"a":"x-3.safetensors"}}"#, "shard_missing"),
        (r#"{"weight_map":{"z":"x-1.safetensors"}}"#, "index_mismatch"),
        (r#"{"weight_map":{"a":"x-2.safetensors","b":"x-2.safetensors"}}"#, "index_mismatch"),
    ];
    for (index, code) in cases {
        let root = tempfile::tempdir().unwrap();
        two_shards(root.path(), index);
        assert_eq!(code_of(root.path()), code, "{index}");
    }
}

#[test]
fn a_tensor_that_the_index_does_not_list() {
    let root = tempfile::tempdir().unwrap();
    write_bytes(&root.path().join("x-1.safetensors"), &[("a", vec![1]), ("b", vec![2])]);
    let index = r#"{"weight_map":{"a":"x-1.safetensors"}}"#;
    fs::write(root.path().join(INDEX_FILE), index).unwrap();
    let error = Checkpoint::open(root.path()).unwrap_err();
    assert_eq!((error.kind.code(), error.tensor.as_deref()), ("index_mismatch", Some("b")));
}

#[test]
fn a_name_in_two_shards() {
    let root = tempfile::tempdir().unwrap();
    write_bytes(&root.path().join("1.safetensors"), &[("a", vec![1])]);
    write_bytes(&root.path().join("2.safetensors"), &[("a", vec![1])]);
    let error = Checkpoint::open(root.path()).unwrap_err();
    assert_eq!(error.kind, Kind::ShardDuplicate { other: "1.safetensors".into() });
    assert_eq!(error.file, root.path().join("2.safetensors"));
}

#[test]
fn nothing_to_open() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(code_of(&root.path().join("gone")), "checkpoint_not_found");
    assert_eq!(code_of(root.path()), "no_safetensors");
    fs::write(root.path().join("pytorch_model.bin"), b"PK\x03\x04").unwrap();
    assert_eq!(code_of(root.path()), "pickle_refused");
    fs::write(root.path().join(SINGLE_FILE), b"PK\x03\x04\0\0\x08\x08\0\0").unwrap();
    assert_eq!(code_of(root.path()), "pickle_refused");
    assert_eq!(code_of(Path::new("/dev/null")), "symlink_refused");
}

#[test]
fn links_to_files_are_followed() {
    let root = tempfile::tempdir().unwrap();
    write_bytes(&root.path().join("blob"), &[("a", vec![1])]);
    symlink("blob", root.path().join(SINGLE_FILE)).unwrap();
    assert_eq!(Checkpoint::open(root.path()).unwrap().shards.len(), 1);
}

#[test]
fn a_file_that_changes_its_length_is_seen() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(SINGLE_FILE);
    write_bytes(&path, &[("a", vec![1; 100])]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let expected_bytes = checkpoint.checkpoint_bytes();
    File::options().write(true).open(&path).unwrap().set_len(50).unwrap();
    let error = checkpoint.shards[0].check_length().unwrap_err();
    assert_eq!(error.kind, Kind::FileChanged { expected_bytes, found_bytes: 50 });
}

/// A laid-out checkpoint, which has a sidecar, and the tensors that its header lists.
fn laid_out(root: &Path) -> (PathBuf, Vec<header::TensorRecord>) {
    write_bytes(&root.join("x.safetensors"), &[("a", vec![1; 9]), ("b", vec![2; 5])]);
    let laid = root.join("laid");
    crate::layout::layout(&root.join("x.safetensors"), &laid, |_, _| Ok(())).unwrap();
    let plain = Checkpoint::open_with(&laid, Sidecars::Ignore).unwrap();
    (laid, plain.shards[0].header.tensors.clone())
}

#[test]
fn a_sidecar_says_what_the_header_says() {
    let root = tempfile::tempdir().unwrap();
    let (laid, tensors) = laid_out(root.path());
    for path in [laid.clone(), laid.join(SINGLE_FILE)] {
        let opened = Checkpoint::open(&path).unwrap();
        assert_eq!(opened.shards[0].header.tensors, tensors);
        assert_eq!(opened.metadata()["stoker.layout"], "1");
    }
}

#[test]
fn a_sidecar_is_believed_only_for_its_own_header() {
    let root = tempfile::tempdir().unwrap();
    let (laid, tensors) = laid_out(root.path());
    let sidecar = sidecar_path(&laid.join(SINGLE_FILE)).unwrap();
    // Proof that it is read at all: another header's tensors under this header's hash.
    let text = fs::read(laid.join(SINGLE_FILE)).unwrap();
    let text = &text[8..text.len() - 14];
    let mut header = (*Checkpoint::open(&laid).unwrap().shards[0].header).clone();
    header.tensors[0].name = "other".into();
    let file_bytes = text.len() as u64 + 22;
    fs::write(&sidecar, sidecar::encode(&header, text, file_bytes, &[0])).unwrap();
    let names = |path: &Path| -> Vec<String> {
        let header = &Checkpoint::open(path).unwrap().shards[0].header;
        header.tensors.iter().map(|tensor| tensor.name.clone()).collect()
    };
    assert_eq!(names(&laid), ["other", "b"]);

    write_bytes(&laid.join(SINGLE_FILE), &[("new", vec![1; 14])]);
    assert_eq!(names(&laid), ["new"]);
    assert_eq!(tensors.len(), 2);
}

#[test]
fn a_damaged_sidecar_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let (laid, _) = laid_out(root.path());
    let sidecar = sidecar_path(&laid.join(SINGLE_FILE)).unwrap();
    let mut bytes = fs::read(&sidecar).unwrap();
    bytes[70] ^= 1;
    fs::write(&sidecar, bytes).unwrap();
    let error = Checkpoint::open(&laid).unwrap_err();
    assert_eq!((error.kind.code(), error.file), ("sidecar_invalid", sidecar.clone()));
    fs::remove_file(&sidecar).unwrap();
    assert!(Checkpoint::open(&laid).is_ok());
    symlink("/dev/zero", &sidecar).unwrap();
    assert_eq!(code_of(&laid), "symlink_refused");
    fs::remove_file(&sidecar).unwrap();
    File::create(&sidecar).unwrap().set_len(sidecar::LIMIT_BYTES + 1).unwrap();
    assert_eq!(code_of(&laid), "sidecar_invalid");
}
