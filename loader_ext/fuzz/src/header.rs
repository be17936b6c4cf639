//! The header: a byte that says how long the file is, eight for its length, the JSON.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value, json};
use stoker_loader_core::digest::CHUNK_BYTES;
use stoker_loader_core::error::Error;
use stoker_loader_core::header::{
    HEADER_LIMIT_BYTES, Header, LENGTH_BYTES, TensorRecord, parse, parse_length,
};
use stoker_loader_core::layout::plan::{LARGE_FILE_BYTES, Source, plan};
use stoker_loader_core::sidecar;

use crate::bytes::Bytes;

const FILE: &str = "model.safetensors";
/// No file that the kernel knows is longer.
const MAX_DATA_BYTES: u64 = i64::MAX as u64 / 2;
/// Every way in which a header can be wrong.
const CODES: [&str; 16] = [
    "header_not_utf8",
    "header_start",
    "header_json",
    "duplicate_name",
    "metadata_not_string",
    "unknown_dtype",
    "bad_shape",
    "size_overflow",
    "size_mismatch",
    "bad_offset",
    "offsets_reversed",
    "data_truncated",
    "overlap",
    "hole",
    "trailing_bytes",
    "pickle_refused",
];

/// Parses a header in a file of any length, or in one that fits.
pub fn check(input: &[u8]) {
    let mut input = Bytes(input);
    let (fits, room) = (input.byte() & 1 == 1, input.number() % MAX_DATA_BYTES);
    let text = input.0;
    check_length(text, room);
    let data_bytes = if fits { needed_bytes(text) } else { room };
    let file_bytes = LENGTH_BYTES + text.len() as u64 + data_bytes;
    match parse(Path::new(FILE), text, file_bytes) {
        Ok(header) => check_accepted(&header, text, data_bytes),
        Err(error) => check_refused(&error, data_bytes),
    }
}

fn check_length(start: &[u8], file_bytes: u64) {
    let start = &start[..start.len().min(LENGTH_BYTES as usize)];
    match parse_length(Path::new(FILE), start, file_bytes) {
        Ok(length) => {
            assert!(length <= HEADER_LIMIT_BYTES && length + LENGTH_BYTES <= file_bytes.max(8));
        }
        Err(error) => {
            let code = error.kind.code();
            assert!(
                ["file_too_short", "header_too_long", "header_truncated", "pickle_refused"]
                    .contains(&code),
                "{error}"
            );
        }
    }
}

/// Where the last tensor ends, by a reading that has nothing in common with the parser's.
pub fn needed_bytes(text: &[u8]) -> u64 {
    let Ok(Value::Object(entries)) = serde_json::from_slice(text) else { return 0 };
    let ends = entries.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64());
    ends.max().unwrap_or(0) % MAX_DATA_BYTES
}

fn check_refused(error: &Error, data_bytes: u64) {
    assert!(CODES.contains(&error.kind.code()), "{error}");
    assert!(error.offset.is_some() && error.to_string().starts_with(FILE), "{error}");
    if error.kind.code() == "trailing_bytes" {
        assert!(data_bytes > 0);
    }
}

fn check_accepted(header: &Header, text: &[u8], data_bytes: u64) {
    let data_offset = LENGTH_BYTES + text.len() as u64;
    check_sound(header, data_offset, data_bytes);
    let value: Value = serde_json::from_slice(text).expect("what is accepted is JSON");
    let entries = value.as_object().expect("a header is an object");
    let metadata = usize::from(entries.contains_key("__metadata__"));
    assert_eq!(entries.len() - metadata, header.tensors.len());
    assert!(entries.values().all(Value::is_object));

    let shorter = parse(Path::new(FILE), text, data_offset + data_bytes.saturating_sub(1));
    assert_eq!(shorter.is_err(), data_bytes > 0, "a file that lost a byte is noticed");
    assert!(parse(Path::new(FILE), text, data_offset + data_bytes + 1).is_err());
    check_written_again(header, data_offset, data_bytes);

    let file_bytes = data_offset + data_bytes;
    if data_bytes < LARGE_FILE_BYTES {
        let chunks: Vec<u128> = (0..file_bytes.div_ceil(CHUNK_BYTES)).map(u128::from).collect();
        let bytes = sidecar::encode(header, text, file_bytes, &chunks);
        assert_eq!(bytes.len() as u64, sidecar::encoded_bytes(header, file_bytes));
        let read = sidecar::parse(Path::new("model.stx"), &bytes, text, file_bytes);
        let read = read.expect("what is written is sound").expect("and of this header");
        assert_eq!((&read.header, &read.chunks), (header, &chunks));
        check_layout(header);
    }
}

/// The rules of the format, by an arithmetic that cannot overflow.
pub fn check_sound(header: &Header, data_offset: u64, data_bytes: u64) {
    let mut end = u128::from(data_offset);
    let mut names = HashSet::new();
    for tensor in &header.tensors {
        assert!(names.insert(&tensor.name) && tensor.name != "__metadata__");
        assert_eq!(u128::from(tensor.offset_bytes), end, "no hole and no overlap");
        end += u128::from(tensor.size_bytes);
        let empty = tensor.shape.contains(&0);
        let elements = tensor.shape.iter().filter(|&&dimension| dimension > 0).try_fold(
            1u128,
            |product, &dimension| {
                let product = product.checked_mul(u128::from(dimension));
                product.filter(|product| i64::try_from(*product).is_ok())
            },
        );
        let elements = elements.expect("whoever takes it can make strides of it");
        let elements = if empty { 0 } else { elements };
        assert_eq!(elements * u128::from(tensor.dtype.bits()), u128::from(tensor.size_bytes) * 8);
    }
    assert_eq!(
        end,
        u128::from(data_offset) + u128::from(data_bytes),
        "the last byte is a tensor's"
    );
}

/// What was accepted is accepted again, and is the same, when it is written as JSON.
pub fn check_written_again(header: &Header, data_offset: u64, data_bytes: u64) {
    let text = written(header, data_offset);
    let file_bytes = LENGTH_BYTES + text.len() as u64 + data_bytes;
    let again = parse(Path::new(FILE), &text, file_bytes).expect("it was accepted before");
    assert_eq!(again.metadata, header.metadata);
    let placed = |header: &Header, data_offset: u64| -> Vec<TensorRecord> {
        let at = |tensor: &TensorRecord| tensor.offset_bytes - data_offset;
        let tensors = header.tensors.iter();
        tensors.map(|t| TensorRecord { offset_bytes: at(t), ..t.clone() }).collect()
    };
    let again_offset = LENGTH_BYTES + text.len() as u64;
    assert_eq!(placed(&again, again_offset), placed(header, data_offset));
}

fn written(header: &Header, data_offset: u64) -> Vec<u8> {
    let mut entries = Vec::new();
    let metadata: Map<String, Value> = header
        .metadata
        .iter()
        .map(|(key, value)| (key.clone(), Value::String(value.clone())))
        .collect();
    entries.push(format!("\"__metadata__\":{}", Value::Object(metadata)));
    for tensor in &header.tensors {
        let begin = tensor.offset_bytes - data_offset;
        let value = json!({
            "dtype": tensor.dtype.name(),
            "shape": tensor.shape,
            "data_offsets": [begin, begin + tensor.size_bytes],
        });
        entries.push(format!("{}:{value}", Value::String(tensor.name.clone())));
    }
    format!("{{{}}}", entries.join(",")).into_bytes()
}

/// Any header can be laid out; the result is a header, of the same tensors, each on its element.
fn check_layout(header: &Header) {
    let sources: Vec<Source> =
        header.tensors.iter().map(|tensor| Source { shard: 0, tensor }).collect();
    let plan = plan(&sources, &header.metadata);
    let text = &plan.header[LENGTH_BYTES as usize..];
    let laid_out = parse(Path::new(FILE), text, plan.file_bytes).expect("a layout is a header");
    let identity =
        |tensor: &TensorRecord| (tensor.name.clone(), tensor.dtype, tensor.shape.clone());
    let sorted = |tensors: &[TensorRecord]| {
        let mut found: Vec<_> = tensors.iter().map(identity).collect();
        found.sort();
        found
    };
    assert_eq!(sorted(&laid_out.tensors), sorted(&header.tensors));
    for tensor in &laid_out.tensors {
        assert!(tensor.offset_bytes.is_multiple_of(tensor.dtype.alignment()), "{tensor:?}");
    }
    for group in &plan.fused_groups {
        let place = |name: &String| laid_out.tensors.iter().position(|t| t.name == *name);
        let places: Vec<usize> =
            group.iter().map(|name| place(name).expect("it is there")).collect();
        assert!(places.windows(2).all(|pair| pair[1] == pair[0] + 1), "{group:?}");
    }
}
