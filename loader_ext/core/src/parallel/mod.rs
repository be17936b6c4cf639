//! What one rank of a tensor-parallel group needs of a checkpoint, and no more.
//!
//! [`plan`] says which bytes those are and is pure; [`read`] brings them in: what is in one piece
//! in the file stays there as a view, what is strided is packed into an [`crate::arena`].

pub mod plan;
pub mod read;

pub use plan::{Plan, Rule, Slice, Split};
pub use read::{Loaded, Part, read};
