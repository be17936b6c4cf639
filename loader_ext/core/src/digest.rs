//! A checkpoint's identity: XXH3-128 of every 8 MiB chunk, and a BLAKE3 root over those.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, Kind, Names, Result};
use crate::inventory::{Entry, Links, inventory};
use crate::pieces::{self, Step};
use crate::xxh3::Xxh3;

/// The bytes that one XXH3-128 is over; the last chunk of a file is shorter.
pub const CHUNK_BYTES: u64 = 8 << 20;
/// What a thread holds at a time.
const READ_BYTES: usize = 1 << 20;
const DOMAIN: &[u8] = b"stoker digest 1\n";
const ROOT_PREFIX: &str = "blake3:";

/// The digest of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDigest {
    /// Its path below the root, or its own name.
    pub name: String,
    /// Its length.
    pub size_bytes: u64,
    /// XXH3-128 of each chunk.
    pub chunks: Vec<u128>,
}

/// The digest of a file or a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// `blake3:` and 64 hexadecimal digits.
    pub root: String,
    /// The files by name.
    pub files: Vec<FileDigest>,
}

impl Digest {
    /// The digest of a directory's files, which are sorted by name.
    pub fn of_directory(files: Vec<FileDigest>) -> Self {
        Self { root: root(&files, true), files }
    }

    /// Fails with `RootMismatch` unless the root is that of the files, be they a directory's or one
    /// file alone.
    pub fn check(&self, path: &Path) -> Result<()> {
        let alone = self.files.len() == 1 && root(&self.files, false) == self.root;
        if alone { Ok(()) } else { check_root(path, &self.root, &root(&self.files, true)) }
    }

    /// The digest of one file; its name is no part of the root, so it may be renamed.
    pub fn of_file(file: FileDigest) -> Self {
        let files = vec![file];
        Self { root: root(&files, false), files }
    }
}

/// Digests a file or every regular file under a directory.
///
/// `watch` sees the bytes done so far and may stop it. Errors: `SymlinkRefused`, `NotFound`,
/// `FileChanged` if a file's length changes meanwhile, `Io`.
pub fn digest(path: &Path, watch: impl FnMut(u64) -> Result<()>) -> Result<Digest> {
    let entries = inventory(path, Links::Refuse)?;
    let files = digest_entries(&entries, watch)?;
    Ok(assemble(path, files))
}

/// Fails unless a file or directory is what the digest was made of.
///
/// Names and lengths are compared before any byte is read; of several corrupt chunks the first is
/// named. Errors: `FileMissing`, `FileUnexpected`, `LengthMismatch`, `ChunkMismatch`,
/// `RootMismatch` if the digest contradicts itself, and those of [`digest`].
pub fn verify(path: &Path, expected: &Digest, watch: impl FnMut(u64) -> Result<()>) -> Result<()> {
    if !expected.files.is_sorted_by(|a, b| a.name < b.name) {
        let reason = "its files are not sorted by name".to_owned();
        return Err(Error::new(path, Kind::DigestInvalid { reason }));
    }
    let entries = inventory(path, Links::Refuse)?;
    // A single file may have been renamed since.
    if path.is_dir() || expected.files.len() != 1 {
        compare_names(path, &expected.files, &entries)?;
    }
    for (file, entry) in expected.files.iter().zip(&entries) {
        if file.size_bytes != entry.size_bytes {
            let (expected_bytes, found_bytes) = (file.size_bytes, entry.size_bytes);
            let kind = Kind::LengthMismatch { expected_bytes, found_bytes };
            return Err(Error::new(&entry.path, kind));
        }
    }
    let files = digest_entries(&entries, watch)?;
    for ((file, found), entry) in expected.files.iter().zip(&files).zip(&entries) {
        let mut pairs = file.chunks.iter().zip(&found.chunks).enumerate();
        if let Some((chunk, (expected, found))) = pairs.find(|(_, (a, b))| a != b) {
            let (expected, found) =
                (format!("{expected:032x}").into(), format!("{found:032x}").into());
            let tensors = Names::default();
            let kind = Kind::ChunkMismatch { chunk: chunk as u32, tensors, expected, found };
            return Err(Error::new(&entry.path, kind).at(chunk as u64 * CHUNK_BYTES));
        }
    }
    check_root(path, &expected.root, &assemble(path, files).root)
}

/// Fails with `RootMismatch` unless a file or directory has this root.
pub fn verify_root(
    path: &Path,
    expected: &str,
    watch: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let digits = expected.strip_prefix(ROOT_PREFIX);
    if digits.is_none_or(|digits| blake3::Hash::from_str(digits).is_err()) {
        let reason = format!("{expected:?} is not \"blake3:\" and 64 hexadecimal digits");
        return Err(Error::new(path, Kind::DigestInvalid { reason }));
    }
    check_root(path, expected, &digest(path, watch)?.root)
}

fn check_root(path: &Path, expected: &str, found: &str) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let kind = Kind::RootMismatch { expected: expected.to_owned(), found: found.to_owned() };
    Err(Error::new(path, kind))
}

fn compare_names(root: &Path, expected: &[FileDigest], found: &[Entry]) -> Result<()> {
    let is_found = |name: &str| found.iter().any(|entry| entry.name == name);
    if let Some(file) = expected.iter().find(|file| !is_found(&file.name)) {
        return Err(Error::new(&root.join(&file.name), Kind::FileMissing));
    }
    let is_expected = |name: &str| expected.iter().any(|file| file.name == name);
    match found.iter().find(|entry| !is_expected(&entry.name)) {
        Some(entry) => Err(Error::new(&entry.path, Kind::FileUnexpected)),
        None => Ok(()),
    }
}

fn assemble(path: &Path, mut files: Vec<FileDigest>) -> Digest {
    if !path.is_dir() && files.len() == 1 {
        return Digest::of_file(files.remove(0));
    }
    Digest::of_directory(files)
}

fn root(files: &[FileDigest], with_names: bool) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN).update(&[u8::from(with_names)]);
    for file in files {
        if with_names {
            hasher.update(&(file.name.len() as u64).to_le_bytes()).update(file.name.as_bytes());
        }
        hasher.update(&file.size_bytes.to_le_bytes());
        for chunk in &file.chunks {
            hasher.update(&chunk.to_be_bytes());
        }
    }
    format!("{ROOT_PREFIX}{}", hasher.finalize().to_hex())
}

fn digest_entries(
    entries: &[Entry],
    watch: impl FnMut(u64) -> Result<()>,
) -> Result<Vec<FileDigest>> {
    let work: Vec<(usize, u64)> = entries
        .iter()
        .enumerate()
        .flat_map(|(file, entry)| {
            (0..entry.size_bytes).step_by(CHUNK_BYTES as usize).map(move |begin| (file, begin))
        })
        .collect();
    let digests: Vec<std::sync::OnceLock<u128>> = work.iter().map(|_| <_>::default()).collect();
    pieces::run(
        work.len(),
        pieces::processor_threads(),
        || (vec![0; READ_BYTES], None),
        |(buffer, open), index| {
            let (file, begin) = work[index];
            let (value, size_bytes) = digest_chunk(&entries[file], file, begin, buffer, open)?;
            let fresh = digests[index].set(value).is_ok();
            debug_assert!(fresh, "each chunk is digested once");
            Ok(Step::Done(size_bytes))
        },
        watch,
    )?;
    let mut files: Vec<FileDigest> = entries
        .iter()
        .map(|e| FileDigest { name: e.name.clone(), size_bytes: e.size_bytes, chunks: vec![] })
        .collect();
    for ((file, _), value) in work.iter().zip(digests) {
        files[*file].chunks.push(value.into_inner().expect("every chunk was digested"));
    }
    Ok(files)
}

/// Digests the chunk at `begin`; `open` keeps the last file that this thread used.
fn digest_chunk(
    entry: &Entry,
    index: usize,
    begin: u64,
    buffer: &mut [u8],
    open: &mut Option<(usize, File)>,
) -> Result<(u128, u64)> {
    if open.as_ref().is_none_or(|(held, _)| *held != index) {
        let file = File::open(&entry.path).map_err(|e| Error::io(&entry.path, "open", &e))?;
        *open = Some((index, file));
    }
    let (_, file) = open.as_ref().expect("it was opened above");
    let end = entry.size_bytes.min(begin + CHUNK_BYTES);
    let mut hasher = Xxh3::default();
    let mut offset = begin;
    while offset < end {
        let room = (end - offset).min(READ_BYTES as u64) as usize;
        match file.read_at(&mut buffer[..room], offset) {
            Ok(0) => {
                let (expected_bytes, found_bytes) = (entry.size_bytes, offset);
                let kind = Kind::FileChanged { expected_bytes, found_bytes };
                return Err(Error::new(&entry.path, kind));
            }
            Ok(count) => {
                hasher.update(&buffer[..count]);
                offset += count as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(&entry.path, "read", &error).at(offset)),
        }
    }
    Ok((hasher.finish(), end - begin))
}

/// Digests a stream of bytes chunk by chunk, while they are warm.
#[derive(Default)]
pub struct StreamDigest {
    hasher: Xxh3,
    size_bytes: u64,
    chunks: Vec<u128>,
}

impl StreamDigest {
    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = CHUNK_BYTES - self.size_bytes % CHUNK_BYTES;
            let (now, later) = bytes.split_at(bytes.len().min(room as usize));
            self.hasher.update(now);
            self.size_bytes += now.len() as u64;
            if self.size_bytes.is_multiple_of(CHUNK_BYTES) {
                self.chunks.push(std::mem::take(&mut self.hasher).finish());
            }
            bytes = later;
        }
    }

    /// Bytes taken so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The digest of all bytes as a file of this name.
    pub fn finish(mut self, name: String) -> FileDigest {
        if !self.size_bytes.is_multiple_of(CHUNK_BYTES) {
            self.chunks.push(self.hasher.finish());
        }
        FileDigest { name, size_bytes: self.size_bytes, chunks: self.chunks }
    }
}

#[cfg(test)]
#[path = "digest_tests.rs"]
mod tests;
