//! Takes an input apart, from the front; what is missing is zero.

/// An input that is used up.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    /// The next number of 64 bits, little-endian.
    pub fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// The next bytes: as many as the two in front of them say, and as are there.
    pub fn block(&mut self) -> &'a [u8] {
        let wanted = usize::from(u16::from_le_bytes(self.array()));
        let (block, rest) = self.0.split_at(wanted.min(self.0.len()));
        self.0 = rest;
        block
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let (front, rest) = self.0.split_at(N.min(self.0.len()));
        self.0 = rest;
        std::array::from_fn(|at| front.get(at).copied().unwrap_or(0))
    }
}
