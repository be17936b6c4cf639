//! JSON objects as the formats mean them: each key once, and no array in an object's place.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, Visitor};

/// Deserializes a struct from an object alone: what `serde` derives takes an array of its fields
/// too, which is neither safetensors nor an index.
pub struct Object<T>(PhantomData<T>);

impl<T> Object<T> {
    /// One that makes a `T`.
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Object<T> {
    type Value = T;
    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<T, D::Error> {
        input.deserialize_map(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
    type Value = T;
    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// Deserializes an object as pairs in order; a key that appears twice is an error.
pub fn unique_pairs<'de, V, D>(input: D) -> Result<Vec<(String, V)>, D::Error>
where
    V: Deserialize<'de>,
    D: Deserializer<'de>,
{
    struct Pairs<V>(PhantomData<V>);
    impl<'de, V: Deserialize<'de>> Visitor<'de> for Pairs<V> {
        type Value = Vec<(String, V)>;
        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut seen = HashSet::new();
            let mut pairs = Vec::new();
            while let Some((key, value)) = map.next_entry::<String, V>()? {
                if !seen.insert(key.clone()) {
                    return Err(de::Error::custom(format_args!("the key {key:?} appears twice")));
                }
                pairs.push((key, value));
            }
            Ok(pairs)
        }
    }
    input.deserialize_map(Pairs(PhantomData))
}
