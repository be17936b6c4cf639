//! What this machine, its sandbox and this file allow, found out by doing it once.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;

use super::backend::{self, Backend, Cached, Choice, Sink, Wanted};
use super::{CheckedFile, Direct};
use crate::checkpoint::{Checkpoint, Shard};
use crate::error::{Error, Kind, Result};
use crate::mapping::{Mapping, page_bytes};
use crate::populate::Advice;
use crate::residency;

/// Takes the best back end that works for all files of a checkpoint.
///
/// Errors: `BackendRefused` if none of those that are wanted works, `FileChanged`.
pub fn choose(checkpoint: &Checkpoint, wanted: Wanted, sink: Sink) -> Result<Choice> {
    let cached = match (wanted, sink) {
        (Wanted::Auto, Sink::Device) => cached(checkpoint)?,
        _ => Cached::Unknown, // no decision depends on it
    };
    let candidates = backend::candidates(wanted, sink, cached);
    backend::choose(&checkpoint.path, candidates, |backend| attempt(backend, checkpoint))
}

/// Why a back end cannot read a checkpoint here, or `None` if it can.
///
/// It reads a first block, of one file on each file system. Errors: `FileChanged`.
pub fn attempt(backend: Backend, checkpoint: &Checkpoint) -> Result<Option<String>> {
    let verified = checkpoint.shards.iter().any(|shard| shard.verification.is_some());
    if verified && backend != Backend::Populate {
        return Ok(Some("chunks are compared with their digests in the page cache".to_owned()));
    }
    let mut tried = HashSet::new();
    for shard in &checkpoint.shards {
        let found = shard.file.metadata().map_err(|e| Error::io(&shard.path, "fstat", &e))?;
        if tried.insert(found.dev()) {
            match attempt_on(backend, shard) {
                Ok(()) => {}
                Err(Error { kind: Kind::Io { action, reason, .. }, .. }) => {
                    return Ok(Some(format!("{action}: {reason}")));
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

/// The first chunk of a shard, on which its header lies, has always arrived.
fn attempt_on(backend: Backend, shard: &Shard) -> Result<()> {
    match backend {
        Backend::Populate => {
            let mapping = Mapping::of_shard(shard)?;
            let size_bytes = (page_bytes() as u64).min(shard.file_bytes);
            mapping.populate_range(0, size_bytes, &Advice::default()).map(|_| ())
        }
        Backend::IoUring => Direct::by_ring(CheckedFile::of_shard(shard)?, &mut None)?.try_block(),
        Backend::DirectPread => Direct::by_pread(CheckedFile::of_shard(shard)?)?.try_block(),
        // What reads the header.
        Backend::Pread => Ok(()),
    }
}

/// What the page cache has of a checkpoint.
fn cached(checkpoint: &Checkpoint) -> Result<Cached> {
    if checkpoint.shards.iter().any(|shard| shard.arriving.is_some()) {
        return Ok(Cached::Unknown);
    }
    let mut resident_bytes = 0;
    for shard in &checkpoint.shards {
        match residency::resident_bytes(&shard.file, &shard.path, shard.file_bytes) {
            Ok(bytes) => resident_bytes += bytes,
            Err(Error { kind: Kind::ResidencyHidden, .. }) => return Ok(Cached::Unknown),
            Err(error) => return Err(error),
        }
    }
    Ok(Cached::of(resident_bytes, checkpoint.checkpoint_bytes()))
}
