//! XXH3 (xxhash.com): the one place that says whose implementation it is.
//!
//! The instructions are chosen at run time: with AVX2 a chunk takes three quarters of what SSE2,
//! the most that a wheel for every x86-64 may be compiled for, needs.

use twox_hash::{XxHash3_64, XxHash3_128};

/// XXH3-64 of bytes, with seed 0.
pub(crate) fn xxh3_64(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// XXH3-128 of bytes, with seed 0.
pub(crate) fn xxh3_128(bytes: &[u8]) -> u128 {
    XxHash3_128::oneshot(bytes)
}

/// XXH3-128 of bytes that come in pieces.
#[derive(Default)]
pub(crate) struct Xxh3(XxHash3_128);

impl Xxh3 {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub(crate) fn finish(self) -> u128 {
        self.0.finish_128()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_implementation_says_the_same() {
        let bytes: Vec<u8> = (0..70_000u32).map(|at| (at * 31 % 251) as u8).collect();
        for length in [0, 1, 3, 4, 8, 9, 16, 17, 128, 129, 240, 241, 1024, 1025, 65_537, 70_000] {
            let bytes = &bytes[..length];
            assert_eq!(xxh3_64(bytes), xxhash_rust::xxh3::xxh3_64(bytes), "{length} bytes");
            let expected = xxhash_rust::xxh3::xxh3_128(bytes);
            assert_eq!(xxh3_128(bytes), expected, "{length} bytes");
            let mut hasher = Xxh3::default();
            bytes.chunks(777).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish(), expected, "{length} bytes in pieces");
        }
    }
}
