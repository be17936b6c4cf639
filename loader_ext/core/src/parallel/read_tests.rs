use std::path::Path;
use std::slice;

use super::*;
use crate::error::{Error, Kind};
use crate::fixture::write_tensors;
use crate::parallel::plan::{Rule, Split};
use crate::populate::default_threads;

fn rule(pattern: &str, dimension: usize, parts: &[u64]) -> Rule {
    let split = Split::Along { dimension, parts: parts.into(), heads: false };
    Rule { pattern: pattern.into(), split }
}

pub(in crate::parallel) fn plan() -> Plan {
    let all = Rule { pattern: "*".into(), split: Split::Replicate };
    Plan {
        rules: vec![
            rule("rows", 0, &[1]),
            rule("columns*", 1, &[1]),
            rule("fused", 0, &[2, 1]),
            rule("long", 1, &[1]),
            all,
        ],
    }
}

/// Two shards of I32 tensors that count up, one with lines longer than a piece.
pub(in crate::parallel) fn counting(root: &Path) -> Checkpoint {
    let tensor = |name: &'static str, shape: &[u64]| {
        let elements = shape.iter().product::<u64>() as u32;
        let data: Vec<u8> = (0..elements).flat_map(|value| value.to_le_bytes()).collect();
        (name, "I32", shape.to_vec(), data)
    };
    write_tensors(
        &root.join("1.safetensors"),
        &[
            tensor("rows", &[6, 5]),
            tensor("columns", &[300, 8]),
            tensor("norm", &[7]),
            tensor("nothing", &[0, 4]),
        ],
    );
    let wide = PIECE_BYTES / 4 * 3;
    write_tensors(
        &root.join("2.safetensors"),
        &[tensor("fused", &[6, 3]), tensor("long", &[2, wide]), tensor("columns.3", &[4, 2, 3])],
    );
    Checkpoint::open(root).unwrap()
}

/// The numbers of a part.
pub(in crate::parallel) fn numbers(loaded: &Loaded, part: &Part) -> Vec<u32> {
    let (address, _keeper) = loaded.memory(part);
    // SAFETY: the part is inside the memory that the keeper holds until the end.
    let bytes = unsafe { slice::from_raw_parts(address, part.slice.size_bytes() as usize) };
    bytes.chunks_exact(4).map(|value| u32::from_le_bytes(value.try_into().unwrap())).collect()
}

#[test]
fn every_rank_gets_its_numbers() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = counting(root.path());
    for world_size in [1, 2] {
        for rank in 0..world_size {
            let share = (rank, world_size);
            let mut seen = (0, 0);
            let loaded = read(&checkpoint, &plan(), share, 3, |done, total| {
                assert!(done >= seen.0);
                seen = (done, total);
                Ok(())
            })
            .unwrap();
            assert_eq!(seen.0, seen.1);
            assert_eq!(loaded.parts.len(), 7);
            for part in &loaded.parts {
                let found = numbers(&loaded, part);
                assert_eq!(
                    found,
                    expected(&part.tensor.name, &part.tensor.shape, rank, world_size)
                );
                let strided =
                    ["columns", "fused", "long", "columns.3"].contains(&&*part.tensor.name);
                assert_eq!(part.packed.is_some(), strided && world_size > 1);
            }
        }
    }
}

/// The same by counting element for element.
pub(in crate::parallel) fn expected(
    name: &str,
    shape: &[u64],
    rank: u64,
    world_size: u64,
) -> Vec<u32> {
    let total: u64 = shape.iter().product();
    let inner = |from: usize| shape[from.min(shape.len())..].iter().product::<u64>();
    let is_mine = |index: u64| match name {
        "rows" => index / inner(1) * world_size / shape[0] == rank,
        "columns" | "columns.3" | "long" => {
            index / inner(2) % shape[1] * world_size / shape[1] == rank
        }
        "fused" => {
            let (row, cut) = (index / inner(1), shape[0] / 3 * 2);
            match row < cut {
                true => row * world_size / cut == rank,
                false => (row - cut) * world_size / (shape[0] - cut) == rank,
            }
        }
        _ => true,
    };
    (0..total).filter(|index| is_mine(*index)).map(|index| index as u32).collect()
}

#[test]
fn what_cannot_be_split_is_seen_before_anything_is_read() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = counting(root.path());
    let outcome = read(&checkpoint, &plan(), (0, 4), 2, |_, _| {
        panic!("nothing is read");
    });
    let error = outcome.unwrap_err();
    assert_eq!((error.kind.code(), error.tensor.as_deref()), ("split_mismatch", Some("rows")));
    assert_eq!(error.file, root.path().join("1.safetensors"));
}

#[test]
fn the_watcher_stops_it() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = counting(root.path());
    let stop = Error::new(root.path(), Kind::Cancelled);
    let threads = default_threads();
    let outcome = read(&checkpoint, &plan(), (0, 2), threads, |_, _| Err(stop.clone()));
    assert_eq!(outcome.unwrap_err(), stop);
}
