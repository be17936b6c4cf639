//! The loops, compiled once for each instruction set.

use crate::block::{self, Scratch, Task};
use crate::lanes::{Instructions, Lanes, Portable};
use crate::product::Matrix;

/// What a set of instructions offers. Calling either function takes a processor that has them.
pub(crate) struct Entry {
    /// Inputs that are dealt with at a time; rows are filled up to a multiple.
    pub step: usize,
    /// Up to so many tokens the weights are used where they lie.
    pub streamed_tokens: usize,
    /// See `block::arrange`.
    pub arrange: unsafe fn(Matrix, usize, usize, *mut f32),
    /// See `block::block`.
    pub block: unsafe fn(&Task, usize, usize, &mut Scratch),
}

impl Entry {
    /// The loops for `instructions`.
    pub fn of(instructions: Instructions) -> &'static Self {
        match instructions {
            Instructions::Portable => &PORTABLE,
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => &x86::AVX2,
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => &x86::AVX512,
            #[cfg(not(target_arch = "x86_64"))]
            _ => &PORTABLE,
        }
    }

    const fn new<L: Lanes>(
        arrange: unsafe fn(Matrix, usize, usize, *mut f32),
        block: unsafe fn(&Task, usize, usize, &mut Scratch),
    ) -> Self {
        Self {
            step: 2 * L::WIDTH,
            streamed_tokens: L::TILE_TOKENS * block::STREAMED_TILES,
            arrange,
            block,
        }
    }
}

static PORTABLE: Entry =
    Entry::new::<Portable>(block::arrange::<Portable>, block::block::<Portable>);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Entry, Matrix, Scratch, Task, block};
    use crate::x86::{Avx2, Avx512};

    pub(super) static AVX2: Entry = Entry::new::<Avx2>(arrange_avx2, block_avx2);
    pub(super) static AVX512: Entry = Entry::new::<Avx512>(arrange_avx512, block_avx512);

    #[target_feature(enable = "avx2,fma")]
    unsafe fn arrange_avx2(x: Matrix, tokens: usize, inputs: usize, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { block::arrange::<Avx2>(x, tokens, inputs, to) }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn block_avx2(task: &Task, first: usize, count: usize, scratch: &mut Scratch) {
        // SAFETY: the caller's promise.
        unsafe { block::block::<Avx2>(task, first, count, scratch) }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn arrange_avx512(x: Matrix, tokens: usize, inputs: usize, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { block::arrange::<Avx512>(x, tokens, inputs, to) }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn block_avx512(task: &Task, first: usize, count: usize, scratch: &mut Scratch) {
        // SAFETY: the caller's promise.
        unsafe { block::block::<Avx512>(task, first, count, scratch) }
    }
}
