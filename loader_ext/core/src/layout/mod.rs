//! Rewrites a checkpoint so that fused weights are one view and large tensors lie on pages.
//!
//! [`plan`] decides where everything goes and is pure; [`write`](mod@write) does it.

pub mod plan;
pub mod write;

pub use write::{LayoutReport, layout};
