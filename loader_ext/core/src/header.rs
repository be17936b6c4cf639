//! The pure parser of a safetensors header: bytes in, tensors out, every broken rule its own error.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, de};

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::json;
use crate::names::first_repeated;

/// Bytes of the little-endian length in front of the header.
pub const LENGTH_BYTES: u64 = 8;
/// The longest header that the format's reference parser accepts.
pub const HEADER_LIMIT_BYTES: u64 = 100_000_000;
/// The name in a header that is no tensor's.
pub(crate) const METADATA: &str = "__metadata__";

/// One tensor of one file. `offset_bytes` counts from the beginning of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRecord {
    /// Its name, unique in the file.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions, row-major.
    pub shape: Vec<u64>,
    /// Where its bytes begin in the file.
    pub offset_bytes: u64,
    /// How many bytes it has.
    pub size_bytes: u64,
}

/// A valid header: the tensors cover the file behind it exactly once, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The tensors by rising offset.
    pub tensors: Vec<TensorRecord>,
    /// The free strings of `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// The header's length from a file's first 8 bytes.
///
/// `file` only names the file in errors: `FileTooShort`, `HeaderTooLong`, `HeaderTruncated`,
/// and `PickleRefused` where the bytes are those of a zip archive or a pickle.
pub fn parse_length(file: &Path, start: &[u8], file_bytes: u64) -> Result<u64> {
    let Some(prefix) = start.first_chunk::<8>() else {
        return Err(Error::new(file, Kind::FileTooShort { file_bytes }).at(0));
    };
    let header_bytes = u64::from_le_bytes(*prefix);
    let room_bytes = file_bytes.saturating_sub(LENGTH_BYTES);
    if header_bytes <= HEADER_LIMIT_BYTES.min(room_bytes) {
        return Ok(header_bytes);
    }
    if is_pickle(prefix) {
        return Err(Error::new(file, Kind::PickleRefused));
    }
    let kind = if header_bytes > HEADER_LIMIT_BYTES {
        Kind::HeaderTooLong { header_bytes, limit_bytes: HEADER_LIMIT_BYTES }
    } else {
        Kind::HeaderTruncated { header_bytes, file_bytes }
    };
    Err(Error::new(file, kind).at(0))
}

/// Whether a file that is no safetensors file begins as a zip archive or a pickle of protocol 2-5,
/// which is what `torch.save` writes.
pub fn is_pickle(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04") || matches!(start, [0x80, 2..=5, ..])
}

/// Parses and checks a header (without its length) of a file of `file_bytes` bytes.
pub fn parse(file: &Path, header: &[u8], file_bytes: u64) -> Result<Header> {
    let data_offset = LENGTH_BYTES + header.len() as u64;
    let data_bytes = file_bytes.saturating_sub(data_offset);
    let at_header = |kind| Error::new(file, kind).at(LENGTH_BYTES);

    // An aligned layout pads with up to 2 MiB of spaces, which are cheaper to cut than to parse.
    let padding = header.iter().rev().take_while(|&&byte| byte == b' ').count();
    let header = &header[..header.len() - padding];
    match header.first() {
        Some(b'{') => {}
        Some(&found) => return Err(at_header(Kind::HeaderStart { found })),
        None => return Err(at_header(Kind::HeaderJson { reason: "it is empty".into() })),
    }
    let text = std::str::from_utf8(header).map_err(|error| {
        Error::new(file, Kind::HeaderNotUtf8).at(LENGTH_BYTES + error.valid_up_to() as u64)
    })?;
    let raw: RawHeader = serde_json::from_str(text)
        .map_err(|error| at_header(Kind::HeaderJson { reason: error.to_string() }))?;

    let metadata = parse_metadata(file, raw.metadata)?;
    if let Some(name) = first_repeated(raw.tensors.iter().map(|(name, _)| name.as_str())) {
        return Err(at_header(Kind::DuplicateName).tensor(name));
    }
    let mut tensors = raw
        .tensors
        .into_iter()
        .map(|(name, tensor)| check_tensor(file, name, tensor, data_offset, data_bytes))
        .collect::<Result<Vec<_>>>()?;
    tensors.sort_by_key(|tensor| (tensor.offset_bytes, tensor.size_bytes));
    check_coverage(file, &tensors, data_offset, data_bytes)?;
    Ok(Header { tensors, metadata })
}

fn parse_metadata(file: &Path, raw: Option<RawMetadata>) -> Result<BTreeMap<String, String>> {
    let mut metadata = BTreeMap::new();
    for (key, value) in raw.map(|raw| raw.0).unwrap_or_default() {
        let serde_json::Value::String(value) = value else {
            let kind = Kind::MetadataNotString { key: format!("{key:?}") };
            return Err(Error::new(file, kind).at(LENGTH_BYTES));
        };
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn check_tensor(
    file: &Path,
    name: String,
    raw: RawTensor<'_>,
    data_offset: u64,
    data_bytes: u64,
) -> Result<TensorRecord> {
    let error = |kind| Error::new(file, kind).tensor(&name);
    let dtype = Dtype::from_name(&raw.dtype)
        .ok_or_else(|| error(Kind::UnknownDtype { dtype: raw.dtype.into() }).at(LENGTH_BYTES))?;
    let shape = raw
        .shape
        .into_iter()
        .map(|dim| dim.natural().map_err(|value| error(Kind::BadShape { value }).at(LENGTH_BYTES)))
        .collect::<Result<Vec<u64>>>()?;
    let [begin, end] = raw.data_offsets;
    let offset = |value: Integer| {
        value.natural().map_err(|value| error(Kind::BadOffset { value }).at(LENGTH_BYTES))
    };
    let (begin, end) = (offset(begin)?, offset(end)?);
    let in_file = data_offset.saturating_add(begin);
    if end < begin {
        return Err(error(Kind::OffsetsReversed { begin, end }).at(in_file));
    }
    if end > data_bytes {
        return Err(error(Kind::DataTruncated { end, data_bytes }).at(in_file));
    }
    let found_bytes = end - begin;
    match dtype.size_bytes(&shape) {
        None => Err(error(Kind::SizeOverflow { shape }).at(in_file)),
        Some(expected_bytes) if expected_bytes != found_bytes => {
            Err(error(Kind::SizeMismatch { expected_bytes, found_bytes }).at(in_file))
        }
        Some(size_bytes) => {
            Ok(TensorRecord { name, dtype, shape, offset_bytes: in_file, size_bytes })
        }
    }
}

/// Sorted tensors must follow each other without overlap or hole and end where the file does.
pub(crate) fn check_coverage(
    file: &Path,
    tensors: &[TensorRecord],
    data_offset: u64,
    data_bytes: u64,
) -> Result<()> {
    let mut end = data_offset;
    let mut previous = "";
    for tensor in tensors {
        let error = |kind| Error::new(file, kind).tensor(&tensor.name).at(tensor.offset_bytes);
        if tensor.offset_bytes < end {
            return Err(error(Kind::Overlap { other: previous.to_owned() }));
        }
        if tensor.offset_bytes > end {
            return Err(error(Kind::Hole { hole_bytes: tensor.offset_bytes - end }));
        }
        end += tensor.size_bytes;
        previous = &tensor.name;
    }
    match data_offset + data_bytes - end {
        0 => Ok(()),
        trailing_bytes => Err(Error::new(file, Kind::TrailingBytes { trailing_bytes }).at(end)),
    }
}

/// The header as JSON gives it: pairs in order, so that duplicates are still visible.
struct RawHeader<'a> {
    tensors: Vec<(String, RawTensor<'a>)>,
    metadata: Option<RawMetadata>,
}

#[derive(Deserialize)]
struct RawMetadata(
    #[serde(deserialize_with = "json::unique_pairs")] Vec<(String, serde_json::Value)>,
);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<Integer>,
    data_offsets: [Integer; 2],
}

/// Any JSON number; only naturals are of use, the others are worth their own error.
enum Integer {
    Natural(u64),
    Other(String),
}

impl Integer {
    fn natural(self) -> std::result::Result<u64, String> {
        match self {
            Self::Natural(value) => Ok(value),
            Self::Other(text) => Err(text),
        }
    }
}

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Integer;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a number")
            }
            fn visit_u64<E>(self, value: u64) -> std::result::Result<Integer, E> {
                Ok(Integer::Natural(value))
            }
            fn visit_i64<E>(self, value: i64) -> std::result::Result<Integer, E> {
                Ok(Integer::Other(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> std::result::Result<Integer, E> {
                Ok(Integer::Other(value.to_string()))
            }
        }
        input.deserialize_any(Number)
    }
}

impl<'de> Deserialize<'de> for RawHeader<'de> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = RawHeader<'de>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<RawHeader<'de>, A::Error> {
                let mut header = RawHeader { tensors: Vec::new(), metadata: None };
                while let Some(key) = map.next_key::<String>()? {
                    if key != METADATA {
                        header.tensors.push((key, map.next_value_seed(json::Object::new())?));
                    } else if header.metadata.is_none() {
                        header.metadata = Some(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                        return Err(de::Error::custom("__metadata__ appears twice"));
                    }
                }
                Ok(header)
            }
        }
        input.deserialize_map(Pairs)
    }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
