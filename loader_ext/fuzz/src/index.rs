//! The index of a sharded checkpoint: the JSON alone.

use std::path::Path;

use serde_json::{Value, json};
use stoker_loader_core::index::parse;

/// Parses an index.
pub fn check(input: &[u8]) {
    let file = Path::new("model.safetensors.index.json");
    match parse(file, input) {
        Ok(index) => {
            assert!(std::str::from_utf8(input).is_ok());
            // What is left out may be a number, or half a surrogate, that no value here can be.
            if let Ok(value) = serde_json::from_slice::<Value>(input) {
                let named = value.as_object().and_then(|index| index["weight_map"].as_object());
                assert_eq!(named.expect("it has a map").len(), index.len(), "no name was lost");
            }
            for shard in index.values() {
                let name = Path::new(shard).file_name().expect("it is a name");
                assert!(name == shard.as_str() && shard.ends_with(".safetensors"), "{shard:?}");
            }
            let again = json!({ "weight_map": index }).to_string();
            assert_eq!(parse(file, again.as_bytes()), Ok(index));
        }
        Err(error) => {
            assert_eq!(error.kind.code(), "index_invalid");
            assert_eq!(error.file, file);
        }
    }
}
