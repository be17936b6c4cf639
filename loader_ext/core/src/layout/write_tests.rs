use super::*;
use crate::digest::digest;
use crate::fixture::{write_bytes, write_tensors};

fn lay(source: &Path, destination: &Path) -> Result<LayoutReport> {
    layout(source, destination, |_, _| Ok(()))
}

#[test]
fn shards_become_one_file_with_the_same_tensors() {
    let root = tempfile::tempdir().unwrap();
    let (source, destination) = (root.path().join("s"), root.path().join("deep/d"));
    fs::create_dir_all(source.join("1_Pooling")).unwrap();
    let tensor = |name, fill, size: u64| (name, "F32", vec![size / 4], vec![fill; size as usize]);
    write_tensors(
        &source.join("a-1.safetensors"),
        &[tensor("m.up_proj.weight", 1, 81_920), tensor("norm", 2, 64)],
    );
    write_tensors(&source.join("a-2.safetensors"), &[tensor("m.gate_proj.weight", 3, 81_920)]);
    let index = r#"{"weight_map":{"m.up_proj.weight":"a-1.safetensors",
        "norm":"a-1.safetensors","m.gate_proj.weight":"a-2.safetensors"}}"#;
    fs::write(source.join(INDEX_FILE), index).unwrap();
    fs::write(source.join("config.json"), b"{}").unwrap();
    fs::write(source.join("1_Pooling/config.json"), b"{1}").unwrap();
    fs::write(source.join("pytorch_model.bin"), b"PK\x03\x04").unwrap();
    fs::write(source.join(".gitattributes"), b"").unwrap();
    fs::write(source.join(SIDECAR_FILE), b"of weights that were replaced by these").unwrap();

    let mut seen = (0, 0);
    let report = layout(&source, &destination, |done, total| {
        assert!(done >= seen.0);
        seen = (done, total);
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, (report.checkpoint_bytes, report.checkpoint_bytes));
    assert_eq!(report.tensors, 3);
    assert_eq!(report.fused_groups, [["m.gate_proj.weight", "m.up_proj.weight"]]);
    assert_eq!(report.skipped, [".gitattributes", SIDECAR_FILE, "pytorch_model.bin"]);
    assert_eq!(digest(&destination, |_| Ok(())), Ok(report.digest.clone()));
    let names: Vec<_> = report.digest.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["1_Pooling/config.json", "config.json", SINGLE_FILE, SIDECAR_FILE]);

    let laid = Checkpoint::open(&destination).unwrap();
    let bytes = fs::read(destination.join(SINGLE_FILE)).unwrap();
    let fills: Vec<_> = laid.shards[0]
        .header
        .tensors
        .iter()
        .map(|tensor| {
            let begin = tensor.offset_bytes as usize;
            let data = &bytes[begin..begin + tensor.size_bytes as usize];
            assert!(data.iter().all(|byte| *byte == data[0]));
            (tensor.name.as_str(), data[0])
        })
        .collect();
    assert_eq!(fills, [("norm", 2), ("m.gate_proj.weight", 3), ("m.up_proj.weight", 1)]);
    assert_eq!(fs::read_dir(root.path().join("deep")).unwrap().count(), 1);
}

#[test]
fn laying_out_twice_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.safetensors");
    write_bytes(&file, &[("a", vec![1; 70_000]), ("b", vec![2; 3]), ("c", vec![3; 1 << 16])]);
    let once = lay(&file, &root.path().join("1")).unwrap();
    let twice = lay(&root.path().join("1"), &root.path().join("2")).unwrap();
    assert_eq!(once.digest, twice.digest);
}

#[test]
fn what_exists_is_never_touched() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.safetensors");
    write_bytes(&file, &[("a", vec![1; 10])]);
    fs::create_dir(root.path().join("d")).unwrap();
    let error = lay(&file, &root.path().join("d")).unwrap_err();
    assert_eq!(error.kind, Kind::DestinationExists);
    assert_eq!(fs::read_dir(root.path().join("d")).unwrap().count(), 0);
}

#[test]
fn nothing_remains_of_what_was_stopped() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.safetensors");
    write_bytes(&file, &[("a", vec![1; 10])]);
    let stop = Error::new(&file, Kind::Cancelled);
    let outcome = layout(&file, &root.path().join("d"), |_, _| Err(stop.clone()));
    assert_eq!(outcome, Err(stop));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn a_pickle_under_another_name_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("s");
    fs::create_dir(&source).unwrap();
    write_bytes(&source.join(SINGLE_FILE), &[("a", vec![1; 10])]);
    fs::write(source.join("extra.json"), b"\x80\x04]").unwrap();
    let error = lay(&source, &root.path().join("d")).unwrap_err();
    assert_eq!((error.kind, error.file), (Kind::PickleRefused, source.join("extra.json")));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn a_header_that_no_reader_would_take_is_not_written() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("s");
    fs::create_dir(&source).unwrap();
    for shard in ["a", "b"] {
        let name = shard.repeat(header::HEADER_LIMIT_BYTES as usize / 2);
        write_bytes(&source.join(format!("{shard}.safetensors")), &[(&name, vec![1])]);
    }
    let error = lay(&source, &root.path().join("d")).unwrap_err();
    assert_eq!(error.kind.code(), "header_too_long");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}
