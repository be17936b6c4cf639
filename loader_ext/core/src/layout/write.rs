//! Writes a laid-out checkpoint: into a partial directory beside the destination, then renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::checkpoint::{
    Checkpoint, INDEX_FILE, SINGLE_FILE, Sidecars, is_pickle_name, is_safetensors_name,
    sidecar_path,
};
use crate::digest::{Digest, FileDigest, StreamDigest};
use crate::error::{Error, Kind, Result};
use crate::header::{self, LENGTH_BYTES, is_pickle};
use crate::inventory::{Entry, Links, inventory};
use crate::layout::plan::{Plan, Source, plan};
use crate::sidecar;

/// The sidecar of [`SINGLE_FILE`].
const SIDECAR_FILE: &str = "model.stx";
/// What is read, digested and written at a time.
const COPY_BYTES: usize = 4 << 20;
/// Partial directories of other writers that are stepped over.
const MAX_PARTIALS: u32 = 1000;

/// What a layout has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutReport {
    /// The identity of the destination, exactly what [`crate::digest::digest`] finds there.
    pub digest: Digest,
    /// The bytes of all files at the destination.
    pub checkpoint_bytes: u64,
    /// How many tensors there are.
    pub tensors: usize,
    /// The names of each group that is one view now.
    pub fused_groups: Vec<Vec<String>>,
    /// Files of the source that were left out: pickles, other weights, hidden files.
    pub skipped: Vec<String>,
}

/// Writes the checkpoint at `source` (a file or a directory) to the new directory `destination`.
///
/// All shards become one `model.safetensors` with its sidecar; other files are copied as they are. `watch` sees
/// `(bytes done, bytes in all)` and may stop it. Everything is on disk before the destination
/// appears under its name; on an error nothing remains. Errors: those of [`Checkpoint::open`],
/// `DestinationExists`, `HeaderTooLong`, `FileChanged`, `PickleRefused`, `Io`.
pub fn layout(
    source: &Path,
    destination: &Path,
    mut watch: impl FnMut(u64, u64) -> Result<()>,
) -> Result<LayoutReport> {
    let checkpoint = Checkpoint::open_with(source, Sidecars::Ignore)?;
    if fs::symlink_metadata(destination).is_ok() {
        return Err(Error::new(destination, Kind::DestinationExists));
    }
    let tensors: Vec<Source> = checkpoint
        .shards
        .iter()
        .enumerate()
        .flat_map(|(shard, from)| {
            from.header.tensors.iter().map(move |tensor| Source { shard, tensor })
        })
        .collect();
    let plan = plan(&tensors, &checkpoint.metadata());
    let (others, skipped) = sort_files(source, &checkpoint)?;

    let text = &plan.header[LENGTH_BYTES as usize..];
    let file = destination.join(SINGLE_FILE);
    // Headers of many shards may be more than one file can have.
    header::parse_length(&file, &plan.header, plan.file_bytes)?;
    let header = header::parse(&file, text, plan.file_bytes)?;
    let total = plan.file_bytes
        + sidecar::encoded_bytes(&header, plan.file_bytes)
        + others.iter().map(|entry| entry.size_bytes).sum::<u64>();
    let mut done = 0;
    let mut advance = |bytes: usize| {
        done += bytes as u64;
        watch(done, total)
    };
    let partial = Partial::create(destination)?;
    let weights = write_weights(&checkpoint, &plan, &partial.path, &mut advance)?;
    let sidecar = sidecar::encode(&header, text, plan.file_bytes, &weights.chunks);
    let mut files = vec![weights, write_sidecar(&sidecar, &partial.path, &mut advance)?];
    for entry in &others {
        files.push(copy_file(entry, &partial.path, &mut advance)?);
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    partial.publish(destination)?;
    Ok(LayoutReport {
        digest: Digest::of_directory(files),
        checkpoint_bytes: total,
        tensors: tensors.len(),
        fused_groups: plan.fused_groups,
        skipped,
    })
}

/// The files to copy beside the weights, and the names of those to leave out.
fn sort_files(source: &Path, checkpoint: &Checkpoint) -> Result<(Vec<Entry>, Vec<String>)> {
    let mut copied = Vec::new();
    let mut skipped = Vec::new();
    if !source.is_dir() {
        return Ok((copied, skipped));
    }
    for entry in inventory(source, Links::Follow)? {
        let hidden = entry.name.split('/').any(|part| part.starts_with('.'));
        let weights = !entry.name.contains('/') && is_safetensors_name(&entry.name);
        let merged = checkpoint.shards.iter().any(|shard| {
            shard.path == entry.path || sidecar_path(&shard.path).as_ref() == Some(&entry.path)
        });
        if merged || entry.name == INDEX_FILE {
            continue;
        } else if hidden || weights || is_pickle_name(&entry.name) || entry.name == SIDECAR_FILE {
            skipped.push(entry.name);
        } else {
            copied.push(entry);
        }
    }
    Ok((copied, skipped))
}

fn write_weights(
    checkpoint: &Checkpoint,
    plan: &Plan,
    directory: &Path,
    advance: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<FileDigest> {
    let mut output = Output::create(directory, SINGLE_FILE)?;
    output.write(&plan.header)?;
    advance(plan.header.len())?;
    let mut buffer = vec![0; COPY_BYTES];
    for Source { shard, tensor } in &plan.tensors {
        let shard = &checkpoint.shards[*shard];
        let end = tensor.offset_bytes + tensor.size_bytes;
        let mut offset = tensor.offset_bytes;
        while offset < end {
            let piece = &mut buffer[..COPY_BYTES.min((end - offset) as usize)];
            if let Err(error) = shard.file.read_exact_at(piece, offset) {
                shard.check_length()?;
                let error = Error::io(&shard.path, "read", &error);
                return Err(error.tensor(&tensor.name).at(offset));
            }
            output.write(piece)?;
            advance(piece.len())?;
            offset += piece.len() as u64;
        }
    }
    output.finish()
}

fn write_sidecar(
    bytes: &[u8],
    directory: &Path,
    advance: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<FileDigest> {
    let mut output = Output::create(directory, SIDECAR_FILE)?;
    output.write(bytes)?;
    advance(bytes.len())?;
    output.finish()
}

fn copy_file(
    entry: &Entry,
    directory: &Path,
    advance: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<FileDigest> {
    let file = File::open(&entry.path).map_err(|e| Error::io(&entry.path, "open", &e))?;
    let mut output = Output::create(directory, &entry.name)?;
    let mut buffer = vec![0; COPY_BYTES.min(entry.size_bytes as usize)];
    let mut offset = 0;
    while offset < entry.size_bytes {
        let room = (entry.size_bytes - offset).min(COPY_BYTES as u64) as usize;
        let piece = &mut buffer[..room];
        file.read_exact_at(piece, offset)
            .map_err(|error| Error::io(&entry.path, "read", &error).at(offset))?;
        // A pickle by content, whatever its name says.
        if offset == 0 && is_pickle(piece) {
            return Err(Error::new(&entry.path, Kind::PickleRefused));
        }
        output.write(piece)?;
        advance(piece.len())?;
        offset += room as u64;
    }
    output.finish()
}

/// A new file whose bytes are digested on their way.
struct Output {
    name: String,
    path: PathBuf,
    file: File,
    digest: StreamDigest,
}

impl Output {
    fn create(directory: &Path, name: &str) -> Result<Self> {
        let path = directory.join(name);
        let parent = path.parent().unwrap_or(directory);
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, "mkdir", &e))?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| Error::io(&path, "create", &error))?;
        Ok(Self { name: name.to_owned(), path, file, digest: StreamDigest::default() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|error| Error::io(&self.path, "write", &error).at(self.digest.size_bytes()))?;
        self.digest.update(bytes);
        Ok(())
    }

    fn finish(self) -> Result<FileDigest> {
        self.file.sync_all().map_err(|error| Error::io(&self.path, "fsync", &error))?;
        Ok(self.digest.finish(self.name))
    }
}

/// A directory that is removed unless it is published.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn create(destination: &Path) -> Result<Self> {
        let name = destination.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::new(destination, Kind::NameNotUtf8))?;
        let parent = parent_of(destination);
        fs::create_dir_all(&parent).map_err(|error| Error::io(&parent, "mkdir", &error))?;
        for number in 0..MAX_PARTIALS {
            let path = parent.join(format!(".{name}.partial-{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(&path, "mkdir", &error)),
            }
        }
        Err(Error::new(destination, Kind::DestinationExists))
    }

    /// Makes the directory durable and gives it its name in one step.
    fn publish(mut self, destination: &Path) -> Result<()> {
        sync_tree(&self.path)?;
        fs::rename(&self.path, destination).map_err(|error| match error.kind() {
            ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
                Error::new(destination, Kind::DestinationExists)
            }
            _ => Error::io(destination, "rename", &error),
        })?;
        self.path.clear(); // what another makes under that name by now is not ours
        sync_directory(&parent_of(destination))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // An error on the way out has no one to go to, and the one that led here is the one to
            // report.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn sync_tree(directory: &Path) -> Result<()> {
    let failed = |error| Error::io(directory, "reading the directory", &error);
    for item in fs::read_dir(directory).map_err(failed)? {
        let item = item.map_err(failed)?;
        if item.file_type().map_err(failed)?.is_dir() {
            sync_tree(&item.path())?;
        }
    }
    sync_directory(directory)
}

fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(|error| Error::io(directory, "fsync", &error))
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
