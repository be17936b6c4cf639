use proptest::prelude::*;

use super::*;
use crate::dtype::Dtype;

const OFFSET: u64 = 1000;

fn record(dtype: Dtype, shape: &[u64]) -> TensorRecord {
    let size_bytes = dtype.size_bytes(shape).unwrap();
    TensorRecord { name: "w".into(), dtype, shape: shape.into(), offset_bytes: OFFSET, size_bytes }
}

fn along(dimension: usize, parts: &[u64], heads: bool) -> Split {
    Split::Along { dimension, parts: parts.into(), heads }
}

fn plan(split: Split) -> Plan {
    Plan { rules: vec![Rule { pattern: "*".into(), split }] }
}

fn slice(tensor: &TensorRecord, split: Split, rank: u64, world_size: u64) -> Result<Slice> {
    let plan = plan(split);
    plan.check(Path::new("f"), rank, world_size)?;
    plan.slice(Path::new("f"), tensor, rank, world_size)
}

fn reason(tensor: &TensorRecord, split: Split, rank: u64, world_size: u64) -> String {
    let error = slice(tensor, split, rank, world_size).unwrap_err();
    assert_eq!((error.kind.code(), error.tensor.as_deref()), ("split_mismatch", Some("w")));
    error.to_string()
}

/// The bytes of the file that a slice takes, in its own order.
fn bytes(slice: &Slice) -> Vec<u64> {
    (0..slice.lines)
        .flat_map(|line| slice.runs.iter().map(move |run| (line, run.clone())))
        .flat_map(|(line, run)| {
            run.map(move |byte| slice.offset_bytes + line * slice.line_bytes + byte)
        })
        .collect()
}

#[test]
fn rows_are_one_range() {
    let tensor = record(Dtype::BF16, &[6, 5]);
    let part = slice(&tensor, along(0, &[1], false), 1, 3).unwrap();
    assert_eq!(part.shape, [2, 5]);
    assert_eq!(part.contiguous(), Some(OFFSET + 20..OFFSET + 40));
}

#[test]
fn columns_are_a_run_of_each_row() {
    let tensor = record(Dtype::F32, &[3, 4, 2]);
    let part = slice(&tensor, along(1, &[1], false), 1, 2).unwrap();
    assert_eq!(part.shape, [3, 2, 2]);
    assert_eq!((part.lines, part.line_bytes), (3, 32));
    assert_eq!(part.runs.first(), Some(&(16..32)));
    assert_eq!(part.contiguous(), None);
}

#[test]
fn fused_weights_give_a_run_each() {
    let tensor = record(Dtype::U8, &[12, 2]); // 4 heads of q, one of k, one of v
    let part = slice(&tensor, along(0, &[4, 1, 1], true), 1, 2).unwrap();
    // The heads of k and v are on both ranks.
    assert_eq!(part.shape, [8, 2]);
    assert_eq!(part.contiguous(), Some(OFFSET + 8..OFFSET + 24));
    let part = slice(&tensor, along(0, &[2, 1], false), 1, 2).unwrap();
    assert_eq!(part.runs, [8..16, 20..24]);
}

#[test]
fn heads_stay_whole() {
    let tensor = record(Dtype::U8, &[16, 1]); // 4 heads of 4 rows
    let rows = |rank, world_size| {
        slice(&tensor, along(0, &[4], true), rank, world_size).unwrap().contiguous().unwrap()
    };
    assert_eq!(rows(1, 2), OFFSET + 8..OFFSET + 16);
    assert_eq!(rows(3, 8), OFFSET + 4..OFFSET + 8);
    assert_eq!(rows(7, 8), OFFSET + 12..OFFSET + 16);
    let reason = reason(&tensor, along(0, &[4], true), 0, 3);
    assert!(reason.contains("4 heads do not divide by 3 ranks"), "{reason}");
}

#[test]
fn one_rank_has_all_of_it_in_one_piece() {
    let tensor = record(Dtype::F16, &[4, 6]);
    for split in [Split::Replicate, along(0, &[1, 1], false), along(1, &[1, 2], false)] {
        assert_eq!(slice(&tensor, split, 0, 1).unwrap(), whole(&tensor));
    }
}

#[test]
fn what_does_not_divide_is_named() {
    let tensor = record(Dtype::BF16, &[7, 4]);
    let cases = [
        (&tensor, along(0, &[1], false), "dimension 0 of the shape [7, 4]: 7 does not divide by 2"),
        (&tensor, along(0, &[3], false), "7 does not divide into 3"),
        (&record(Dtype::F4, &[2, 2]), along(1, &[1], false), "goes through a byte"),
        (&record(Dtype::F32, &[4]), along(1, &[1], false), "no dimension 1"),
        (&record(Dtype::F32, &[]), along(0, &[1], false), "no dimension 0"),
    ];
    for (tensor, split, words) in cases {
        let reason = reason(tensor, split, 0, 2);
        assert!(reason.contains(words), "{reason}");
    }
}

#[test]
fn a_plan_that_makes_no_sense() {
    let code = |split, rank, world_size| {
        plan(split).check(Path::new("f"), rank, world_size).unwrap_err().kind.code()
    };
    assert_eq!(code(Split::Replicate, 2, 2), "plan_invalid");
    assert_eq!(code(Split::Replicate, 0, 0), "plan_invalid");
    assert_eq!(code(along(2, &[1], false), 0, 2), "plan_invalid");
    assert_eq!(code(along(0, &[], false), 0, 2), "plan_invalid");
    assert_eq!(code(along(0, &[1, 0], false), 0, 2), "plan_invalid");
    assert_eq!(code(along(0, &[u64::MAX, 1], false), 0, 2), "plan_invalid");
}

#[test]
fn the_first_rule_that_fits_counts() {
    let rule = |pattern: &str, split| Rule { pattern: pattern.into(), split };
    let plan = Plan { rules: vec![rule("w", Split::Replicate), rule("*", along(0, &[1], false))] };
    let tensor = record(Dtype::U8, &[4]);
    let size = |tensor: &TensorRecord| plan.slice(Path::new("f"), tensor, 0, 2).map(|s| s.shape[0]);
    assert_eq!(size(&tensor), Ok(4));
    assert_eq!(size(&TensorRecord { name: "v".into(), ..tensor.clone() }), Ok(2));
    let error = Plan { rules: vec![rule("v", Split::Replicate)] }
        .slice(Path::new("f"), &tensor, 0, 2)
        .unwrap_err();
    assert_eq!((error.kind, error.tensor.as_deref()), (Kind::TensorUnplanned, Some("w")));
}

#[test]
fn patterns() {
    let fitting = [
        ("a.b", "a.b"),
        ("*", ""),
        ("*", "x"),
        ("a*", "a"),
        ("*.q.*", "l.0.q.weight"),
        ("a*b*c", "abbc"),
        ("*ab", "aab"),
        ("a**c", "abc"),
        ("*a*a", "aa"),
    ];
    let others =
        [("a", "ab"), ("a*", "ba"), ("*a", "ab"), ("a*a", "a"), ("*ab*ab", "ab"), ("", "a")];
    assert!(fitting.iter().all(|(pattern, name)| matches(pattern, name)));
    assert!(!others.iter().any(|(pattern, name)| matches(pattern, name)));
}

fn any_tensor() -> impl Strategy<Value = TensorRecord> {
    let dtype = prop::sample::select(Dtype::ALL);
    let dimension = prop_oneof![Just(0), 1u64..7, Just(12), Just(24)];
    (dtype, prop::collection::vec(dimension, 0..4))
        .prop_filter("whole bytes", |(dtype, shape)| dtype.size_bytes(shape).is_some())
        .prop_map(|(dtype, shape)| record(dtype, &shape))
}

proptest! {
    /// Without whole heads each byte goes to exactly one rank; with them to equally many.
    #[test]
    fn the_ranks_share_a_tensor_out(
        tensor in any_tensor(),
        dimension in 0usize..2,
        parts in prop::collection::vec(1u64..5, 1..4),
        heads: bool,
        world_size in 1u64..5,
    ) {
        let slices: Result<Vec<Slice>> = (0..world_size)
            .map(|rank| slice(&tensor, along(dimension, &parts, heads), rank, world_size))
            .collect();
        let Ok(slices) = slices else { return Ok(()) };
        let mut owners = vec![0u64; tensor.size_bytes as usize];
        for part in &slices {
            let taken = bytes(part);
            prop_assert_eq!(taken.len() as u64, part.size_bytes());
            prop_assert_eq!(tensor.dtype.size_bytes(&part.shape), Some(part.size_bytes()));
            prop_assert!(taken.is_sorted_by(|a, b| a < b));
            if let Some(range) = part.contiguous() {
                prop_assert!(range.eq(taken.iter().copied()) || taken.is_empty());
            }
            taken.iter().for_each(|byte| owners[(byte - OFFSET) as usize] += 1);
        }
        let most = if heads { world_size } else { 1 };
        prop_assert!(owners.iter().all(|owners| (1..=most).contains(owners)));
    }

    #[test]
    fn any_plan_for_any_tensor_is_a_slice_or_an_error(
        tensor in any_tensor(),
        dimension: usize,
        parts: Vec<u64>,
        heads: bool,
        rank: u64,
        world_size: u64,
    ) {
        if let Ok(part) = slice(&tensor, along(dimension, &parts, heads), rank, world_size) {
            prop_assert!(part.size_bytes() <= tensor.size_bytes);
        }
    }
}
