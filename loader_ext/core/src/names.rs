//! Finds a tensor by its name, or a name that is there twice: among thousands, without copies.

use std::collections::HashSet;
use std::sync::Arc;

use crate::header::{Header, TensorRecord};
use crate::xxh3::xxh3_64;

/// The hashes of all names in order, with the shard and the tensor that each is of.
#[derive(Debug)]
pub struct NameIndex(Vec<(u64, u32, u32)>);

impl NameIndex {
    /// Indexes the tensors of all shards, whose names are unique.
    pub fn new(headers: &[Arc<Header>]) -> Self {
        let mut places: Vec<(u64, u32, u32)> = headers
            .iter()
            .enumerate()
            .flat_map(|(shard, header)| {
                header.tensors.iter().enumerate().map(move |(tensor, record)| {
                    // A header has less than 2^32 bytes, and no directory as many files.
                    (xxh3_64(record.name.as_bytes()), shard as u32, tensor as u32)
                })
            })
            .collect();
        places.sort_unstable();
        Self(places)
    }

    /// The number of the shard and the record of a tensor; `headers` are those of `new`.
    pub fn find<'a>(
        &self,
        headers: &'a [Arc<Header>],
        name: &str,
    ) -> Option<(usize, &'a TensorRecord)> {
        let hash = xxh3_64(name.as_bytes());
        let first = self.0.partition_point(|place| place.0 < hash);
        self.0[first..]
            .iter()
            .take_while(|place| place.0 == hash)
            .map(|&(_, shard, tensor)| {
                (shard as usize, &headers[shard as usize].tensors[tensor as usize])
            })
            .find(|(_, record)| record.name == name)
    }
}

/// The first name that was there before it.
pub fn first_repeated<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let mut hashes: Vec<u64> = names.clone().map(|name| xxh3_64(name.as_bytes())).collect();
    hashes.sort_unstable();
    // Equal names have equal hashes; whether equal hashes have equal names is asked seldom.
    if hashes.windows(2).all(|pair| pair[0] != pair[1]) {
        return None;
    }
    let mut seen = HashSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::fixture::write_bytes;

    #[test]
    fn the_first_name_that_is_there_twice() {
        assert_eq!(first_repeated(["a", "b", "c"].into_iter()), None);
        assert_eq!(first_repeated(["a", "b", "c", "b", "a"].into_iter()), Some("b"));
        assert_eq!(first_repeated([].into_iter()), None);
    }

    #[test]
    fn every_name_is_found_and_no_other() {
        let root = tempfile::tempdir().unwrap();
        for (shard, names) in [["a", "b", "c"], ["d", "", "e"]].iter().enumerate() {
            let tensors = names.map(|name| (name, vec![1; 3]));
            write_bytes(&root.path().join(format!("{shard}.safetensors")), &tensors);
        }
        let shards = Checkpoint::open(root.path()).unwrap().shards;
        let headers: Vec<_> = shards.iter().map(|shard| Arc::clone(&shard.header)).collect();
        let index = NameIndex::new(&headers);
        for (number, header) in headers.iter().enumerate() {
            for tensor in &header.tensors {
                assert_eq!(index.find(&headers, &tensor.name), Some((number, tensor)));
            }
        }
        assert_eq!(index.find(&headers, "f"), None);
    }
}
