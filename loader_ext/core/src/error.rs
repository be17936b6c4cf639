//! The one error of this crate: what went wrong ([`Kind`]) and where ([`Error`]).

use std::fmt;
use std::path::{Path, PathBuf};

use crate::pin::Limit;

/// Names in one message.
const MAX_NAMES_SHOWN: usize = 8;

/// What every fallible function here returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Defines [`Kind`] with the stable code and the Python class of each variant beside its message,
/// so that the three cannot drift apart.
macro_rules! kinds {
    ($(
        #[doc = $doc:literal]
        $name:ident $({ $($field:ident: $type:ty),* $(,)? })? : $code:literal => $class:literal, $message:literal;
    )*) => {
        /// What went wrong. Each variant has one stable code and one Python exception class.
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[allow(missing_docs, reason = "the fields are named in each variant's message")]
        pub enum Kind {
            $(
                #[doc = $doc]
                #[error($message)]
                $name $({ $($field: $type),* })?,
            )*
        }

        impl Kind {
            /// The stable, machine-readable name of this error.
            pub fn code(&self) -> &'static str {
                match self { $(Kind::$name { .. } => $code,)* }
            }

            /// The name of the exception class in `stoker_loader.errors`.
            pub fn class(&self) -> &'static str {
                match self { $(Kind::$name { .. } => $class,)* }
            }

            /// Every `(code, class, meaning)`, in the order of declaration.
            pub const TABLE: &'static [(&'static str, &'static str, &'static str)] =
                &[$(($code, $class, $doc)),*];
        }
    };
}

kinds! {
    #[doc = "A system call failed; `errno` says how."]
    Io { action: &'static str, reason: String, errno: Option<i32> }: "io_error" => "StorageError",
        "{action} failed: {reason}";
    #[doc = "There is nothing at the path."]
    NotFound: "checkpoint_not_found" => "CheckpointNotFoundError",
        "no such file or directory; check the path";
    #[doc = "The directory holds no `.safetensors` file."]
    NoSafetensors: "no_safetensors" => "NoSafetensorsError",
        "holds no .safetensors file; point to a directory with model.safetensors, shards with model.safetensors.index.json, or to one file";
    #[doc = "The weights are pickles, which can run code when they are read."]
    PickleRefused: "pickle_refused" => "PickleRefusedError",
        "is a pickle (or holds nothing but pickles), which can run code when it is read; convert it to safetensors first: python -m stoker_loader convert SOURCE DESTINATION";
    #[doc = "A symbolic link stands where its target's bytes would have to be trusted."]
    SymlinkRefused: "symlink_refused" => "SymlinkRefusedError",
        "is a symbolic link (or no regular file); put the file itself in its place";
    #[doc = "A file name is not UTF-8."]
    NameNotUtf8: "name_not_utf8" => "FileNameError",
        "has a name that is not UTF-8; rename it";

    #[doc = "The file is shorter than the 8 bytes of the header's length."]
    FileTooShort { file_bytes: u64 }: "file_too_short" => "FileTooShortError",
        "is {file_bytes} bytes long, a safetensors file has at least 8 (truncated?)";
    #[doc = "The header claims more bytes than the format allows."]
    HeaderTooLong { header_bytes: u64, limit_bytes: u64 }: "header_too_long" => "HeaderTooLongError",
        "claims a header of {header_bytes} bytes, the limit is {limit_bytes} (corrupt, or no safetensors file)";
    #[doc = "The header reaches behind the file's end."]
    HeaderTruncated { header_bytes: u64, file_bytes: u64 }: "header_truncated" => "HeaderTruncatedError",
        "claims a header of {header_bytes} bytes but is only {file_bytes} bytes long (truncated?)";
    #[doc = "The header is not UTF-8."]
    HeaderNotUtf8: "header_not_utf8" => "HeaderEncodingError",
        "the header is not UTF-8 (corrupt)";
    #[doc = "The header does not begin with `{`."]
    HeaderStart { found: u8 }: "header_start" => "HeaderStartError",
        "the header begins with byte 0x{found:02x} instead of '{{' (corrupt, or no safetensors file)";
    #[doc = "The header is not the JSON that the format asks for."]
    HeaderJson { reason: String }: "header_json" => "HeaderJsonError",
        "the header is not valid: {reason}";
    #[doc = "A name appears twice in the header."]
    DuplicateName: "duplicate_name" => "DuplicateNameError",
        "the name appears twice in the header";
    #[doc = "`__metadata__` is not a map of strings to strings."]
    MetadataNotString { key: String }: "metadata_not_string" => "MetadataError",
        "__metadata__ must map strings to strings, {key} does not";
    #[doc = "The dtype is none of the format's."]
    UnknownDtype { dtype: String }: "unknown_dtype" => "UnknownDtypeError",
        "unknown dtype {dtype:?}";
    #[doc = "A dimension is negative, a fraction or beyond 64 bits."]
    BadShape { value: String }: "bad_shape" => "BadShapeError",
        "a dimension must be an integer of at least 0, not {value}";
    #[doc = "Shape times dtype is beyond 64 bits, or not a whole number of bytes."]
    SizeOverflow { shape: Vec<u64> }: "size_overflow" => "SizeOverflowError",
        "the shape {shape:?} makes no whole number of bytes within 64 bits";
    #[doc = "Shape times dtype is not the length of the tensor's bytes."]
    SizeMismatch { expected_bytes: u64, found_bytes: u64 }: "size_mismatch" => "SizeMismatchError",
        "shape and dtype need {expected_bytes} bytes, data_offsets give {found_bytes}";
    #[doc = "An offset is negative, a fraction or beyond 64 bits."]
    BadOffset { value: String }: "bad_offset" => "BadOffsetError",
        "an offset must be an integer of at least 0, not {value}";
    #[doc = "A tensor ends before it begins."]
    OffsetsReversed { begin: u64, end: u64 }: "offsets_reversed" => "OffsetsReversedError",
        "data_offsets [{begin}, {end}] are reversed";
    #[doc = "A tensor reaches behind the file's end."]
    DataTruncated { end: u64, data_bytes: u64 }: "data_truncated" => "DataTruncatedError",
        "data_offsets end at {end} but only {data_bytes} bytes of data are there (truncated?)";
    #[doc = "Two tensors share bytes."]
    Overlap { other: String }: "overlap" => "OverlapError",
        "overlaps with tensor {other:?}";
    #[doc = "Bytes before a tensor belong to no tensor."]
    Hole { hole_bytes: u64 }: "hole" => "HoleError",
        "{hole_bytes} bytes before it belong to no tensor";
    #[doc = "Bytes behind the last tensor belong to no tensor."]
    TrailingBytes { trailing_bytes: u64 }: "trailing_bytes" => "TrailingBytesError",
        "{trailing_bytes} bytes behind the last tensor belong to no tensor";

    #[doc = "The binary sidecar of a header is damaged."]
    SidecarInvalid { reason: String }: "sidecar_invalid" => "SidecarInvalidError",
        "the sidecar is damaged: {reason}; remove it, or fetch the checkpoint again";

    #[doc = "The index of a sharded checkpoint is not the JSON it should be."]
    IndexInvalid { reason: String }: "index_invalid" => "IndexInvalidError",
        "the index is not valid: {reason}";
    #[doc = "The index names a shard that is not there."]
    ShardMissing { shard: String }: "shard_missing" => "ShardMissingError",
        "names the shard {shard:?}, which is not there; fetch it";
    #[doc = "The index and a shard disagree about where a tensor is."]
    IndexMismatch { shard: String }: "index_mismatch" => "IndexMismatchError",
        "the index and the shard {shard:?} disagree about this tensor: one has it, the other has not";
    #[doc = "Two shards hold a tensor of the same name."]
    ShardDuplicate { other: String }: "shard_duplicate" => "ShardDuplicateError",
        "the shard {other:?} holds a tensor of the same name";

    #[doc = "The file's length changed after it was opened."]
    FileChanged { expected_bytes: u64, found_bytes: u64 }: "file_changed" => "FileChangedError",
        "had {expected_bytes} bytes when it was opened and has {found_bytes} now; open it again";
    #[doc = "The kernel does not tell this user what is resident."]
    ResidencyHidden: "residency_hidden" => "ResidencyHiddenError",
        "the kernel tells only a file's owner, or who may write it, which of its pages are resident";
    #[doc = "The process may not lock so much memory."]
    PinRefused { size_bytes: u64, limit: Limit }: "pin_refused" => "PinRefusedError",
        "its {size_bytes} bytes may not be locked in memory, the limit of this process is {limit} in all; raise RLIMIT_MEMLOCK (`ulimit -l`, LimitMEMLOCK=), or grant CAP_IPC_LOCK";
    #[doc = "A file's bytes are not those that the digest was made of."]
    ChunkMismatch { chunk: u32, tensors: Names, expected: Box<str>, found: Box<str> }: "chunk_mismatch" => "ChunkMismatchError",
        "chunk {chunk}{tensors} is corrupt: expected xxh3:{expected}, found xxh3:{found}; fetch it again";
    #[doc = "A file's length is not the one in the digest."]
    LengthMismatch { expected_bytes: u64, found_bytes: u64 }: "length_mismatch" => "LengthMismatchError",
        "should have {expected_bytes} bytes and has {found_bytes}; fetch it again";
    #[doc = "A file that the digest names is missing."]
    FileMissing: "file_missing" => "FileMissingError",
        "is named by the digest and is not there; fetch it";
    #[doc = "A file that the digest does not name is there."]
    FileUnexpected: "file_unexpected" => "FileUnexpectedError",
        "is not named by the digest; remove it";
    #[doc = "The root digest differs."]
    RootMismatch { expected: String, found: String }: "root_mismatch" => "RootMismatchError",
        "should have the digest {expected} and has {found}";
    #[doc = "What should be a digest is none."]
    DigestInvalid { reason: String }: "digest_invalid" => "DigestInvalidError",
        "the digest to compare with is not valid: {reason}";
    #[doc = "There are no digests to verify a file by."]
    DigestsMissing: "digests_missing" => "DigestsMissingError",
        "has no sidecar with digests to verify it by; give its digest, or lay it out (stoker_loader.layout)";
    #[doc = "The destination exists already."]
    DestinationExists: "destination_exists" => "DestinationExistsError",
        "exists already, and nothing is ever written over it; name another destination";

    #[doc = "Another process fetches the same file."]
    FetchBusy: "fetch_busy" => "FetchBusyError",
        "another process is fetching it; wait for that one";
    #[doc = "What should be an arrival map is none."]
    ArrivalInvalid: "arrival_invalid" => "ArrivalInvalidError",
        "is no arrival map; nothing is being fetched here";
    #[doc = "Who fetched the file is gone, and it is not complete."]
    FetchAbandoned: "fetch_abandoned" => "FetchAbandonedError",
        "nobody fetches it any more and it is not complete; fetch it again, it goes on where it ended";
    #[doc = "What was waited for did not arrive in time."]
    WaitTimeout: "wait_timeout" => "WaitTimeoutError",
        "did not arrive in time";
    #[doc = "There is no source to fetch from."]
    NoSource: "no_source" => "NoSourceError",
        "no source was given to fetch it from";
    #[doc = "The source has no such object."]
    SourceMissing { source_url: String }: "source_missing" => "SourceMissingError",
        "{source_url} does not exist; check the name";
    #[doc = "The source refuses to give the object."]
    SourceRefused { source_url: String, status: u16 }: "source_refused" => "SourceRefusedError",
        "{source_url} refuses with HTTP {status}; a signature may have expired, sign the URL again";
    #[doc = "The object changed at its source while it was fetched."]
    SourceChanged { source_url: String }: "source_changed" => "SourceChangedError",
        "{source_url} is another object than the one that was asked for; fetch the new one";
    #[doc = "The source refuses a range that lies within the object."]
    RangeRefused { source_url: String }: "range_refused" => "RangeRefusedError",
        "{source_url} refuses a range within the length that was expected; the object may be shorter";
    #[doc = "The source does not answer with the range that was asked for."]
    RangeIgnored { source_url: String }: "range_ignored" => "RangeIgnoredError",
        "{source_url} ignores ranges; fetch from a server that answers them";
    #[doc = "The source failed, also when it was asked again."]
    SourceFailed { source_url: String, reason: String }: "source_failed" => "SourceFailedError",
        "{source_url} failed: {reason}";
    #[doc = "The NVIDIA driver's library cannot be loaded."]
    DriverMissing { reason: String }: "driver_missing" => "DriverMissingError",
        "the NVIDIA driver's library cannot be loaded ({reason}); install the driver, or load to the CPU";
    #[doc = "The NVIDIA driver lacks a function that copying needs."]
    DriverOutdated { symbol: &'static str }: "driver_outdated" => "DriverOutdatedError",
        "has no function {symbol}; update the NVIDIA driver";
    #[doc = "A call of the NVIDIA driver failed; `call` and `status` say which and how."]
    DriverCall { call: &'static str, status: i32, reason: String }: "driver_call" => "DriverCallError",
        "{call} failed with {reason}";
    #[doc = "The NVIDIA driver shows no device of this number."]
    DeviceUnknown { ordinal: u32, devices: u32 }: "device_unknown" => "DeviceUnknownError",
        "shows {devices} devices, none is cuda:{ordinal}; look at CUDA_VISIBLE_DEVICES";
    #[doc = "A destination is not memory of the device that it was given for."]
    DeviceAddress { ordinal: u32, address: u64, size_bytes: u64 }: "device_address" => "DeviceAddressError",
        "the {size_bytes} bytes at {address:#x} are not memory of cuda:{ordinal}; allocate them there";
    #[doc = "The plan of a tensor-parallel load makes no sense."]
    PlanInvalid { reason: String }: "plan_invalid" => "PlanInvalidError",
        "the plan is not valid: {reason}";
    #[doc = "No rule of the plan is for this tensor."]
    TensorUnplanned: "tensor_unplanned" => "TensorUnplannedError",
        "no rule of the plan is for it; add one (\"*\" fits all that others leave)";
    #[doc = "The plan cannot split a tensor of this shape among so many ranks."]
    SplitMismatch { reason: String }: "split_mismatch" => "SplitMismatchError",
        "the plan does not fit: {reason}; replicate it, or take another number of ranks";

    #[doc = "There is no way of this name to read a file."]
    BackendUnknown { name: String }: "backend_unknown" => "BackendUnknownError",
        "there is no source {name:?}; ask for auto, populate, direct, io_uring, direct_pread or pread";
    #[doc = "The machine, its sandbox or the file system refuses the way of reading that was asked for."]
    BackendRefused { reasons: String }: "backend_refused" => "BackendRefusedError",
        "cannot be read so here ({reasons}); ask for source=\"auto\"";

    #[doc = "The progress callback raised, or a signal arrived."]
    Cancelled: "cancelled" => "LoadCancelledError",
        "cancelled";
}

/// Tensors that are to blame, shown without the first: that one is in front of the message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names(pub Box<[String]>);

impl fmt::Display for Names {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((_, others)) = self.0.split_first() else { return Ok(()) };
        let (shown, more) = others.split_at(others.len().min(MAX_NAMES_SHOWN));
        if !shown.is_empty() {
            write!(
                out,
                ", with {}",
                shown.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
            )?;
        }
        match more.len() {
            0 => Ok(()),
            count => write!(out, " and {count} more"),
        }
    }
}

/// An error with its place: the file, and where they are known the tensor and the byte offset
/// in that file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What went wrong.
    pub kind: Kind,
    /// The file or directory that it is about.
    pub file: PathBuf,
    /// The tensor, where one is to blame.
    pub tensor: Option<String>,
    /// The byte in the file (not in its data section) where it shows.
    pub offset: Option<u64>,
}

impl Error {
    /// An error about a whole file.
    pub fn new(file: &Path, kind: Kind) -> Self {
        Self { kind, file: file.to_path_buf(), tensor: None, offset: None }
    }

    /// The same error, blaming a tensor.
    #[must_use]
    pub fn tensor(mut self, name: &str) -> Self {
        self.tensor = Some(name.to_owned());
        self
    }

    /// The same error at a byte of the file.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// Wraps a failed system call; a missing file becomes [`Kind::NotFound`].
    pub fn io(file: &Path, action: &'static str, error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::Io { action, reason: error.to_string(), errno: error.raw_os_error() },
        };
        Self::new(file, kind)
    }

    /// Wraps the `errno` that a raw system call just left.
    pub fn last_os(file: &Path, action: &'static str) -> Self {
        Self::io(file, action, &std::io::Error::last_os_error())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: ", self.file.display())?;
        if let Some(tensor) = &self.tensor {
            write!(out, "tensor {tensor:?}: ")?;
        }
        write!(out, "{}", self.kind)?;
        if let Some(offset) = self.offset {
            write!(out, " (at byte {offset})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_and_classes_are_unique() {
        let codes: HashSet<_> = Kind::TABLE.iter().map(|row| row.0).collect();
        let classes: HashSet<_> = Kind::TABLE.iter().map(|row| row.1).collect();
        assert_eq!(codes.len(), Kind::TABLE.len());
        assert_eq!(classes.len(), Kind::TABLE.len());
    }

    #[test]
    fn message_names_file_tensor_and_offset() {
        let error = Error::new(Path::new("a.safetensors"), Kind::Hole { hole_bytes: 3 });
        assert_eq!(
            error.tensor("w").at(12).to_string(),
            "a.safetensors: tensor \"w\": 3 bytes before it belong to no tensor (at byte 12)"
        );
    }
}
