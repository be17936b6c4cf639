//! The binary sidecar of a header: the same tensors as fixed records, so that nobody parses JSON.
//!
//! It stands beside the file that [`crate::layout`] writes (`model.stx` beside
//! `model.safetensors`), is bound to the header's bytes by their hash, and carries the digests of
//! the file's chunks. The README describes every byte. Encoding and parsing are pure.

use std::collections::BTreeMap;
use std::path::Path;

use crate::digest::{CHUNK_BYTES, FileDigest};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::header::{self, Header, LENGTH_BYTES, TensorRecord};
use crate::names::first_repeated;
use crate::xxh3::{xxh3_64, xxh3_128};

/// What a sidecar's name ends with in place of `.safetensors`.
pub const EXTENSION: &str = "stx";
/// The longest sidecar that is read: some 2 million tensors.
pub const LIMIT_BYTES: u64 = 256 << 20;
const MAGIC: &[u8; 8] = b"STKTENSR";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 64;
const RECORD_BYTES: usize = 40;
const DIMENSION_BYTES: usize = 8;
const DIGEST_BYTES: usize = 16;
const PAIR_BYTES: usize = 8;
/// The codes of the element types: their place here. New ones go to the end.
const DTYPES: [Dtype; 22] = [
    Dtype::BOOL,
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::F6_E3M2,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E5M2FNUZ,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E8M0,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
    Dtype::C64,
];

/// What a sidecar says of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// Exactly what parsing the header's JSON gives.
    pub header: Header,
    /// XXH3-128 of each chunk of the file, as in [`crate::digest::FileDigest`].
    pub chunks: Vec<u128>,
}

/// The bytes that [`encode`] makes of a header and a file of `file_bytes`.
pub fn encoded_bytes(header: &Header, file_bytes: u64) -> u64 {
    let strings: usize = header.tensors.iter().map(|tensor| tensor.name.len()).sum::<usize>()
        + header.metadata.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    let dimensions: usize = header.tensors.iter().map(|tensor| tensor.shape.len()).sum();
    let chunks = file_bytes.div_ceil(CHUNK_BYTES) as usize;
    (HEAD_BYTES
        + header.tensors.len() * RECORD_BYTES
        + dimensions * DIMENSION_BYTES
        + chunks * DIGEST_BYTES
        + header.metadata.len() * PAIR_BYTES
        + strings
        + DIGEST_BYTES) as u64
}

/// The sidecar of a file of `file_bytes` whose header (without its length) is `text`.
///
/// `header` is what [`header::parse`] makes of `text`, which the format's limit keeps below 2^32
/// names, dimensions and characters; `chunks` are the digests of the whole file.
pub fn encode(header: &Header, text: &[u8], file_bytes: u64, chunks: &[u128]) -> Vec<u8> {
    let count = |value: usize| u32::try_from(value).expect("a header has less than 2^32 bytes");
    let dimensions: usize = header.tensors.iter().map(|tensor| tensor.shape.len()).sum();
    let mut strings = Vec::new();
    let mut records = Vec::with_capacity(header.tensors.len() * RECORD_BYTES);
    let mut first_dimension = 0;
    for tensor in &header.tensors {
        let code = DTYPES.iter().position(|dtype| *dtype == tensor.dtype);
        let code = code.expect("every element type has a code");
        records.extend(xxh3_64(tensor.name.as_bytes()).to_le_bytes());
        records.extend(tensor.offset_bytes.to_le_bytes());
        records.extend(count(strings.len()).to_le_bytes());
        records.extend(count(tensor.name.len()).to_le_bytes());
        records.extend(count(first_dimension).to_le_bytes());
        records.extend(count(tensor.shape.len()).to_le_bytes());
        records.extend((code as u64).to_le_bytes());
        strings.extend(tensor.name.bytes());
        first_dimension += tensor.shape.len();
    }
    let mut pairs = Vec::new();
    for (key, value) in &header.metadata {
        pairs.extend(count(key.len()).to_le_bytes());
        pairs.extend(count(value.len()).to_le_bytes());
        strings.extend(key.bytes().chain(value.bytes()));
    }

    let mut bytes = Vec::with_capacity(encoded_bytes(header, file_bytes) as usize);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(count(header.tensors.len()).to_le_bytes());
    bytes.extend(file_bytes.to_le_bytes());
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(xxh3_128(text).to_le_bytes());
    for value in [dimensions, chunks.len(), header.metadata.len(), strings.len()] {
        bytes.extend(count(value).to_le_bytes());
    }
    bytes.extend(records);
    bytes.extend(
        header.tensors.iter().flat_map(|tensor| &tensor.shape).flat_map(|dim| dim.to_le_bytes()),
    );
    bytes.extend(chunks.iter().flat_map(|digest| digest.to_le_bytes()));
    bytes.extend(pairs);
    bytes.extend(strings);
    bytes.extend(xxh3_128(&bytes).to_le_bytes());
    bytes
}

/// Reads a sidecar, or tells that it is not that of this header and file: then it is `None`.
///
/// `text` is the header without its length. A later version is `None` too. Bytes that are damaged,
/// or that break any rule that the header's parser enforces, are `SidecarInvalid`; `file` only
/// names the sidecar in it.
pub fn parse(file: &Path, bytes: &[u8], text: &[u8], file_bytes: u64) -> Result<Option<Sidecar>> {
    let invalid = |reason: &str| Error::new(file, Kind::SidecarInvalid { reason: reason.into() });
    let Some(body) = checked_body(file, bytes)? else { return Ok(None) };
    let bound = u64_at(body, 16) == file_bytes
        && u64_at(body, 24) == text.len() as u64
        && body[32..48] == xxh3_128(text).to_le_bytes();
    if !bound {
        return Ok(None);
    }

    let [tensors, dimensions, chunks, pairs, strings] =
        [12, 48, 52, 56, 60].map(|at| u32_at(body, at) as usize);
    let mut rest = &body[HEAD_BYTES..];
    let mut take = |count: usize, each_bytes: usize| -> Option<&[u8]> {
        let (section, behind) = rest.split_at_checked(count.checked_mul(each_bytes)?)?;
        rest = behind;
        Some(section)
    };
    let wrong_length = || invalid("its counts do not give its length").at(HEAD_BYTES as u64);
    let sections = (|| {
        Some((
            take(tensors, RECORD_BYTES)?,
            take(dimensions, DIMENSION_BYTES)?,
            take(chunks, DIGEST_BYTES)?,
            take(pairs, PAIR_BYTES)?,
            take(strings, 1)?,
        ))
    })();
    let (records, dimensions, chunks, pairs, strings) = sections.ok_or_else(wrong_length)?;
    if !rest.is_empty() {
        return Err(wrong_length());
    }
    if (chunks.len() / DIGEST_BYTES) as u64 != file_bytes.div_ceil(CHUNK_BYTES) {
        return Err(invalid("its digests do not cover the file"));
    }
    let strings = std::str::from_utf8(strings).map_err(|_| invalid("its names are not UTF-8"))?;

    let mut reader = Reader { strings, dimensions, name_begin: 0, first_dimension: 0 };
    let tensors = records
        .chunks_exact(RECORD_BYTES)
        .map(|record| reader.tensor(record, file_bytes).map_err(&invalid))
        .collect::<Result<Vec<TensorRecord>>>()?;
    let metadata = reader.metadata(pairs).map_err(&invalid)?;
    if reader.name_begin != strings.len()
        || reader.first_dimension * DIMENSION_BYTES != dimensions.len()
    {
        return Err(invalid("its tables hold more than its records name"));
    }
    if first_repeated(tensors.iter().map(|tensor| tensor.name.as_str())).is_some() {
        return Err(invalid("a name appears twice"));
    }
    let data_offset = LENGTH_BYTES + text.len() as u64;
    let data_bytes = file_bytes.saturating_sub(data_offset);
    header::check_coverage(file, &tensors, data_offset, data_bytes).map_err(|error| {
        let place = Error::new(file, Kind::SidecarInvalid { reason: error.kind.to_string() });
        Error { tensor: error.tensor, ..place }
    })?;
    Ok(Some(Sidecar { header: Header { tensors, metadata }, chunks: digests(chunks) }))
}

/// The digest of the file that a sidecar stands beside, by the sidecar alone.
///
/// That the digests are those of a file with this header only [`parse`] can tell. Errors:
/// `SidecarInvalid`, also for a later version.
pub fn file_digest(file: &Path, bytes: &[u8]) -> Result<FileDigest> {
    let invalid = |reason: &str| Error::new(file, Kind::SidecarInvalid { reason: reason.into() });
    let Some(body) = checked_body(file, bytes)? else {
        return Err(invalid("it is of a later version").at(8));
    };
    let [tensors, dimensions, chunks] = [12, 48, 52].map(|at| u32_at(body, at) as usize);
    let size_bytes = u64_at(body, 16);
    let begin = HEAD_BYTES + tensors * RECORD_BYTES + dimensions * DIMENSION_BYTES;
    let section = body.get(begin..begin + chunks * DIGEST_BYTES);
    let section = section.ok_or_else(|| invalid("its counts do not give its length"))?;
    if chunks as u64 != size_bytes.div_ceil(CHUNK_BYTES) {
        return Err(invalid("its digests do not cover the file"));
    }
    let name = file.with_extension("safetensors");
    let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(FileDigest { name, size_bytes, chunks: digests(section) })
}

/// What a sidecar's checksum is over; `None` for a later version. Errors: `SidecarInvalid`.
fn checked_body<'a>(file: &Path, bytes: &'a [u8]) -> Result<Option<&'a [u8]>> {
    let invalid = |reason: &str| Error::new(file, Kind::SidecarInvalid { reason: reason.into() });
    if bytes.len() < HEAD_BYTES + DIGEST_BYTES || !bytes.starts_with(MAGIC) {
        return Err(invalid("it does not begin as a sidecar does").at(0));
    }
    if u32_at(bytes, 8) != VERSION {
        return Ok(None);
    }
    let (body, checksum) = bytes.split_at(bytes.len() - DIGEST_BYTES);
    if xxh3_128(body).to_le_bytes() != *checksum {
        return Err(invalid("its checksum is not that of its bytes").at(body.len() as u64));
    }
    Ok(Some(body))
}

fn digests(section: &[u8]) -> Vec<u128> {
    let digests = section.chunks_exact(DIGEST_BYTES);
    digests.map(|it| u128::from_le_bytes(it.try_into().expect("it has 16 bytes"))).collect()
}

/// Walks the tables; they are used up in the order of the records, so there is one encoding.
struct Reader<'a> {
    strings: &'a str,
    dimensions: &'a [u8],
    name_begin: usize,
    first_dimension: usize,
}

impl<'a> Reader<'a> {
    fn tensor(
        &mut self,
        record: &[u8],
        file_bytes: u64,
    ) -> std::result::Result<TensorRecord, &'static str> {
        let [name_begin, name_bytes, first_dimension, rank] =
            [16, 20, 24, 28].map(|at| u32_at(record, at) as usize);
        if (name_begin, first_dimension) != (self.name_begin, self.first_dimension) {
            return Err("a record points elsewhere than behind the one before it");
        }
        let name = self.string(name_bytes).ok_or("a name reaches behind the names")?;
        if xxh3_64(name.as_bytes()) != u64_at(record, 0) {
            return Err("a name has another hash");
        }
        if name == header::METADATA {
            return Err("a tensor has the name of the metadata");
        }
        let begin = self.first_dimension * DIMENSION_BYTES;
        let shape = self
            .dimensions
            .get(begin..begin + rank * DIMENSION_BYTES)
            .ok_or("a shape reaches behind the dimensions")?;
        self.first_dimension += rank;
        let shape: Vec<u64> =
            shape.chunks_exact(DIMENSION_BYTES).map(|dimension| u64_at(dimension, 0)).collect();
        let dtype = usize::try_from(u64_at(record, 32)).ok().and_then(|code| DTYPES.get(code));
        let dtype = *dtype.ok_or("a dtype is unknown")?;
        let size_bytes =
            dtype.size_bytes(&shape).ok_or("a shape makes no whole number of bytes")?;
        let offset_bytes = u64_at(record, 8);
        // What `check_coverage` relies on.
        if offset_bytes.checked_add(size_bytes).is_none_or(|end| end > file_bytes) {
            return Err("a tensor reaches behind the file's end");
        }
        Ok(TensorRecord { name: name.to_owned(), dtype, shape, offset_bytes, size_bytes })
    }

    fn metadata(
        &mut self,
        pairs: &[u8],
    ) -> std::result::Result<BTreeMap<String, String>, &'static str> {
        let mut metadata = BTreeMap::new();
        for pair in pairs.chunks_exact(PAIR_BYTES) {
            let behind = "metadata reaches behind the strings";
            let key = self.string(u32_at(pair, 0) as usize).ok_or(behind)?.to_owned();
            let value = self.string(u32_at(pair, 4) as usize).ok_or(behind)?.to_owned();
            if metadata.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err("metadata is not sorted by key");
            }
            metadata.insert(key, value);
        }
        Ok(metadata)
    }

    /// The next string of the table.
    fn string(&mut self, bytes: usize) -> Option<&'a str> {
        let end = self.name_begin.checked_add(bytes)?;
        let text = self.strings.get(self.name_begin..end)?;
        self.name_begin = end;
        Some(text)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the slice has 4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the slice has 8 bytes"))
}

#[cfg(test)]
#[path = "sidecar_tests.rs"]
mod tests;
