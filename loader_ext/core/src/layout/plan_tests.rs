use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::dtype::Dtype;
use crate::header;

fn record(name: &str, dtype: Dtype, shape: &[u64]) -> TensorRecord {
    let size_bytes = dtype.size_bytes(shape).unwrap();
    TensorRecord { name: name.into(), dtype, shape: shape.into(), offset_bytes: 0, size_bytes }
}

/// Plans, and reads the planned header back with the parser.
fn laid_out(records: &[TensorRecord]) -> (Vec<TensorRecord>, Vec<Vec<String>>) {
    let sources: Vec<Source> = records.iter().map(|tensor| Source { shard: 0, tensor }).collect();
    let plan = plan(&sources, &BTreeMap::from([("format".into(), "pt".into())]));
    let json = &plan.header[LENGTH_BYTES as usize..];
    let parsed = header::parse(Path::new("f"), json, plan.file_bytes).unwrap();
    assert_eq!(parsed.metadata["format"], "pt");
    assert_eq!(parsed.metadata[LAYOUT_KEY], LAYOUT_VERSION);
    let order: Vec<_> = plan.tensors.iter().map(|source| &source.tensor.name).collect();
    let sized = parsed.tensors.iter().filter(|tensor| tensor.size_bytes > 0);
    assert!(sized.clone().all(|tensor| order.contains(&&tensor.name)));
    (parsed.tensors, plan.fused_groups)
}

fn names(tensors: &[TensorRecord]) -> Vec<&str> {
    tensors.iter().map(|tensor| tensor.name.as_str()).collect()
}

#[test]
fn regions_and_boundaries() {
    let (tensors, groups) = laid_out(&[
        record("odd", Dtype::F16, &[40_000]),
        record("page.10", Dtype::F32, &[1024, 32]),
        record("page.2", Dtype::BF16, &[1024, 64]),
        record("small.f32", Dtype::F32, &[3]),
        record("small.f16", Dtype::F16, &[5]),
        record("small.u8", Dtype::U8, &[7]),
        record("odd.f64", Dtype::F64, &[9_001]),
    ]);
    assert_eq!(
        names(&tensors),
        ["small.u8", "small.f16", "small.f32", "page.2", "page.10", "odd.f64", "odd"]
    );
    for tensor in &tensors {
        assert_eq!(tensor.offset_bytes % tensor.dtype.alignment(), 0, "{}", tensor.name);
    }
    assert_eq!(tensors[3].offset_bytes % PAGE_BYTES, 0);
    assert_eq!(tensors[4].offset_bytes % PAGE_BYTES, 0);
    assert!(groups.is_empty());
}

#[test]
fn fusable_weights_stand_side_by_side() {
    let mut records = Vec::new();
    for layer in [10, 2] {
        for (leaf, shape) in [("weight", vec![64, 512]), ("bias", vec![64])] {
            for part in ["k_proj", "o_proj", "q_proj", "v_proj"] {
                let name = format!("l.{layer}.attn.{part}.{leaf}");
                records.push(record(&name, Dtype::BF16, &shape));
            }
        }
        for part in ["up_proj", "down_proj", "gate_proj"] {
            let name = format!("l.{layer}.mlp.{part}.weight");
            records.push(record(&name, Dtype::BF16, &[96, 1024]));
        }
    }
    let (tensors, groups) = laid_out(&records);
    assert_eq!(groups.len(), 6);
    assert_eq!(groups[0][0], "l.2.attn.q_proj.bias");
    let order = names(&tensors);
    for group in &groups {
        let first = order.iter().position(|name| *name == group[0]).unwrap();
        assert_eq!(&order[first..first + group.len()], group.as_slice());
    }
}

#[test]
fn what_cannot_be_one_view_is_no_group() {
    let (_, groups) = laid_out(&[
        record("a.gate_proj.weight", Dtype::BF16, &[8, 4]),
        record("a.up_proj.weight", Dtype::F16, &[8, 4]),
        record("b.gate_proj.weight", Dtype::BF16, &[8, 4]),
        record("b.up_proj.weight", Dtype::BF16, &[8, 5]),
        record("c.gate_proj.weight", Dtype::BF16, &[8, 4]),
        record("d.gate_proj.weight", Dtype::BF16, &[]),
        record("d.up_proj.weight", Dtype::BF16, &[]),
        record("e.xgate_proj.weight", Dtype::BF16, &[8, 4]),
        record("e.xup_proj.weight", Dtype::BF16, &[8, 4]),
    ]);
    assert!(groups.is_empty());
}

#[test]
fn a_large_file_begins_on_a_huge_page() {
    let (tensors, _) = laid_out(&[
        record("small", Dtype::F32, &[3]),
        record("large", Dtype::F32, &[LARGE_FILE_BYTES / 4]),
    ]);
    assert_eq!(tensors[1].offset_bytes % LARGE_PAGE_BYTES, 0);
}

#[test]
fn numbers_in_names_count() {
    for pair in [("l.2.a", "l.10.a"), ("a", "b"), ("a", "a.b"), ("l.9", "l.x"), ("a01", "a1")] {
        assert_eq!(natural_order(pair.0, pair.1), Ordering::Less, "{pair:?}");
        assert_eq!(natural_order(pair.1, pair.0), Ordering::Greater, "{pair:?}");
    }
    assert_eq!(natural_order("l.2", "l.2"), Ordering::Equal);
}

fn any_record() -> impl Strategy<Value = (Dtype, Vec<u64>)> {
    let dtype = prop::sample::select(vec![
        Dtype::U8,
        Dtype::BF16,
        Dtype::F32,
        Dtype::F64,
        Dtype::F8_E4M3,
        Dtype::C64,
    ]);
    let dim = prop_oneof![Just(0), 1u64..9, Just(64), Just(1024), 100u64..999];
    (dtype, prop::collection::vec(dim, 0..3))
}

proptest! {
    #[test]
    fn every_plan_is_valid_aligned_and_complete(
        records in prop::collection::vec(any_record(), 0..24),
    ) {
        const NAMES: [&str; 6] = ["q_proj.weight", "k_proj.weight", "v_proj.weight",
            "gate_proj.weight", "up_proj.weight", "norm.bias"];
        let records: Vec<_> = records
            .iter()
            .enumerate()
            .map(|(i, (dtype, shape))| record(&format!("{}.{}", i / 6, NAMES[i % 6]), *dtype, shape))
            .collect();
        let (tensors, groups) = laid_out(&records);
        let mut found = names(&tensors);
        let mut wanted = names(&records);
        found.sort_unstable();
        wanted.sort_unstable();
        prop_assert_eq!(found, wanted);
        for tensor in &tensors {
            if tensor.size_bytes > 0 {
                prop_assert_eq!(tensor.offset_bytes % tensor.dtype.alignment(), 0);
            }
        }
        for group in &groups {
            let members: Vec<_> = group
                .iter()
                .map(|name| tensors.iter().find(|tensor| tensor.name == *name).unwrap())
                .collect();
            for pair in members.windows(2) {
                let end = pair[0].offset_bytes + pair[0].size_bytes;
                prop_assert_eq!(end, pair[1].offset_bytes);
            }
        }
    }
}
