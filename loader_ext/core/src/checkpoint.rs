//! A checkpoint's files: one safetensors file, or a directory with one or with shards.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::arrival::{Arrival, Arriving, MAP_SUFFIX};
use crate::error::{Error, Kind, Result};
use crate::header::{self, Header};
use crate::index::{self, Index};
use crate::sidecar::{self, Sidecar};
use crate::verification::Verification;

/// The file of an unsharded checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The index of a sharded one.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// Tries to open a file that is replaced meanwhile.
const MAX_OPENINGS: usize = 8;
const EXTENSION: &str = ".safetensors";
const PICKLE_EXTENSIONS: [&str; 6] = [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"];

/// One open safetensors file with a checked header.
#[derive(Debug)]
pub struct Shard {
    /// Its name in the checkpoint's directory.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// The open file: what is mapped is what was checked, whatever the path names later.
    pub file: Arc<File>,
    /// Its length when it was opened.
    pub file_bytes: u64,
    /// Its tensors, which may be asked for after the file was closed.
    pub header: Arc<Header>,
    /// Says which of its bytes are there, if it was still on its way when it was opened.
    pub arriving: Option<Arriving>,
    /// What its sidecar says of its chunks, until `verification` has it.
    pub(crate) sidecar_chunks: Option<Vec<u128>>,
    /// Compares its chunks as they come in, if that was asked for.
    pub verification: Option<Arc<Verification>>,
}

/// How to wait for files that are still on their way.
pub struct Waiter<'a> {
    /// For how long nothing may arrive.
    pub patience: Duration,
    /// Called now and then; stops the wait by an error.
    pub watch: &'a mut dyn FnMut() -> Result<()>,
}

/// Whether a sidecar beside a file stands for its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sidecars {
    /// If it is bound to the header's bytes.
    Believe,
    /// Never: the header alone counts where files come from someone else.
    Ignore,
}

/// An open checkpoint: every header is checked, no tensor's bytes have been read.
#[derive(Debug)]
pub struct Checkpoint {
    /// The path that was opened.
    pub path: PathBuf,
    /// The files in name order.
    pub shards: Vec<Shard>,
}

impl Checkpoint {
    /// Opens a file or a directory and checks all headers, and the index where there is one.
    ///
    /// A directory is looked through for `model.safetensors`, else for shards named by
    /// `model.safetensors.index.json`, else for any `*.safetensors`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_by(path, Sidecars::Believe, None)
    }

    /// The same, with a choice whether sidecars are read.
    pub fn open_with(path: &Path, sidecars: Sidecars) -> Result<Self> {
        Self::open_by(path, sidecars, None)
    }

    /// The same, where files may still be on their way ([`crate::fetch`]): waits for headers and
    /// index, and for nothing else. Whoever reads a tensor then has to wait for its bytes.
    ///
    /// Errors: as `open`, and `FetchAbandoned`, `WaitTimeout`, `ArrivalInvalid`.
    pub fn open_arriving(path: &Path, mut waiter: Waiter<'_>) -> Result<Self> {
        // A sidecar that is not there yet is none: the header is as good, and here.
        Self::open_by(path, Sidecars::Believe, Some(&mut waiter))
    }

    fn open_by(
        path: &Path,
        sidecars: Sidecars,
        mut waiter: Option<&mut Waiter<'_>>,
    ) -> Result<Self> {
        if !path.is_dir() {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let shard = Shard::open(path, name.unwrap_or_default(), sidecars, waiter)?;
            return Ok(Self { path: path.to_path_buf(), shards: vec![shard] });
        }
        let (names, index) = find_shards(path, waiter.as_deref_mut())?;
        let mut shards = Vec::with_capacity(names.len());
        for name in names {
            let path = path.join(&name);
            shards.push(Shard::open(&path, name, sidecars, waiter.as_deref_mut())?);
        }
        check_shards(&path.join(INDEX_FILE), &shards, index.as_ref())?;
        Ok(Self { path: path.to_path_buf(), shards })
    }

    /// The bytes of all files.
    pub fn checkpoint_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.file_bytes).sum()
    }

    /// `__metadata__` of all files; where they disagree the first in name order is right.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let mut merged = BTreeMap::new();
        for shard in &self.shards {
            for (key, value) in &shard.header.metadata {
                merged.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        merged
    }
}

impl Shard {
    fn open(
        path: &Path,
        name: String,
        sidecars: Sidecars,
        mut waiter: Option<&mut Waiter<'_>>,
    ) -> Result<Self> {
        let (file, arrival) = open_file(path, waiter.as_deref_mut())?;
        let file_bytes = file.metadata().map_err(|error| Error::io(path, "fstat", &error))?.len();
        let mut read = |bytes: &mut [u8], offset| {
            if let (Some(waiter), Some(arrival)) = (&mut waiter, &arrival) {
                waiter.wait(arrival, offset, bytes.len() as u64)?;
            }
            file.read_exact_at(bytes, offset).map_err(|error| Error::io(path, "read", &error))
        };
        let mut start = vec![0; file_bytes.min(header::LENGTH_BYTES) as usize];
        read(&mut start, 0)?;
        let header_bytes = header::parse_length(path, &start, file_bytes)?;
        let mut bytes = vec![0; header_bytes as usize];
        read(&mut bytes, header::LENGTH_BYTES)?;
        let sidecar = match sidecars {
            Sidecars::Believe => read_sidecar(path, &bytes, file_bytes)?,
            Sidecars::Ignore => None,
        };
        let (header, sidecar_chunks) = match sidecar {
            Some(sidecar) => (sidecar.header, Some(sidecar.chunks)),
            None => (header::parse(path, &bytes, file_bytes)?, None),
        };
        let arriving = waiter.zip(arrival).map(|(waiter, arrival)| Arriving {
            arrival: Arc::new(arrival),
            patience: waiter.patience,
        });
        let (path, file, header) = (path.to_path_buf(), Arc::new(file), Arc::new(header));
        let verification = None;
        Ok(Self { name, path, file, file_bytes, header, arriving, sidecar_chunks, verification })
    }

    /// Fails with `FileChanged` if the file's length is no longer the one that was checked.
    pub fn check_length(&self) -> Result<()> {
        let found = self.file.metadata().map_err(|e| Error::io(&self.path, "fstat", &e))?;
        if found.len() == self.file_bytes {
            return Ok(());
        }
        let kind = Kind::FileChanged { expected_bytes: self.file_bytes, found_bytes: found.len() };
        Err(Error::new(&self.path, kind))
    }
}

impl Waiter<'_> {
    fn wait(&mut self, arrival: &Arrival, begin: u64, size_bytes: u64) -> Result<()> {
        let chunks = arrival.subject().chunks_of(begin, size_bytes);
        arrival.wait(chunks, self.patience, self.watch)
    }
}

/// Opens a file of a checkpoint; with a waiter also one that is still on its way, and then gives
/// its map, once its first chunk is there.
fn open_file(path: &Path, waiter: Option<&mut Waiter<'_>>) -> Result<(File, Option<Arrival>)> {
    match (open_whole(path), waiter) {
        (Err(Error { kind: Kind::NotFound, .. }), Some(waiter)) => open_part(path, waiter),
        (opened, _) => opened.map(|file| (file, None)),
    }
}

fn open_whole(path: &Path) -> Result<File> {
    // Opening a pipe would block and a device may have effects: look first.
    let found = fs::metadata(path).map_err(|error| Error::io(path, "stat", &error))?;
    if !found.is_file() {
        return Err(Error::new(path, Kind::SymlinkRefused));
    }
    File::open(path).map_err(|error| Error::io(path, "open", &error))
}

fn open_part(path: &Path, waiter: &mut Waiter<'_>) -> Result<(File, Option<Arrival>)> {
    // Each turn ends the fetch that the one before saw beginning: no fetch is that fast for long.
    for _ in 0..MAX_OPENINGS {
        match Arrival::watch(path) {
            Ok(arrival) => {
                waiter.wait(&arrival, 0, 1)?;
                if let Some(file) = arrival.open(path)? {
                    return Ok((file, Some(arrival)));
                }
            }
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
        // It has its name by now, or another fetch began.
        match open_whole(path) {
            Err(error) if error.kind == Kind::NotFound => {}
            opened => return opened.map(|file| (file, None)),
        }
    }
    Err(Error::new(path, Kind::NotFound))
}

/// Where the sidecar of a safetensors file is, if it has one; `None` for files of other names.
pub fn sidecar_path(path: &Path) -> Option<PathBuf> {
    let named = path.file_name()?.to_str().is_some_and(is_safetensors_name);
    named.then(|| path.with_extension(sidecar::EXTENSION))
}

/// What the sidecar says, or `None` without one that is bound to these bytes.
fn read_sidecar(path: &Path, text: &[u8], file_bytes: u64) -> Result<Option<Sidecar>> {
    let Some(path) = sidecar_path(path) else { return Ok(None) };
    match sidecar_bytes(&path)? {
        Some(bytes) => sidecar::parse(&path, &bytes, text, file_bytes),
        None => Ok(None),
    }
}

/// The bytes of a sidecar, if there is one.
pub(crate) fn sidecar_bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        found => found.map_err(|error| Error::io(path, "stat", &error))?,
    };
    if !found.is_file() {
        return Err(Error::new(path, Kind::SymlinkRefused));
    }
    if found.len() > sidecar::LIMIT_BYTES {
        let reason = format!("{} bytes are more than {}", found.len(), sidecar::LIMIT_BYTES);
        return Err(Error::new(path, Kind::SidecarInvalid { reason }));
    }
    fs::read(path).map(Some).map_err(|error| Error::io(path, "read", &error))
}

/// Whether a file's name is one that pickled weights go by.
pub fn is_pickle_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    PICKLE_EXTENSIONS.iter().any(|extension| name.ends_with(extension))
}

/// Whether a file's name is that of a safetensors file.
pub fn is_safetensors_name(name: &str) -> bool {
    name.ends_with(EXTENSION)
}

fn find_shards(
    directory: &Path,
    waiter: Option<&mut Waiter<'_>>,
) -> Result<(BTreeSet<String>, Option<Index>)> {
    let failed = |error| Error::io(directory, "reading the directory", &error);
    let mut names = BTreeSet::new();
    for item in fs::read_dir(directory).map_err(failed)? {
        // A name that is not UTF-8 cannot be one that is looked for here.
        let Ok(name) = item.map_err(failed)?.file_name().into_string() else { continue };
        match name.strip_suffix(MAP_SUFFIX) {
            Some(arriving) if waiter.is_some() => names.insert(arriving.to_owned()),
            _ => names.insert(name),
        };
    }
    if names.contains(SINGLE_FILE) {
        return Ok((BTreeSet::from([SINGLE_FILE.to_owned()]), None));
    }
    if names.contains(INDEX_FILE) {
        let index = read_index(&directory.join(INDEX_FILE), waiter)?;
        let shards: BTreeSet<String> = index.values().cloned().collect();
        if let Some(shard) = shards.iter().find(|shard| !names.contains(*shard)) {
            let kind = Kind::ShardMissing { shard: shard.clone() };
            return Err(Error::new(&directory.join(INDEX_FILE), kind));
        }
        return Ok((shards, Some(index)));
    }
    let shards: BTreeSet<_> = names.iter().filter(|n| is_safetensors_name(n)).cloned().collect();
    if !shards.is_empty() {
        return Ok((shards, None));
    }
    let kind = match names.iter().any(|name| is_pickle_name(name)) {
        true => Kind::PickleRefused,
        false => Kind::NoSafetensors,
    };
    Err(Error::new(directory, kind))
}

fn read_index(path: &Path, mut waiter: Option<&mut Waiter<'_>>) -> Result<Index> {
    let invalid = |reason: String| Error::new(path, Kind::IndexInvalid { reason });
    let (file, arrival) = open_file(path, waiter.as_deref_mut())?;
    let length = file.metadata().map_err(|error| Error::io(path, "fstat", &error))?.len();
    if length > header::HEADER_LIMIT_BYTES {
        return Err(invalid(format!("{length} bytes are too many")));
    }
    if let (Some(waiter), Some(arrival)) = (waiter, &arrival) {
        waiter.wait(arrival, 0, length)?;
    }
    let mut text = vec![0; length as usize];
    file.read_exact_at(&mut text, 0).map_err(|error| Error::io(path, "read", &error))?;
    index::parse(path, &text)
}

/// Each name is in one shard alone, and shards and index agree.
fn check_shards(index_path: &Path, shards: &[Shard], index: Option<&Index>) -> Result<()> {
    if shards.len() == 1 && index.is_none() {
        return Ok(()); // the header's own rules say all
    }
    let mut owner: HashMap<&str, &Shard> = HashMap::new();
    for shard in shards {
        for tensor in &shard.header.tensors {
            if let Some(other) = owner.insert(&tensor.name, shard) {
                let kind = Kind::ShardDuplicate { other: other.name.clone() };
                let error = Error::new(&shard.path, kind).tensor(&tensor.name);
                return Err(error.at(tensor.offset_bytes));
            }
        }
    }
    let Some(index) = index else { return Ok(()) };
    let mismatch = |tensor: &str, shard: &str| {
        let kind = Kind::IndexMismatch { shard: shard.to_owned() };
        Error::new(index_path, kind).tensor(tensor)
    };
    for (tensor, shard) in index {
        if owner.get(tensor.as_str()).is_none_or(|found| found.name != *shard) {
            return Err(mismatch(tensor, shard));
        }
    }
    let mut unlisted: Vec<_> =
        owner.iter().filter(|(name, _)| !index.contains_key(**name)).collect();
    unlisted.sort_by_key(|(name, _)| **name);
    match unlisted.first() {
        Some((name, shard)) => Err(mismatch(name, &shard.name)),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
