//! float32 and bfloat16 in memory.

/// How a number is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// IEEE 754 binary32.
    Float32,
    /// The upper half of a binary32.
    Bfloat16,
}

impl Element {
    /// Bytes of one number.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Bfloat16 => 2,
        }
    }

    /// Number `index` of an array.
    ///
    /// # Safety
    /// `array` points to more than `index` numbers of this format that may be read.
    #[inline(always)]
    pub(crate) unsafe fn read(self, array: *const u8, index: usize) -> f32 {
        // SAFETY: the caller's promise; the reads need no alignment.
        unsafe {
            match self {
                Self::Float32 => array.cast::<f32>().add(index).read_unaligned(),
                Self::Bfloat16 => widen(array.cast::<u16>().add(index).read_unaligned()),
            }
        }
    }

    /// Stores number `index` of an array, rounded if need be.
    ///
    /// # Safety
    /// `array` points to more than `index` numbers of this format that may be written.
    #[inline(always)]
    pub(crate) unsafe fn write(self, array: *mut u8, index: usize, value: f32) {
        // SAFETY: the caller's promise; the writes need no alignment.
        unsafe {
            match self {
                Self::Float32 => array.cast::<f32>().add(index).write_unaligned(value),
                Self::Bfloat16 => array.cast::<u16>().add(index).write_unaligned(round(value)),
            }
        }
    }
}

/// The float32 of a bfloat16; exact.
#[inline(always)]
pub(crate) const fn widen(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// The nearest bfloat16, the even one of two; a NaN stays a NaN.
#[inline(always)]
pub(crate) const fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        // A payload in the lower half only would round to infinity.
        return ((bits >> 16) | 0x40) as u16;
    }
    let half_or_less = 0x7fff + ((bits >> 16) & 1);
    ((bits + half_or_less) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_even_neighbour() {
        assert_eq!(round(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(round(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(round(f32::from_bits(0x3f80_8001)), 0x3f81);
        assert_eq!(round(f32::from_bits(0xbf81_7fff)), 0xbf81);
    }

    #[test]
    fn the_ends_of_the_range_keep_their_meaning() {
        assert_eq!(round(f32::MAX), 0x7f80); // beyond the largest bfloat16: infinity
        assert_eq!(round(f32::INFINITY), 0x7f80);
        assert_eq!(round(f32::NEG_INFINITY), 0xff80);
        assert_eq!(round(-0.0), 0x8000);
        assert!(widen(round(f32::from_bits(0x7f80_0001))).is_nan());
        assert!(widen(round(f32::NAN)).is_nan());
    }

    #[test]
    fn every_bfloat16_survives_widening() {
        for bits in 0..=u16::MAX {
            let wide = widen(bits);
            if wide.is_nan() {
                assert!(widen(round(wide)).is_nan());
            } else {
                assert_eq!(round(wide), bits);
            }
        }
    }
}
