//! A few rows of the weights times a few tokens, with all sums in registers.

use crate::lanes::Lanes;

/// Bfloat16 of the longest step of any vector; shorter ones divide it.
const TAIL: usize = 32;

/// How far ahead of its use a row is asked for: with 576 inputs some 18 KiB, or a microsecond.
const AHEAD_ROWS: usize = 16;

/// The inputs of tokens: float32, in the order of `Lanes`, each row filled up with zeros.
#[derive(Clone, Copy)]
pub(crate) struct Inputs {
    pub start: *const f32,
    /// Float32 from one token to the next: the inputs, filled up to whole steps.
    pub padded: usize,
}

/// Rows of weights, as they are stored or as `block` has widened them.
pub(crate) trait Rows<L: Lanes>: Copy {
    /// Whether the rows come from memory, and the next should be on their way.
    const STREAMED: bool;
    /// The even numbers of the step that begins at `input` of row `row`.
    unsafe fn even(self, row: usize, input: usize) -> L::Vector;
    /// The odd numbers.
    unsafe fn odd(self, row: usize, input: usize) -> L::Vector;
    /// The address of a step, which need not exist.
    fn address(self, row: usize, input: usize) -> *const u8;
    /// Inputs in whole steps.
    fn whole(self) -> usize;
    /// What is left of a row behind the whole steps, filled up with zeros; None where none is.
    unsafe fn tail(self, row: usize) -> Option<[u16; TAIL]>;
}

/// bfloat16 in the checkpoint, looked at for the first time or again.
#[derive(Clone, Copy)]
pub(crate) struct Stored<const NEW: bool> {
    pub start: *const u16,
    pub inputs: usize,
}

impl<L: Lanes, const NEW: bool> Rows<L> for Stored<NEW> {
    const STREAMED: bool = NEW;

    #[inline(always)]
    unsafe fn even(self, row: usize, input: usize) -> L::Vector {
        // SAFETY: the caller names a whole step of a row that exists.
        unsafe { L::even(self.start.add(row * self.inputs + input)) }
    }

    #[inline(always)]
    unsafe fn odd(self, row: usize, input: usize) -> L::Vector {
        // SAFETY: the caller names a whole step of a row that exists.
        unsafe { L::odd(self.start.add(row * self.inputs + input)) }
    }

    #[inline(always)]
    fn address(self, row: usize, input: usize) -> *const u8 {
        self.start.wrapping_add(row * self.inputs + input).cast()
    }

    #[inline(always)]
    fn whole(self) -> usize {
        self.inputs - self.inputs % (2 * L::WIDTH)
    }

    #[inline(always)]
    unsafe fn tail(self, row: usize) -> Option<[u16; TAIL]> {
        let whole = Rows::<L>::whole(self);
        let left = self.inputs - whole;
        if left == 0 {
            return None;
        }
        let mut tail = [0; TAIL];
        // SAFETY: the row exists, and less than a step is left of it, which fits the array.
        unsafe {
            let from = self.start.add(row * self.inputs + whole);
            from.cast::<u8>().copy_to_nonoverlapping(tail.as_mut_ptr().cast(), 2 * left);
        }
        Some(tail)
    }
}

/// float32 in a cache, in the order of `Lanes` and filled up.
#[derive(Clone, Copy)]
pub(crate) struct Widened {
    pub start: *const f32,
    pub padded: usize,
}

impl<L: Lanes> Rows<L> for Widened {
    const STREAMED: bool = false;

    #[inline(always)]
    unsafe fn even(self, row: usize, input: usize) -> L::Vector {
        // SAFETY: the caller names a whole step of a row that exists.
        unsafe { L::load(self.start.add(row * self.padded + input)) }
    }

    #[inline(always)]
    unsafe fn odd(self, row: usize, input: usize) -> L::Vector {
        // SAFETY: the caller names a whole step of a row that exists.
        unsafe { L::load(self.start.add(row * self.padded + input + L::WIDTH)) }
    }

    #[inline(always)]
    fn address(self, row: usize, input: usize) -> *const u8 {
        self.start.wrapping_add(row * self.padded + input).cast()
    }

    #[inline(always)]
    fn whole(self) -> usize {
        self.padded
    }

    #[inline(always)]
    unsafe fn tail(self, _row: usize) -> Option<[u16; TAIL]> {
        None
    }
}

/// The dot products of `R` rows from `row` on with `T` tokens.
///
/// # Safety
/// The rows and tokens exist, both of the same inputs, and the processor has `L`'s instructions.
#[inline(always)]
pub(crate) unsafe fn tile<L: Lanes, W: Rows<L>, const R: usize, const T: usize>(
    rows: W,
    row: usize,
    x: Inputs,
) -> [[f32; R]; T] {
    // SAFETY: whole steps lie within the rows and, as these are filled up, within the tokens;
    // what is left of a row has a filled-up step of each token to go with it.
    unsafe {
        let mut sums = [[L::zero(); R]; T];
        let whole = rows.whole();
        let mut input = 0;
        while input < whole {
            if W::STREAMED {
                for r in 0..R {
                    L::prefetch(rows.address(row + AHEAD_ROWS + r, input));
                }
            }
            let mut weights = [L::zero(); R];
            for (r, weight) in weights.iter_mut().enumerate() {
                *weight = rows.even(row + r, input);
            }
            add::<L, R, T>(&mut sums, weights, x, input);
            for (r, weight) in weights.iter_mut().enumerate() {
                *weight = rows.odd(row + r, input);
            }
            add::<L, R, T>(&mut sums, weights, x, input + L::WIDTH);
            input += 2 * L::WIDTH;
        }
        for r in 0..R {
            if let Some(tail) = rows.tail(row + r) {
                for (t, sums) in sums.iter_mut().enumerate() {
                    let x = x.start.add(t * x.padded + whole);
                    let even = L::even(tail.as_ptr());
                    let odd = L::odd(tail.as_ptr());
                    let sum = L::multiply_add(even, L::load(x), sums[r]);
                    sums[r] = L::multiply_add(odd, L::load(x.add(L::WIDTH)), sum);
                }
            }
        }
        let mut out = [[0.0; R]; T];
        for (out, sums) in out.iter_mut().zip(&sums) {
            let mut r = 0;
            while r + 4 <= R {
                let four = L::sum_four([sums[r], sums[r + 1], sums[r + 2], sums[r + 3]]);
                out[r..r + 4].copy_from_slice(&four);
                r += 4;
            }
            if r + 3 == R {
                let four = L::sum_four([sums[r], sums[r + 1], sums[r + 2], L::zero()]);
                out[r..].copy_from_slice(&four[..3]);
                r = R;
            }
            while r < R {
                out[r] = L::sum(sums[r]);
                r += 1;
            }
        }
        out
    }
}

/// Adds half a step of `R` rows times `T` tokens.
///
/// # Safety
/// As for `tile`.
#[inline(always)]
unsafe fn add<L: Lanes, const R: usize, const T: usize>(
    sums: &mut [[L::Vector; R]; T],
    weights: [L::Vector; R],
    x: Inputs,
    at: usize,
) {
    for (t, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let x = L::load(x.start.add(t * x.padded + at));
            for r in 0..R {
                sums[r] = L::multiply_add(weights[r], x, sums[r]);
            }
        }
    }
}
