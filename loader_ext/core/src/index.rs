//! The pure parser of a sharded checkpoint's index: bytes in, the shard of each tensor out.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeSeed;

use crate::checkpoint::is_safetensors_name;
use crate::error::{Error, Kind, Result};
use crate::json;

/// The map from tensor to shard of `model.safetensors.index.json`.
pub type Index = BTreeMap<String, String>;

#[derive(Deserialize)]
struct Document {
    #[serde(deserialize_with = "json::unique_pairs")]
    weight_map: Vec<(String, String)>,
}

/// Parses an index. `file` only names it in errors, which are all `IndexInvalid`.
///
/// Shards are names of `.safetensors` files beside the index, never paths.
pub fn parse(file: &Path, text: &[u8]) -> Result<Index> {
    let invalid = |reason: String| Error::new(file, Kind::IndexInvalid { reason });
    // Of bytes, `serde_json` would look at no string that is left out.
    let text = std::str::from_utf8(text).map_err(|error| invalid(error.to_string()))?;
    let mut input = serde_json::Deserializer::from_str(text);
    let document = json::Object::<Document>::new()
        .deserialize(&mut input)
        .and_then(|document| input.end().map(|()| document))
        .map_err(|error| invalid(error.to_string()))?;
    if document.weight_map.is_empty() {
        return Err(invalid("weight_map is empty".into()));
    }
    for (tensor, shard) in &document.weight_map {
        if shard.contains('/') || !is_safetensors_name(shard) {
            let reason = format!("{shard:?} is no name of a .safetensors file beside the index");
            return Err(invalid(reason).tensor(tensor));
        }
    }
    Ok(document.weight_map.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: impl AsRef<[u8]>) -> Result<Index> {
        parse(Path::new("index"), text.as_ref())
    }

    #[test]
    fn a_map_of_names_is_an_index() {
        let index = parsed(r#" {"metadata":[1],"weight_map":{"w":"a.safetensors"}} "#).unwrap();
        assert_eq!(index, Index::from([("w".to_owned(), "a.safetensors".to_owned())]));
    }

    #[test]
    fn anything_else_is_none() {
        for text in [
            "",
            "{}",
            r#"{"weight_map":{}}"#,
            r#"{"weight_map":[]}"#,
            r#"{"weight_map":{"w":1}}"#,
            r#"{"weight_map":{"w":"a.bin"}}"#,
            r#"{"weight_map":{"w":"../a.safetensors"}}"#,
            r#"{"weight_map":{"w":"a.safetensors","w":"a.safetensors"}}"#,
            r#"{"weight_map":{"w":"a.safetensors"}} {}"#,
            // An array of the fields, which a derived parser takes for the object.
            r#"[{"w":"a.safetensors"}]"#,
        ] {
            let found = parsed(text).map_err(|error| error.kind.code());
            assert_eq!(found, Err("index_invalid"), "{text}");
        }
    }

    #[test]
    fn what_is_not_text_is_none_wherever_it_stands() {
        let mut text = br#"{"metadata":"x","weight_map":{"w":"a.safetensors"}}"#.to_vec();
        assert!(parsed(&text).is_ok());
        text[13] = 0x92;
        let error = parsed(&text).unwrap_err();
        assert!(error.to_string().contains("invalid utf-8 sequence of 1 bytes from index 13"));
    }
}
