//! Brings one file from one or several origins to the disk: verified chunks, resumable, atomic.
//!
//! The file grows as `NAME.part`, beside it `NAME.part.map` says which chunks have arrived
//! ([`crate::arrival`]); both are gone when `NAME` appears. [`ledger`] decides who fetches what,
//! [`origin`] knows HTTP, [`part`] owns the two files, and [`streams`] lets them work together.

mod backoff;
mod describing;
pub mod ledger;
pub mod origin;
mod part;
mod streams;

use std::path::Path;
use std::time::Duration;

use crate::arrival::{self, Arrival};
use crate::digest::FileDigest;
use crate::error::{Error, Kind, Result};

use origin::Description;
pub use origin::Origin;
use part::Part;

/// The most connections to one origin.
pub const MAX_STREAMS: usize = 64;

/// How often the caller is asked whether to go on while nothing arrives.
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// What to fetch.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where its bytes are, the same everywhere.
    pub origins: Vec<Origin>,
    /// What its bytes must be. Without it, they are whatever the first origin's tag stands for.
    pub expected: Option<FileDigest>,
}

/// How hard to try.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections to each origin, each with one range of a chunk's length under way.
    pub streams: usize,
    /// The longest silence of a connection. An answer as a whole has [`origin::MAX_SILENCES`] of these.
    pub stall: Duration,
    /// After this time a chunk is asked for a second time, once no other is left to ask for.
    pub hedge_after: Duration,
    /// How often one chunk is asked for.
    pub attempts: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 8,
            stall: Duration::from_secs(15),
            hedge_after: Duration::from_secs(3),
            attempts: 8,
        }
    }
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The file's digest, under the destination's name.
    pub digest: FileDigest,
    /// Bytes that an earlier fetch had left, verified again.
    pub resumed_bytes: u64,
    /// Bytes by origin, in the order of `Wanted::origins`.
    pub bytes_by_origin: Vec<u64>,
    /// Seconds in which the bytes came; in which what was there was verified; and in which the
    /// file was made durable.
    pub seconds: Seconds,
}

/// Seconds of each stage.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seconds {
    /// Verifying what an earlier fetch had left.
    pub resume: f64,
    /// Fetching.
    pub fetch: f64,
    /// Making it durable.
    pub sync: f64,
}

impl Eq for Seconds {}

/// Fetches a file to `destination`, which must not exist; its folder must.
///
/// `watch` is called with the bytes that are there and in all (0 while the length is unknown), and
/// may stop the fetch. What came
/// until then stays for the next one. Errors: `DestinationExists`, `FetchBusy`, `ChunkMismatch`
/// when all origins send other bytes than expected, `LengthMismatch`, `SourceMissing`,
/// `SourceRefused`, `SourceChanged`, `RangeRefused`, `RangeIgnored`, `SourceFailed`, `Io`.
pub fn fetch(
    wanted: &Wanted,
    destination: &Path,
    limits: &Limits,
    watch: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Fetched> {
    if arrival::exists(destination) {
        Arrival::sweep(destination);
        return Err(Error::new(destination, Kind::DestinationExists));
    }
    let mut wanted = wanted.clone();
    let described = match &wanted.expected {
        Some(expected) => {
            // What its bytes must be says all of what it is.
            Description { file_bytes: expected.size_bytes, ..Description::default() }
        }
        None => {
            let found = describing::describe(&wanted, destination, limits, watch)?;
            for origin in &mut wanted.origins {
                origin.etag = origin.etag.take().or_else(|| found.etag.clone());
                if origin.etag.is_none() {
                    origin.modified.clone_from(&found.modified);
                }
            }
            found
        }
    };
    let mut part = Part::open(destination, &described, wanted.expected.as_ref())?;
    let resume = part.verify_resumed(watch)?;
    let (bytes_by_origin, fetch) = streams::run(&wanted, &part, limits, watch)?;
    let (digest, sync) = part.finish(destination)?;
    Ok(Fetched {
        digest,
        resumed_bytes: resume.0,
        bytes_by_origin,
        seconds: Seconds { resume: resume.1, fetch, sync },
    })
}
