//! Products `y = x W^T + b` with bfloat16 weights, for processors that have wide vectors but no
//! bfloat16 arithmetic.
//!
//! Weights are read once, where they lie, and widened to float32 in registers (a bfloat16 is the
//! upper half of a float32) or, for many tokens, into a block that stays in the cache. Sums are
//! float32; the result is rounded once, if at all.
//!
//! - `element`: the two number formats, and rounding between them
//! - `lanes`, `x86`: what a vector can do, portably and with AVX2 or AVX-512
//! - `tile`: a few rows times a few tokens, in registers
//! - `block`: some rows times all tokens, in a cache
//! - `entry`: all of that, compiled for each instruction set
//! - `product`: what is asked for; `shares`: which thread computes which rows
//! - `pool`: the threads

mod block;
mod element;
mod entry;
mod lanes;
mod pool;
mod product;
#[cfg(test)]
mod product_tests;
mod shares;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use element::Element;
pub use lanes::Instructions;
pub use product::{Kernels, Matrix, MatrixMut, Product};
