use std::fs;
use std::ptr;

use super::*;

#[test]
fn writes_stay_private() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f");
    fs::write(&path, [0]).unwrap();
    let mapping = Mapping::new(Arc::new(File::open(&path).unwrap()), &path, 1).unwrap();
    // SAFETY: the address is within the mapping, which is writable and used by this test alone.
    unsafe { ptr::write_volatile(mapping.address().as_ptr(), 99) };
    // SAFETY: as above.
    assert_eq!(unsafe { ptr::read_volatile(mapping.address().as_ptr()) }, 99);
    assert_eq!(fs::read(&path).unwrap()[0], 0);
}

#[test]
fn a_length_beyond_memory_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f");
    fs::write(&path, b"x").unwrap();
    let file = Arc::new(File::open(&path).unwrap());
    assert_eq!(Mapping::new(file, &path, u64::MAX).unwrap_err().kind.code(), "io_error");
}
