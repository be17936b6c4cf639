//! Some rows of the weights times all tokens.

use std::ops::Range;

use crate::element::Element;
use crate::lanes::Lanes;
use crate::product::{Matrix, MatrixMut};
use crate::tile::{Inputs, Rows, Stored, Widened, tile};

/// Rows of a tile of several tokens.
const TILE_ROWS: usize = 4;
/// Rows of a tile of so many tokens that four would not leave its sums in registers. Reading and
/// widening the weights once instead of twice is worth more than the fourth row.
const THIN_TILE_ROWS: usize = 3;
/// Rows of a tile of one token: a sum for each of the fused additions that are under way at once.
const LONE_TILE_ROWS: usize = 8;
/// Up to so many tiles of tokens the weights are widened for each of them anew, in registers: that
/// takes less time than keeping them widened.
pub(crate) const STREAMED_TILES: usize = 3;
/// Bytes in a cache line.
const LINE_BYTES: usize = 64;

/// A cache line of float32.
#[repr(align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Line(#[expect(dead_code, reason = "read and written by address")] [f32; 16]);

/// Memory that is kept from product to product.
pub(crate) type Scratch = Vec<Line>;

/// Room for `numbers` float32, of unknown value.
pub(crate) fn room(scratch: &mut Scratch, numbers: usize) -> *mut f32 {
    let lines = numbers.div_ceil(16);
    if scratch.len() < lines {
        scratch.resize(lines, Line([0.0; 16]));
    }
    scratch.as_mut_ptr().cast()
}

/// A product whose inputs have been brought into the order of the vectors.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    pub weight: *const u16,
    pub inputs: usize,
    pub x: Inputs,
    pub tokens: usize,
    pub bias: Option<(*const u8, Element)>,
    pub out: MatrixMut,
}

/// Brings the inputs of all tokens into the order of the vectors.
///
/// # Safety
/// `x` holds `tokens` rows of `inputs`, and `to` has room for as many, filled up to whole steps.
#[inline(always)]
pub(crate) unsafe fn arrange<L: Lanes>(x: Matrix, tokens: usize, inputs: usize, to: *mut f32) {
    let step = 2 * L::WIDTH;
    let padded = inputs.next_multiple_of(step);
    for token in 0..tokens {
        // SAFETY: the caller's promise; `index` is below `inputs`, and its place below `padded`.
        unsafe {
            let from = x.start.add(token * x.stride * x.element.bytes());
            let to = to.add(token * padded);
            let whole = inputs - inputs % step;
            for start in (0..whole).step_by(step) {
                let [even, odd] = match x.element {
                    Element::Float32 => L::deal(from.cast::<f32>().add(start)),
                    Element::Bfloat16 => {
                        let from = from.cast::<u16>().add(start);
                        [L::even(from), L::odd(from)]
                    }
                };
                L::store(to.add(start), even);
                L::store(to.add(start + L::WIDTH), odd);
            }
            for index in whole..padded {
                let value = if index < inputs { x.element.read(from, index) } else { 0.0 };
                to.add(whole + (index - whole) / 2 + index % 2 * L::WIDTH).write(value);
            }
        }
    }
}

/// Computes the outputs `first..first + count` of all tokens.
///
/// # Safety
/// The task's matrices are as large as it says, the outputs exist, nobody else writes them, and
/// the processor has `L`'s instructions.
#[inline(always)]
pub(crate) unsafe fn block<L: Lanes>(
    task: &Task,
    first: usize,
    count: usize,
    scratch: &mut Scratch,
) {
    // SAFETY: the caller's promise; the scratch has room for all rows of the block.
    unsafe {
        let start = task.weight.add(first * task.inputs);
        if task.tokens <= L::TILE_TOKENS * STREAMED_TILES {
            return stream::<L>(task, start, first, count);
        }
        // Weights that are used more than once are worth widening into a cache.
        let padded = task.x.padded;
        let wide = room(scratch, count * padded);
        let stored = Stored::<false> { start, inputs: task.inputs };
        for row in 0..count {
            widen::<L>(stored, row, wide.add(row * padded));
        }
        let rows = Widened { start: wide, padded };
        let times = task.tokens.div_ceil(L::TILE_TOKENS) * count.div_ceil(TILE_ROWS);
        let mut ahead = Ahead::of(start, count, task.inputs, times);
        for tokens in tiles_of::<L>(task.tokens) {
            strip::<L, _>(task, rows, first, 0..count, tokens, &mut ahead);
        }
    }
}

/// The block's rows times all tokens, a few rows at a time, which stay in the first-level cache.
///
/// # Safety
/// As for `block`.
#[inline(always)]
unsafe fn stream<L: Lanes>(task: &Task, start: *const u16, first: usize, count: usize) {
    let new = Stored::<true> { start, inputs: task.inputs };
    let seen = Stored::<false> { start, inputs: task.inputs };
    let none = &mut Ahead::nothing();
    // SAFETY: the caller's promise.
    unsafe {
        if task.tokens <= L::THIN_TILE_TOKENS {
            return strip::<L, _>(task, new, first, 0..count, 0..task.tokens, none);
        }
        for row in (0..count).step_by(TILE_ROWS) {
            let rows = row..count.min(row + TILE_ROWS);
            for tokens in tiles_of::<L>(task.tokens) {
                if tokens.start == 0 {
                    strip::<L, _>(task, new, first, rows.clone(), tokens, none);
                } else {
                    strip::<L, _>(task, seen, first, rows.clone(), tokens, none);
                }
            }
        }
    }
}

/// The tokens in tiles of nearly the same size: a last one of one token would be slow.
#[inline(always)]
fn tiles_of<L: Lanes>(tokens: usize) -> impl Iterator<Item = Range<usize>> {
    let tiles = tokens.div_ceil(L::TILE_TOKENS);
    (0..tiles).map(move |tile| tokens * tile / tiles..tokens * (tile + 1) / tiles)
}

/// The next block's weights, asked for while this one is computed.
struct Ahead {
    next: *const u8,
    left: usize,
    share: usize,
}

impl Ahead {
    fn nothing() -> Self {
        Self { next: std::ptr::null(), left: 0, share: 0 }
    }

    fn of(start: *const u16, rows: usize, inputs: usize, times: usize) -> Self {
        let lines = (rows * inputs * 2).div_ceil(LINE_BYTES);
        let next = start.wrapping_add(rows * inputs).cast();
        Self { next, left: lines, share: lines.div_ceil(times) }
    }

    /// # Safety
    /// The processor has `L`'s instructions.
    #[inline(always)]
    unsafe fn some<L: Lanes>(&mut self) {
        let lines = self.share.min(self.left);
        for _ in 0..lines {
            // SAFETY: the caller's promise.
            unsafe { L::prefetch(self.next) };
            self.next = self.next.wrapping_add(LINE_BYTES);
        }
        self.left -= lines;
    }
}

/// Widens one row.
///
/// # Safety
/// The row exists, and `to` has room for it, filled up.
#[inline(always)]
unsafe fn widen<L: Lanes>(rows: Stored<false>, row: usize, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let whole = Rows::<L>::whole(rows);
        for input in (0..whole).step_by(2 * L::WIDTH) {
            L::store(to.add(input), Rows::<L>::even(rows, row, input));
            L::store(to.add(input + L::WIDTH), Rows::<L>::odd(rows, row, input));
        }
        if let Some(tail) = Rows::<L>::tail(rows, row) {
            L::store(to.add(whole), L::even(tail.as_ptr()));
            L::store(to.add(whole + L::WIDTH), L::odd(tail.as_ptr()));
        }
    }
}

/// Rows `range` of the block times `tokens`, at most a tile's.
///
/// # Safety
/// As for `block`.
#[inline(always)]
unsafe fn strip<L: Lanes, W: Rows<L>>(
    task: &Task,
    rows: W,
    first: usize,
    range: Range<usize>,
    tokens: Range<usize>,
    ahead: &mut Ahead,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match tokens.len() {
            1 => {
                tiles::<L, W, LONE_TILE_ROWS, 1>(task, rows, first, range, tokens.start, ahead);
            }
            2 => {
                tiles::<L, W, TILE_ROWS, 2>(task, rows, first, range, tokens.start, ahead);
            }
            3 if L::TILE_TOKENS >= 3 => {
                tiles::<L, W, TILE_ROWS, 3>(task, rows, first, range, tokens.start, ahead);
            }
            4 if L::TILE_TOKENS >= 4 => {
                tiles::<L, W, TILE_ROWS, 4>(task, rows, first, range, tokens.start, ahead);
            }
            5 if L::TILE_TOKENS >= 5 => {
                tiles::<L, W, TILE_ROWS, 5>(task, rows, first, range, tokens.start, ahead);
            }
            6 if L::TILE_TOKENS >= 6 => {
                tiles::<L, W, TILE_ROWS, 6>(task, rows, first, range, tokens.start, ahead);
            }
            7 if L::THIN_TILE_TOKENS >= 7 => {
                tiles::<L, W, THIN_TILE_ROWS, 7>(task, rows, first, range, tokens.start, ahead);
            }
            8 if L::THIN_TILE_TOKENS >= 8 => {
                tiles::<L, W, THIN_TILE_ROWS, 8>(task, rows, first, range, tokens.start, ahead);
            }
            _ => unreachable!("a tile has 1 to {} tokens", L::THIN_TILE_TOKENS),
        }
    }
}

/// Tiles of `R` rows, then of one.
///
/// # Safety
/// As for `block`.
#[inline(always)]
unsafe fn tiles<L: Lanes, W: Rows<L>, const R: usize, const T: usize>(
    task: &Task,
    rows: W,
    first: usize,
    range: Range<usize>,
    token: usize,
    ahead: &mut Ahead,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let x = Inputs { start: task.x.start.add(token * task.x.padded), ..task.x };
        let mut row = range.start;
        while row + R <= range.end {
            ahead.some::<L>();
            put(task, token, first + row, tile::<L, W, R, T>(rows, row, x));
            row += R;
        }
        while row < range.end {
            put(task, token, first + row, tile::<L, W, 1, T>(rows, row, x));
            row += 1;
        }
    }
}

/// Adds the bias and stores the outputs of a tile.
///
/// # Safety
/// As for `block`.
#[inline(always)]
unsafe fn put<const R: usize, const T: usize>(
    task: &Task,
    token: usize,
    output: usize,
    mut sums: [[f32; R]; T],
) {
    let MatrixMut { start, element, stride } = task.out;
    // SAFETY: the caller's promise.
    unsafe {
        if let Some((bias, of)) = task.bias {
            for r in 0..R {
                let bias = of.read(bias, output + r);
                sums.iter_mut().for_each(|sums| sums[r] += bias);
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            let to = start.add(((token + t) * stride + output) * element.bytes());
            for (r, sum) in sums.iter().enumerate() {
                element.write(to, r, *sum);
            }
        }
    }
}
