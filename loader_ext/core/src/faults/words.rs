//! A message without an allocation, as a signal handler has to write it.

/// More than a path and what is said about it.
const MAX_BYTES: usize = 5120;

/// Bytes for standard error; what does not fit is left out.
pub struct Words {
    bytes: [u8; MAX_BYTES],
    used: usize,
}

impl Default for Words {
    fn default() -> Self {
        Self { bytes: [0; MAX_BYTES], used: 0 }
    }
}

impl Words {
    /// Adds some bytes.
    pub fn say(&mut self, bytes: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(self.used).zip(bytes) {
            *place = *byte;
            self.used += 1;
        }
    }

    /// Adds a number in decimal.
    pub fn number(&mut self, mut value: u64) {
        let mut digits = [b'0'; 20]; // 2^64 has as many
        let mut used = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
            used += 1;
            if value == 0 {
                break;
            }
        }
        let unused = digits.len() - used;
        self.say(digits.get(unused..).unwrap_or_default());
    }

    /// What was said so far.
    pub fn said(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }

    /// Writes all of it to standard error, as far as that takes it.
    pub fn write(&self) {
        let mut rest = self.said();
        while !rest.is_empty() {
            // SAFETY: the bytes are ours and as many as said; write(2) may be called in a handler.
            let written =
                unsafe { libc::write(libc::STDERR_FILENO, rest.as_ptr().cast(), rest.len()) };
            match usize::try_from(written) {
                Ok(written) if written > 0 => rest = rest.get(written..).unwrap_or_default(),
                // Nobody is left to tell.
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_words_stand_in_order() {
        let mut words = Words::default();
        words.say(b"of ");
        words.number(0);
        words.say(b" and ");
        words.number(u64::MAX);
        assert_eq!(words.said(), b"of 0 and 18446744073709551615");
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let mut words = Words::default();
        words.say(&[b'x'; MAX_BYTES - 1]);
        words.number(77);
        assert_eq!(words.said().len(), MAX_BYTES);
        assert_eq!(words.said().last(), Some(&b'7'));
    }
}
