//! What `O_DIRECT` asks of a read (open(2)): offset, length and memory on whole blocks. Pure.

/// What offsets, lengths and addresses are a multiple of: the logical block of every disk that we
/// know, and a page, which no file system asks more than. [`super::probe`] finds out by a read.
pub const BLOCK_BYTES: usize = 4096;

/// How many of the `size_bytes` from `offset` on can go straight to memory at `address`.
pub fn straight_bytes(offset: u64, address: usize, size_bytes: usize) -> usize {
    let aligned = offset.is_multiple_of(BLOCK_BYTES as u64) && address.is_multiple_of(BLOCK_BYTES);
    if aligned { size_bytes - size_bytes % BLOCK_BYTES } else { 0 }
}

/// What a read leaves to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All is there.
    Done,
    /// So many bytes are there, and the rest is to be asked for again.
    Short(usize),
    /// The file ends behind so many bytes.
    Ended(usize),
}

/// What a read of `asked_bytes` (whole blocks) that brought `read_bytes` leaves to do.
///
/// A read that was cut short goes on at a block, since another offset would be refused. Only the
/// file's end cuts off less than one.
pub fn progress(asked_bytes: usize, read_bytes: usize) -> Progress {
    let whole_bytes = read_bytes - read_bytes % BLOCK_BYTES;
    match read_bytes {
        _ if read_bytes >= asked_bytes => Progress::Done,
        _ if whole_bytes > 0 => Progress::Short(whole_bytes),
        _ => Progress::Ended(read_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_on_a_boundary_go_straight() {
        let cases = [
            ((0, 0, 10_000), 8192),
            ((4096, 1 << 21, 8192), 8192),
            ((4096, 4096, 4095), 0),
            ((1, 4096, 10_000), 0),
            ((512, 4096, 10_000), 0),
            ((0, 64, 10_000), 0),
        ];
        for ((offset, address, size_bytes), straight) in cases {
            assert_eq!(straight_bytes(offset, address, size_bytes), straight, "{offset} {address}");
        }
    }

    #[test]
    fn a_short_read_goes_on_at_a_block_and_ends_with_the_file() {
        let cases = [
            ((8192, 8192), Progress::Done),
            ((8192, 4096), Progress::Short(4096)),
            ((8192, 5000), Progress::Short(4096)),
            ((8192, 904), Progress::Ended(904)),
            ((8192, 0), Progress::Ended(0)),
            ((0, 0), Progress::Done),
        ];
        for ((asked, read), expected) in cases {
            assert_eq!(progress(asked, read), expected, "{read} of {asked}");
        }
    }
}
