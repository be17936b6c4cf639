use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::source::Buffered;

/// A file on the disk of the repository: `/tmp` may be a tmpfs.
struct Bench {
    _root: TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Bench {
    fn new(size_bytes: usize) -> Self {
        let root = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = root.path().join("f");
        let bytes: Vec<u8> =
            (0..size_bytes).map(|at| (at % 251) as u8 ^ (at >> 12) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        Self { _root: root, path, bytes }
    }

    fn checked(&self) -> CheckedFile {
        let file = Arc::new(File::open(&self.path).unwrap());
        let file_bytes = self.bytes.len() as u64;
        CheckedFile { file, path: self.path.clone(), file_bytes, arriving: None }
    }

    /// Every source that this machine allows, by name.
    fn sources(&self) -> Vec<(&'static str, Box<dyn Source>)> {
        let mut sources: Vec<(_, Box<dyn Source>)> =
            vec![("pread", Box::new(Buffered::new(self.checked())))];
        let direct = [
            ("io_uring", Direct::by_ring(self.checked(), &mut None)),
            ("direct_pread", Direct::by_pread(self.checked())),
        ];
        for (name, opened) in direct {
            match opened {
                Ok(direct) => sources.push((name, Box::new(direct))),
                Err(error) => eprintln!("skipped: {name} is refused here ({error})"),
            }
        }
        sources
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]
    #[test]
    fn every_range_of_every_file_is_read_wherever_it_goes(
        size_bytes in prop_oneof![1usize..9000, (3usize << 20)..(3 << 20) + 9000],
        cuts in prop::collection::vec((0.0..1.0f64, 0.0..1.0f64, 0usize..5000), 1..5),
    ) {
        let bench = Bench::new(size_bytes);
        for (name, source) in bench.sources() {
            for &(begin, share, shift) in &cuts {
                // Beginnings on a block and memory on one are what a load has; others are as right.
                for (block, shift) in [(BLOCK_BYTES, 0), (1, shift)] {
                    let begin = (begin * size_bytes as f64) as usize / block * block;
                    let length = (share * (size_bytes - begin) as f64) as usize;
                    let mut memory = vec![0; length + 2 * BLOCK_BYTES + shift];
                    let first = memory.as_ptr().align_offset(BLOCK_BYTES) + shift;
                    source.read(begin as u64, &mut memory[first..first + length]).unwrap();
                    prop_assert!(
                        memory[first..first + length] == bench.bytes[begin..begin + length],
                        "{name} {begin} {length} {shift}"
                    );
                    prop_assert!(memory[first + length..].iter().all(|&byte| byte == 0));
                }
            }
        }
    }
}

#[test]
fn a_file_that_became_shorter_is_an_error_and_never_zeroes() {
    for found_bytes in [0, 1, 4096, 5000, 1 << 20, (1 << 20) + 1] {
        let bench = Bench::new((2 << 20) + 100);
        let sources = bench.sources();
        File::options().write(true).open(&bench.path).unwrap().set_len(found_bytes).unwrap();
        let expected_bytes = bench.bytes.len() as u64;
        for (name, source) in sources {
            let error = source.read(0, &mut vec![0; expected_bytes as usize]).unwrap_err();
            assert_eq!(error.kind, Kind::FileChanged { expected_bytes, found_bytes }, "{name}");
        }
    }
}

/// What a process has not mapped is a real file's range that the kernel fails to read.
#[test]
fn a_read_that_fails_names_file_and_byte() {
    let path = PathBuf::from("/proc/self/mem");
    let open = || File::open(&path).unwrap();
    let checked =
        || CheckedFile { file: open().into(), path: path.clone(), file_bytes: 0, arriving: None };
    let mut sources: Vec<Box<dyn Source>> = vec![
        Box::new(Buffered::new(checked())),
        Box::new(Direct { checked: checked(), file: open(), engine: Engine::Pread }),
    ];
    if let Ok(rings) = Rings::new() {
        let engine = Engine::Rings(Arc::new(rings));
        sources.push(Box::new(Direct { checked: checked(), file: open(), engine }));
    }
    for source in sources {
        let error = source.read(8192, &mut [0; 10_000]).unwrap_err();
        assert!(matches!(error.kind, Kind::Io { errno: Some(libc::EIO), .. }), "{error}");
        assert_eq!((error.file, error.offset), (path.clone(), Some(8192)));
    }
}

/// As pinned memory may be to a disk: the stand-in's is plain.
#[test]
fn memory_that_the_disk_cannot_write_to_is_filled_all_the_same() {
    let body: Vec<u8> = (0..3 * BOUNCE_BYTES + 100).map(|index| (index % 251) as u8).collect();
    let mut memory = vec![0; body.len() + BLOCK_BYTES];
    let first = memory.as_ptr().align_offset(BLOCK_BYTES);
    let refused = memory.as_ptr_range();
    let asked = Cell::new(0);
    let read = |offset: u64, into: &mut [u8]| {
        asked.set(asked.get() + 1);
        if refused.contains(&into.as_ptr()) {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        let rest = &body[offset as usize..];
        let length = rest.len().min(into.len());
        into[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    };
    fill(&read, 0, &mut memory[first..first + body.len()]).unwrap();
    assert!(memory[first..first + body.len()] == body);
    assert!(asked.get() > 1);
}

#[test]
fn a_file_system_that_refuses_o_direct_is_named() {
    let path = PathBuf::from("/proc/self/mem");
    let file = Arc::new(File::open(&path).unwrap());
    let checked = CheckedFile { file, path, file_bytes: 0, arriving: None };
    let error = Direct::by_pread(checked).err().unwrap();
    let action = "opening with O_DIRECT";
    let reason = io::Error::from_raw_os_error(libc::EINVAL).to_string();
    assert_eq!(error.kind, Kind::Io { action, reason, errno: Some(libc::EINVAL) });
}

#[test]
fn the_checked_file_is_read_and_not_what_its_path_names_by_now() {
    let bench = Bench::new(10_000);
    let checked = bench.checked();
    fs::remove_file(&bench.path).unwrap();
    fs::write(&bench.path, vec![0; 10_000]).unwrap();
    let mut found = vec![0; 10_000];
    Direct::by_pread(checked).unwrap().read(0, &mut found).unwrap();
    assert!(found == bench.bytes);
}
