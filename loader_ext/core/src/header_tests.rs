use std::path::Path;

use proptest::prelude::*;

use super::*;

/// Parses `json` as the header of a file with `data_bytes` bytes of data.
fn parse_json(json: &str, data_bytes: u64) -> Result<Header> {
    parse(Path::new("f"), json.as_bytes(), LENGTH_BYTES + json.len() as u64 + data_bytes)
}

fn error_of(json: &str, data_bytes: u64) -> Error {
    parse_json(json, data_bytes).expect_err("the header is broken")
}

fn tensor(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

#[test]
fn a_header_in_order() {
    let json = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
        "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
        "none":{"dtype":"I8","shape":[0,7],"data_offsets":[4,4]}}   "#;
    let header = parse_json(json, 16).unwrap();
    let start = LENGTH_BYTES + json.len() as u64;
    let found: Vec<_> = header
        .tensors
        .iter()
        .map(|t| (t.name.as_str(), t.shape.as_slice(), t.offset_bytes - start, t.size_bytes))
        .collect();
    let wanted: [(&str, &[u64], u64, u64); 3] =
        [("a", &[], 0, 4), ("none", &[0, 7], 4, 0), ("b", &[2, 3], 4, 12)];
    assert_eq!(found, wanted);
    assert_eq!(header.metadata["format"], "pt");
}

#[test]
fn an_empty_header_is_valid() {
    assert!(parse_json("{}", 0).unwrap().tensors.is_empty());
}

#[test]
fn lengths() {
    let length = |start: &[u8], file_bytes| parse_length(Path::new("f"), start, file_bytes);
    assert_eq!(length(&10u64.to_le_bytes(), 18), Ok(10));
    let kind = |start: &[u8], file_bytes| length(start, file_bytes).unwrap_err().kind;
    assert_eq!(kind(b"abc", 3), Kind::FileTooShort { file_bytes: 3 });
    let (header_bytes, file_bytes) = (11, 18);
    assert_eq!(kind(&11u64.to_le_bytes(), 18), Kind::HeaderTruncated { header_bytes, file_bytes });
    let limit_bytes = HEADER_LIMIT_BYTES;
    for header_bytes in [HEADER_LIMIT_BYTES + 1, 1 << 63, u64::MAX] {
        assert_eq!(
            kind(&header_bytes.to_le_bytes(), u64::MAX),
            Kind::HeaderTooLong { header_bytes, limit_bytes }
        );
    }
    assert_eq!(kind(b"PK\x03\x04\0\0\x08\x08", 1 << 40), Kind::PickleRefused);
    assert_eq!(kind(b"\x80\x02}q\0X\x01\0", 1 << 40), Kind::PickleRefused);
}

#[test]
fn a_header_whose_length_reads_like_a_zip_is_no_pickle() {
    let header_bytes = u64::from_le_bytes(*b"PK\x03\x04\0\0\0\0");
    assert_eq!(
        parse_length(Path::new("f"), &header_bytes.to_le_bytes(), u64::MAX),
        Ok(header_bytes)
    );
}

#[test]
fn text_rules() {
    assert_eq!(error_of("[1]", 0).kind, Kind::HeaderStart { found: b'[' });
    assert_eq!(error_of("   ", 0).kind.code(), "header_json");
    assert_eq!(error_of("{", 0).kind.code(), "header_json");
    assert_eq!(error_of("{} {}", 0).kind.code(), "header_json");
    assert_eq!(error_of(r#"{"w":[]}"#, 0).kind.code(), "header_json");
    assert_eq!(error_of(r#"{"w":{"dtype":"F32","shape":[]}}"#, 0).kind.code(), "header_json");
    // An array of the fields, which a derived parser takes for the object.
    assert_eq!(error_of(r#"{"w":["U8",[1],[0,1]]}"#, 1).kind.code(), "header_json");
    let extra = r#"{"w":{"dtype":"I8","shape":[0],"data_offsets":[0,0],"x":1}}"#;
    assert_eq!(error_of(extra, 0).kind.code(), "header_json");
    let broken = b"{\"w\xff\":1}";
    let error = parse(Path::new("f"), broken, 8 + broken.len() as u64).unwrap_err();
    assert_eq!((error.kind, error.offset), (Kind::HeaderNotUtf8, Some(11)));
}

#[test]
fn duplicates() {
    let one = r#""w":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}"#;
    let error = error_of(&format!("{{{one},{one}}}"), 0);
    assert_eq!((error.kind, error.tensor.as_deref()), (Kind::DuplicateName, Some("w")));
    let twice = r#"{"__metadata__":{},"__metadata__":{}}"#;
    assert!(error_of(twice, 0).to_string().contains("__metadata__ appears twice"));
    let key = r#"{"__metadata__":{"a":"1","a":"2"}}"#;
    assert!(error_of(key, 0).to_string().contains(r#""a" appears twice"#));
}

#[test]
fn metadata_holds_strings_alone() {
    let error = error_of(r#"{"__metadata__":{"a":1}}"#, 0);
    assert_eq!(error.kind, Kind::MetadataNotString { key: "\"a\"".into() });
    assert_eq!(error_of(r#"{"__metadata__":[]}"#, 0).kind.code(), "header_json");
}

#[test]
fn tensor_rules() {
    let cases = [
        (tensor("F128", "[1]", "[0,4]"), "unknown_dtype"),
        (tensor("F32", "[-1]", "[0,4]"), "bad_shape"),
        (tensor("F32", "[1.5]", "[0,4]"), "bad_shape"),
        (tensor("F32", "[18446744073709551616]", "[0,4]"), "bad_shape"),
        (tensor("F32", "[2]", "[0,4]"), "size_mismatch"),
        (tensor("F32", "[4294967296,4294967296]", "[0,4]"), "size_overflow"),
        (tensor("F4", "[3]", "[0,4]"), "size_overflow"),
        (tensor("F32", "[0,9223372036854775808]", "[0,0]"), "size_overflow"),
        (tensor("F32", "[1]", "[-4,0]"), "bad_offset"),
        (tensor("F32", "[1]", "[0,4.0]"), "bad_offset"),
        (tensor("F32", "[1]", "[0,1e40]"), "bad_offset"),
        (tensor("F32", "[1]", "[4,0]"), "offsets_reversed"),
        (tensor("F32", "[2]", "[0,8]"), "data_truncated"),
        (tensor("F32", "[1]", "[18446744073709551611,18446744073709551615]"), "data_truncated"),
    ];
    for (json, code) in cases {
        let error = error_of(&json, 4);
        assert_eq!(error.kind.code(), code, "{json}");
        assert_eq!(error.tensor.as_deref(), Some("w"), "{json}");
        assert!(error.offset.is_some(), "{json}");
    }
}

#[test]
fn coverage_rules() {
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},
                "b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
        )
    };
    let error = error_of(&two("[0,4]", "[2,6]"), 8);
    assert_eq!(
        (error.kind, error.tensor.as_deref()),
        (Kind::Overlap { other: "a".into() }, Some("b"))
    );
    let error = error_of(&two("[0,4]", "[5,9]"), 9);
    assert_eq!((error.kind, error.tensor.as_deref()), (Kind::Hole { hole_bytes: 1 }, Some("b")));
    let error = error_of(&two("[1,5]", "[5,9]"), 9);
    assert_eq!((error.kind, error.tensor.as_deref()), (Kind::Hole { hole_bytes: 1 }, Some("a")));
    let error = error_of(&two("[0,4]", "[4,8]"), 11);
    assert_eq!(error.kind, Kind::TrailingBytes { trailing_bytes: 3 });
    assert_eq!(error_of("{}", 2).kind, Kind::TrailingBytes { trailing_bytes: 2 });
}

proptest! {
    #[test]
    fn any_bytes_parse_or_fail_without_panic(bytes: Vec<u8>, file_bytes: u64) {
        let file = Path::new("f");
        let _ = parse_length(file, &bytes, file_bytes);
        let _ = parse(file, &bytes, file_bytes);
    }

    #[test]
    fn any_offsets_parse_or_fail_and_valid_ones_stay_in_the_file(
        tensors in prop::collection::vec((0u64..20, 0u64..20, 0u64..20), 0..5),
        data_bytes in 0u64..40,
    ) {
        let entries: Vec<String> = tensors
            .iter()
            .enumerate()
            .map(|(i, (size, begin, end))| {
                format!(r#""{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{begin},{end}]}}"#)
            })
            .collect();
        if let Ok(header) = parse_json(&format!("{{{}}}", entries.join(",")), data_bytes) {
            let total: u64 = header.tensors.iter().map(|tensor| tensor.size_bytes).sum();
            prop_assert_eq!(total, data_bytes);
            prop_assert_eq!(header.tensors.len(), tensors.len());
        }
    }
}
