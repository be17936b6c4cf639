//! What must hold for every input of the loader's parsers: each `check` panics where it does not.
//!
//! Not only that nothing panics: what is accepted is sound by an arithmetic of its own and
//! survives being written again, JSON and sidecar accept the same, and what is refused is refused
//! by an error of the right branch of the tree.

pub mod arrival;
pub mod header;
pub mod index;
pub mod ledger;
pub mod sidecar;

mod bytes;
