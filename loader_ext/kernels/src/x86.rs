//! Vectors of AVX2 and AVX-512.
//!
//! The methods are inlined into functions that enable the features (see `product`), and only
//! there do the intrinsics become instructions.

use std::arch::x86_64::*;

use crate::lanes::Lanes;

/// A float32's upper half.
const UPPER: i32 = 0xffff_0000_u32.cast_signed();

/// 16 lanes in 32 registers.
pub(crate) struct Avx512;

impl Lanes for Avx512 {
    type Vector = __m512;
    const WIDTH: usize = 16;
    const TILE_TOKENS: usize = 6;
    const THIN_TILE_TOKENS: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, vector: __m512) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to, vector) }
    }

    #[inline(always)]
    unsafe fn even(from: *const u16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn odd(from: *const u16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(UPPER)))
        }
    }

    #[inline(always)]
    unsafe fn deal(from: *const f32) -> [__m512; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            [_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high)]
        }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sum(vector: __m512) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_reduce_add_ps(vector) }
    }

    #[inline(always)]
    unsafe fn sum_four([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // A transposition that adds: half the instructions of four single sums.
        // SAFETY: the caller's promise; the array is as large as the vector stored into it.
        unsafe {
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let abcd =
                _mm512_add_ps(_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
            let halves = _mm512_add_ps(abcd, _mm512_shuffle_f32x4::<0x4e>(abcd, abcd));
            let half = _mm512_castps512_ps256(halves);
            let sums = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), sums);
            out
        }
    }

    #[inline(always)]
    unsafe fn prefetch(line: *const u8) {
        // SAFETY: a hint, which never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }
}

/// 8 lanes in 16 registers.
pub(crate) struct Avx2;

impl Lanes for Avx2 {
    type Vector = __m256;
    const WIDTH: usize = 8;
    const TILE_TOKENS: usize = 2;
    const THIN_TILE_TOKENS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, vector: __m256) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(to, vector) }
    }

    #[inline(always)]
    unsafe fn even(from: *const u16) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn odd(from: *const u16) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs = _mm256_loadu_si256(from.cast());
            _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(UPPER)))
        }
    }

    #[inline(always)]
    unsafe fn deal(from: *const f32) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            // 0 to 3 and 8 to 11, then 4 to 7 and 12 to 15: the shuffles take every other one.
            let (low, high) = (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)));
            let a = _mm256_permute2f128_ps::<0x20>(low, high);
            let b = _mm256_permute2f128_ps::<0x31>(low, high);
            [_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b)]
        }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sum(vector: __m256) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let four =
                _mm_add_ps(_mm256_castps256_ps128(vector), _mm256_extractf128_ps::<1>(vector));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(line: *const u8) {
        // SAFETY: a hint, which never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }
}
