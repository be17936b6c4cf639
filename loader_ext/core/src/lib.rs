//! Reads, maps, lays out and verifies safetensors checkpoints; knows nothing of Python.
//!
//! [`checkpoint`] finds the files of a checkpoint and reads their headers ([`header`] and [`index`]
//! are the pure parsers, [`sidecar`] says what a header says in binary), [`mapping`] maps them,
//! [`populate`] brings them into the page cache, [`source`] reads them in other ways and says which
//! one a load takes, [`residency`], [`evict`] and [`pin`] look at, empty and hold that cache, [`fetch`] brings
//! files from elsewhere and [`arrival`] tells who waits for them, [`digest`] gives a checkpoint its
//! identity, [`verification`] compares chunks with it as they come in, [`layout`] rewrites one so
//! that fused weights are one view, [`parallel`] reads what one rank of several needs, and
//! [`device`] copies to GPUs. Everything that takes long runs through [`pieces`]: bounded threads,
//! progress and cancellation on the calling thread. [`faults`] has the last word where a mapped
//! file kills the process.

pub mod arena;
pub mod arrival;
pub mod checkpoint;
pub mod device;
pub mod digest;
pub mod dtype;
pub mod error;
pub mod evict;
pub mod faults;
pub mod fetch;
pub mod header;
pub mod index;
pub mod inventory;
mod json;
pub mod layout;
pub mod mapping;
pub mod names;
pub mod parallel;
pub mod pieces;
pub mod pin;
pub mod populate;
mod reservation;
pub mod residency;
pub mod sidecar;
pub mod source;
pub mod verification;
mod xxh3;

#[cfg(test)]
mod fixture;

pub use error::{Error, Kind, Result};
