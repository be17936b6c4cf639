//! Which file an address is of, by `/proc/self/maps` (proc(5)) and without an allocation.

use std::mem::MaybeUninit;

const PATH_BYTES: usize = 4096; // PATH_MAX, its zero included
/// Longer than any line: the numbers in front of the path have less than 100 bytes.
const LINE_BYTES: usize = PATH_BYTES + 100;
const READ_BYTES: usize = 1024;

/// A byte of a file.
pub struct Place {
    path: [u8; PATH_BYTES],
    path_bytes: usize,
    /// Its number in the file.
    pub offset: u64,
}

impl Default for Place {
    fn default() -> Self {
        Self { path: [0; PATH_BYTES], path_bytes: 0, offset: 0 }
    }
}

impl Place {
    /// The file's path as the kernel writes it, `(deleted)` included.
    pub fn path(&self) -> &[u8] {
        self.path.get(..self.path_bytes).unwrap_or_default()
    }

    /// How long the file is now; `None` if it is not there.
    pub fn file_bytes(&self) -> Option<u64> {
        let mut found = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: the path ends with a zero (`set` leaves the last byte alone) and the place for
        // the result is ours; stat(2) may be called in a handler.
        let status = unsafe { libc::stat(self.path.as_ptr().cast(), found.as_mut_ptr()) };
        // SAFETY: the call succeeded, so it was filled in.
        (status == 0).then(|| unsafe { found.assume_init() }.st_size.cast_unsigned())
    }

    fn set(&mut self, path: &[u8], offset: u64) {
        self.path_bytes = path.len().min(PATH_BYTES - 1);
        self.offset = offset;
        for (place, byte) in self.path.iter_mut().take(PATH_BYTES - 1).zip(path) {
            *place = *byte;
        }
    }
}

/// Finds the file that is mapped at an address; false if there is none.
pub fn find(address: usize, place: &mut Place) -> bool {
    // SAFETY: the path is a constant that ends with a zero; open(2) may be called in a handler.
    let file = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if file < 0 {
        return false;
    }
    let mut line = [0; LINE_BYTES];
    let mut used = 0;
    let mut found = false;
    let mut buffer = [0u8; READ_BYTES];
    while !found {
        // SAFETY: the buffer is ours and as long as said; read(2) may be called in a handler.
        let count = unsafe { libc::read(file, buffer.as_mut_ptr().cast(), buffer.len()) };
        let Some(bytes) = usize::try_from(count).ok().and_then(|count| buffer.get(..count)) else {
            break;
        };
        if bytes.is_empty() {
            break;
        }
        for byte in bytes {
            if *byte != b'\n' {
                if let Some(end) = line.get_mut(used) {
                    *end = *byte;
                    used += 1;
                }
                continue;
            }
            found = found || look(line.get(..used).unwrap_or_default(), address, place);
            used = 0;
        }
    }
    // SAFETY: the descriptor is ours; close(2) may be called in a handler.
    unsafe { libc::close(file) };
    found
}

/// Takes a line's file if the address is in its range.
fn look(line: &[u8], address: usize, place: &mut Place) -> bool {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let mut range = fields.next().unwrap_or_default().splitn(2, |byte| *byte == b'-');
    let mut number = || range.next().and_then(hexadecimal);
    let (Some(begin), Some(end)) = (number(), number()) else { return false };
    let Some(offset) = fields.nth(1).and_then(hexadecimal) else { return false };
    let path = fields.nth(2).unwrap_or_default().trim_ascii_start();
    let address = address as u64;
    if !(begin..end).contains(&address) || !path.starts_with(b"/") {
        return false;
    }
    place.set(path, offset.wrapping_add(address - begin));
    true
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |value, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(value.checked_mul(16)? + u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mapping;
    use std::fs::File;
    use std::os::unix::ffi::OsStrExt;
    use std::sync::Arc;

    #[test]
    fn an_address_of_a_mapping_is_a_byte_of_its_file() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("with two  spaces");
        std::fs::write(&path, vec![1; 3 << 20]).unwrap();
        let mapping = Mapping::new(Arc::new(File::open(&path).unwrap()), &path, 3 << 20).unwrap();
        let mut place = Place::default();
        assert!(find(mapping.address().as_ptr() as usize + (2 << 20) + 7, &mut place));
        assert_eq!((place.path(), place.offset), (path.as_os_str().as_bytes(), (2 << 20) + 7));
        assert_eq!(place.file_bytes(), Some(3 << 20));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(place.file_bytes(), None);
    }

    #[test]
    fn memory_of_no_file_is_no_place() {
        let local = 7u8;
        assert!(!find(&raw const local as usize, &mut Place::default()));
        assert!(!find(0, &mut Place::default()));
    }

    #[test]
    fn lines_that_are_none_are_stepped_over() {
        let mut place = Place::default();
        let line = b"1000-2000 rw-p 00003000 08:01 12    /a (deleted)";
        assert!(look(line, 0x1fff, &mut place));
        assert_eq!((place.path(), place.offset), (&b"/a (deleted)"[..], 0x3fff));
        assert!(!look(line, 0x2000, &mut place));
        for line in
            [&b""[..], b"-", b"1000-2000", b"x-y rw-p 0 08:01 1 /a", b"1000-2000 rw-p 0 0 0 [heap]"]
        {
            assert!(!look(line, 0x1000, &mut place));
        }
    }
}
