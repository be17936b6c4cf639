use proptest::prelude::*;

use super::*;

const FILE: &str = "model.stx";

/// A header's text (with offsets from its end), the parsed header and the file's length.
fn sample(tensors: &[(&str, Dtype, &[u64])]) -> (Vec<u8>, Header, u64) {
    let mut begin = 0;
    let mut entries = vec![r#""__metadata__":{"format":"pt","a":"ü"}"#.to_owned()];
    for (name, dtype, shape) in tensors {
        let end = begin + dtype.size_bytes(shape).unwrap();
        let name = serde_json::to_string(name).unwrap();
        let dtype = dtype.name();
        entries.push(format!(
            r#"{name}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        ));
        begin = end;
    }
    let text = format!("{{{}}}  ", entries.join(",")).into_bytes();
    let file_bytes = LENGTH_BYTES + text.len() as u64 + begin;
    let header = header::parse(Path::new("f"), &text, file_bytes).unwrap();
    (text, header, file_bytes)
}

fn small() -> (Vec<u8>, Header, u64) {
    sample(&[
        ("embed.weight", Dtype::BF16, &[5, 3]),
        ("scalar", Dtype::F64, &[]),
        ("nothing", Dtype::I8, &[0, 7]),
        ("größe", Dtype::F4, &[2, 4]),
    ])
}

fn chunks_of(file_bytes: u64) -> Vec<u128> {
    (0..file_bytes.div_ceil(CHUNK_BYTES)).map(|chunk| u128::from(chunk) << 100 | 7).collect()
}

fn read(bytes: &[u8], text: &[u8], file_bytes: u64) -> Result<Option<Sidecar>> {
    parse(Path::new(FILE), bytes, text, file_bytes)
}

/// The bytes with a new checksum: what a writer with a mistake would have written.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() - DIGEST_BYTES);
    bytes.extend(xxh3_128(&bytes).to_le_bytes());
    bytes
}

#[test]
fn it_says_what_the_header_says() {
    let (text, header, file_bytes) = small();
    let chunks = chunks_of(file_bytes);
    let bytes = encode(&header, &text, file_bytes, &chunks);
    assert_eq!(bytes.len() as u64, encoded_bytes(&header, file_bytes));
    assert_eq!(read(&bytes, &text, file_bytes), Ok(Some(Sidecar { header, chunks })));
}

#[test]
fn every_byte_is_where_the_readme_says() {
    let (text, header, file_bytes) = sample(&[("w", Dtype::BF16, &[2, 3])]);
    let bytes = encode(&header, &text, file_bytes, &[9]);
    assert_eq!(&bytes[..8], b"STKTENSR");
    let small = |at| u32_at(&bytes, at);
    assert_eq!((small(8), small(12)), (1, 1));
    assert_eq!((u64_at(&bytes, 16), u64_at(&bytes, 24)), (file_bytes, text.len() as u64));
    assert_eq!(bytes[32..48], xxh3_128(&text).to_le_bytes());
    assert_eq!([48, 52, 56, 60].map(small), [2, 1, 2, 12]);
    assert_eq!(u64_at(&bytes, 64), xxh3_64(b"w"));
    assert_eq!(u64_at(&bytes, 72), LENGTH_BYTES + text.len() as u64);
    assert_eq!([80, 84, 88, 92].map(small), [0, 1, 0, 2]);
    assert_eq!(u64_at(&bytes, 96), 14);
    assert_eq!((u64_at(&bytes, 104), u64_at(&bytes, 112)), (2, 3));
    assert_eq!(bytes[120..136], 9u128.to_le_bytes());
    assert_eq!([136, 140, 144, 148].map(small), [1, 2, 6, 2]);
    assert_eq!(&bytes[152..164], "waüformatpt".as_bytes());
    assert_eq!(bytes[164..], xxh3_128(&bytes[..164]).to_le_bytes());
}

#[test]
fn every_element_type_has_a_code() {
    assert!(Dtype::ALL.iter().all(|dtype| DTYPES.contains(dtype)));
}

#[test]
fn another_headers_sidecar_is_not_believed() {
    let (text, header, file_bytes) = small();
    let bytes = encode(&header, &text, file_bytes, &chunks_of(file_bytes));
    let mut other = text.clone();
    other[20] ^= 1;
    assert_eq!(read(&bytes, &other, file_bytes), Ok(None));
    assert_eq!(read(&bytes, &text, file_bytes + 1), Ok(None));
    assert_eq!(read(&bytes, &text[..text.len() - 1], file_bytes), Ok(None));
    let mut later = bytes.clone();
    later[8] = 2;
    assert_eq!(read(&later, &text, file_bytes), Ok(None));
}

#[test]
fn every_flipped_bit_and_every_truncation_is_seen() {
    let (text, header, file_bytes) = small();
    let bytes = encode(&header, &text, file_bytes, &chunks_of(file_bytes));
    for at in (0..bytes.len()).filter(|at| !(8..12).contains(at)) {
        for bit in 0..8 {
            let mut broken = bytes.clone();
            broken[at] ^= 1 << bit;
            let error = read(&broken, &text, file_bytes).unwrap_err();
            assert_eq!(error.kind.code(), "sidecar_invalid", "bit {bit} of byte {at}");
        }
    }
    for length in 0..bytes.len() {
        let error = read(&bytes[..length], &text, file_bytes).unwrap_err();
        assert_eq!((error.kind.code(), error.file), ("sidecar_invalid", FILE.into()));
    }
}

#[test]
fn a_checksum_does_not_make_a_record_right() {
    let (text, header, file_bytes) = small();
    let bytes = encode(&header, &text, file_bytes, &chunks_of(file_bytes));
    let record = HEAD_BYTES + RECORD_BYTES; // of the second tensor
    let cases = [
        (12, "counts"),
        (48, "counts"),
        (60, "counts"),
        (HEAD_BYTES, "another hash"),
        (record + 8, "belong to no tensor"),
        (record + 15, "behind the file's end"),
        (record + 16, "points elsewhere"),
        (record + 20, "another hash"),
        (record + 23, "reaches behind the names"),
        (record + 24, "points elsewhere"),
        (record + 31, "reaches behind the dimensions"),
        (record + 33, "a dtype is unknown"),
        (record + 32, "belong to no tensor"), // F64 becomes I64's neighbour: another size
    ];
    for (at, words) in cases {
        let mut broken = bytes.clone();
        broken[at] += 1;
        if at == record + 32 {
            broken[at] = 4;
        }
        let error = read(&sealed(broken), &text, file_bytes).unwrap_err();
        assert_eq!(error.kind.code(), "sidecar_invalid");
        assert!(error.to_string().contains(words), "byte {at}: {error}");
    }
}

#[test]
fn a_name_that_appears_twice_is_refused() {
    let (text, mut header, file_bytes) =
        sample(&[("aa", Dtype::U8, &[2]), ("bb", Dtype::U8, &[3]), ("cc", Dtype::U8, &[3])]);
    header.tensors[2].name = "aa".into();
    let bytes = encode(&header, &text, file_bytes, &chunks_of(file_bytes));
    let error = read(&bytes, &text, file_bytes).unwrap_err();
    assert!(error.to_string().contains("appears twice"), "{error}");
}

#[test]
fn overlaps_name_the_tensor() {
    let (text, mut header, file_bytes) =
        sample(&[("aa", Dtype::U8, &[2]), ("bb", Dtype::U8, &[3])]);
    header.tensors[1].offset_bytes -= 1;
    let bytes = encode(&header, &text, file_bytes, &chunks_of(file_bytes));
    let error = read(&bytes, &text, file_bytes).unwrap_err();
    assert_eq!((error.kind.code(), error.tensor.as_deref()), ("sidecar_invalid", Some("bb")));
}

fn any_header() -> impl Strategy<Value = (Vec<u8>, Header, u64)> {
    let dtype = prop::sample::select(Dtype::ALL);
    let shape = prop::collection::vec(prop_oneof![Just(0), Just(8), 1u64..9], 0..4);
    prop::collection::btree_map("[a-zü.\"]{0,9}", (dtype, shape), 0..9).prop_map(|tensors| {
        let fitting: Vec<(&str, Dtype, &[u64])> = tensors
            .iter()
            .filter(|(_, (dtype, shape))| dtype.size_bytes(shape).is_some())
            .map(|(name, (dtype, shape))| (name.as_str(), *dtype, shape.as_slice()))
            .collect();
        sample(&fitting)
    })
}

proptest! {
    #[test]
    fn any_header_comes_back((text, header, file_bytes) in any_header()) {
        let chunks = chunks_of(file_bytes);
        let bytes = encode(&header, &text, file_bytes, &chunks);
        prop_assert_eq!(bytes.len() as u64, encoded_bytes(&header, file_bytes));
        prop_assert_eq!(read(&bytes, &text, file_bytes), Ok(Some(Sidecar { header, chunks })));
    }

    /// The checksum is made right again, so that what is behind it is searched as well.
    #[test]
    fn no_change_leads_out_of_the_file(
        (text, header, file_bytes) in any_header(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encode(&header, &text, file_bytes, &chunks_of(file_bytes));
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(Some(found)) = read(&sealed(bytes), &text, file_bytes) {
            let mut end = LENGTH_BYTES + text.len() as u64;
            for tensor in &found.header.tensors {
                prop_assert_eq!(tensor.offset_bytes, end);
                prop_assert_eq!(tensor.dtype.size_bytes(&tensor.shape), Some(tensor.size_bytes));
                end += tensor.size_bytes;
            }
            prop_assert_eq!(end, file_bytes);
        }
    }

    #[test]
    fn any_bytes_parse_or_fail_without_panic(bytes: Vec<u8>, text: Vec<u8>, file_bytes: u64) {
        let _ = read(&bytes, &text, file_bytes);
        let mut marked = MAGIC.to_vec();
        marked.extend(VERSION.to_le_bytes());
        marked.extend(bytes);
        marked.resize(marked.len() + DIGEST_BYTES, 0);
        let _ = read(&sealed(marked), &text, file_bytes);
    }
}
