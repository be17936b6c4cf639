//! What a vector can do: one trait, so that every instruction set runs the same loops.

use crate::element::widen;

/// The vector instructions that a product is computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    /// Whatever the compiler makes of plain code.
    Portable,
    /// 8 lanes: AVX2 and FMA.
    Avx2,
    /// 16 lanes: AVX-512 F.
    Avx512,
}

impl Instructions {
    /// All of them, the best last.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The best that this processor has.
    #[must_use]
    pub fn best() -> Self {
        Self::ALL.into_iter().rfind(|set| set.available()).unwrap_or(Self::Portable)
    }

    /// Whether this processor has them.
    #[must_use]
    pub fn available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Their name as it is written in documentation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

/// A vector of `WIDTH` float32.
///
/// Inputs are dealt with in *steps* of `2 * WIDTH`. Of each step the numbers with even index come
/// first, then the odd ones: so two bfloat16 that share a 32-bit word widen with one instruction
/// each, and a dot product does not mind the order.
///
/// # Safety
/// Every method may use instructions of its set, which the processor must have; pointers must be
/// good for the `WIDTH` float32, or `2 * WIDTH` bfloat16, that are read or written there. No
/// alignment is asked for.
pub(crate) trait Lanes {
    type Vector: Copy;
    const WIDTH: usize;
    /// Tokens of a tile of four rows that leave its sums in registers.
    const TILE_TOKENS: usize;
    /// The same for a tile of three rows; at least as many.
    const THIN_TILE_TOKENS: usize;

    unsafe fn zero() -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    unsafe fn store(to: *mut f32, vector: Self::Vector);
    /// The even ones of `2 * WIDTH` bfloat16, widened.
    unsafe fn even(from: *const u16) -> Self::Vector;
    /// The odd ones of `2 * WIDTH` bfloat16, widened.
    unsafe fn odd(from: *const u16) -> Self::Vector;
    /// The even and the odd ones of `2 * WIDTH` float32.
    unsafe fn deal(from: *const f32) -> [Self::Vector; 2];
    /// `a * b + c`.
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The sum over the lanes.
    unsafe fn sum(vector: Self::Vector) -> f32;
    /// The sums over the lanes of four vectors.
    #[inline(always)]
    unsafe fn sum_four(vectors: [Self::Vector; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise.
        vectors.map(|vector| unsafe { Self::sum(vector) })
    }
    /// Asks for a cache line that will be read soon, into the second level: the first is full of
    /// what is being used. Any address is allowed.
    unsafe fn prefetch(line: *const u8);
}

/// Plain code.
pub(crate) struct Portable;

impl Lanes for Portable {
    type Vector = [f32; 4];
    const WIDTH: usize = 4;
    const TILE_TOKENS: usize = 2;
    const THIN_TILE_TOKENS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Self::Vector {
        [0.0; 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::Vector {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, vector: Self::Vector) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(vector) }
    }

    #[inline(always)]
    unsafe fn even(from: *const u16) -> Self::Vector {
        // SAFETY: the caller's promise.
        let [a, _, b, _, c, _, d, _] = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        [a, b, c, d].map(widen)
    }

    #[inline(always)]
    unsafe fn odd(from: *const u16) -> Self::Vector {
        // SAFETY: the caller's promise.
        let [_, a, _, b, _, c, _, d] = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        [a, b, c, d].map(widen)
    }

    #[inline(always)]
    unsafe fn deal(from: *const f32) -> [Self::Vector; 2] {
        // SAFETY: the caller's promise.
        let [a, b, c, d, e, f, g, h] = unsafe { from.cast::<[f32; 8]>().read_unaligned() };
        [[a, c, e, g], [b, d, f, h]]
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
        // Fused would be a call of a library function where the processor has no such instruction.
        [a[0] * b[0] + c[0], a[1] * b[1] + c[1], a[2] * b[2] + c[2], a[3] * b[3] + c[3]]
    }

    #[inline(always)]
    unsafe fn sum(vector: Self::Vector) -> f32 {
        (vector[0] + vector[1]) + (vector[2] + vector[3])
    }

    #[inline(always)]
    unsafe fn prefetch(_line: *const u8) {}
}
