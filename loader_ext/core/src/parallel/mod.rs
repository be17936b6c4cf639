//! What one rank of a tensor-parallel group needs of a checkpoint, and no more.
//!
//! [`plan`] says which bytes those are and is pure; [`read`] brings them in: what is in one piece
//! in the file stays there as a view, what is strided is packed into an [`crate::arena`]; other
//! back ends than the page cache's have all packed, by [`copied`].

pub mod copied;
pub mod plan;
pub mod read;

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::source::Backend;

pub use plan::{Plan, Rule, Slice, Split};
pub use read::{Loaded, Part};

/// Gives what one rank of `(rank, world_size)` needs, by a back end. See [`read::read`].
pub fn load<'a>(
    checkpoint: &'a Checkpoint,
    plan: &Plan,
    backend: Backend,
    share: (u64, u64),
    threads: usize,
    watch: impl FnMut(u64, u64) -> Result<()>,
) -> Result<Loaded<'a>> {
    match backend {
        Backend::Populate => read::read(checkpoint, plan, share, threads, watch),
        _ => copied::read(checkpoint, plan, backend, share, threads, watch),
    }
}
