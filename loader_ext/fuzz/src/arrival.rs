//! The arrival map, with its bitmap: a byte that says what is done with the rest, eight for the
//! length of the file, the identity's first byte, and the bytes of a map.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use stoker_loader_core::arrival::head::{Subject, parse};
use stoker_loader_core::arrival::{Arrival, map_path, part_path};
use stoker_loader_core::digest::CHUNK_BYTES;

use crate::bytes::Bytes;

const HEAD_BYTES: usize = 128;
const MAX_CHUNKS: u64 = 200;
const BOOT_AT: usize = 72;
/// The bits of the first byte: the map's head is made right, is of a part that is there, and of
/// another boot.
const SOUND: u8 = 1;
const OF_THE_PART: u8 = 2;
const OF_ANOTHER_BOOT: u8 = 4;

/// Waits on a map of any bytes, and then fetches on by it.
pub fn check(input: &[u8]) {
    let mut input = Bytes(input);
    let (mode, file_bytes) = (input.byte(), input.number() % (MAX_CHUNKS * CHUNK_BYTES));
    let subject = Subject { file_bytes, identity: [input.byte(); 32] };
    let destination = destination();
    fs::write(part_path(&destination), b"").expect("the folder is writable");
    let found = fs::metadata(part_path(&destination)).expect("it was written");
    let inode = if mode & OF_THE_PART == OF_THE_PART { found.ino() } else { 0 };
    let bytes = match mode & SOUND == SOUND {
        true => map(subject, inode, mode & OF_ANOTHER_BOOT == 0, input.0),
        false => input.0.to_vec(),
    };
    fs::write(map_path(&destination), &bytes).expect("the folder is writable");

    let head = parse(&bytes[..bytes.len().min(HEAD_BYTES)], bytes.len() as u64);
    match Arrival::watch(&destination) {
        Ok(arrival) => {
            let head = head.expect("what is mapped was parsed");
            assert_eq!(arrival.subject(), head.subject);
            check_bits(&arrival, &bytes, is_of_this_boot(&bytes));
        }
        Err(error) => {
            assert!(head.is_none());
            assert_eq!(error.kind.code(), "arrival_invalid");
            assert_eq!(error.file, map_path(&destination));
        }
    }
    let (arrival, _part) = Arrival::write(&destination, subject).expect("nobody else writes");
    assert_eq!(arrival.subject(), subject);
    let resumed = head.is_some_and(|head| head.subject == subject && head.inode == found.ino());
    match resumed {
        true => {
            check_bits(&arrival, &bytes, is_of_this_boot(&bytes));
            arrival.vouch();
            check_bits(&arrival, &bytes, true);
        }
        false => assert_eq!(arrival.missing_bytes(), file_bytes, "nothing of another subject"),
    }
    drop(arrival);
    fs::remove_file(map_path(&destination)).expect("it is there");
    fs::remove_file(part_path(&destination)).expect("it is there");
}

/// What the mapped map says is what its bytes say; nothing is believed that nobody vouches for.
fn check_bits(arrival: &Arrival, bytes: &[u8], is_believed: bool) {
    let subject = arrival.subject();
    let chunks = subject.file_bytes.div_ceil(CHUNK_BYTES) as usize;
    let digests = HEAD_BYTES + chunks.div_ceil(64) * 8;
    assert_eq!(digests + chunks * 16, bytes.len());
    let mut missing_bytes = subject.file_bytes;
    for chunk in 0..chunks {
        let is_there = bytes[HEAD_BYTES + chunk / 8] >> (chunk % 8) & 1 == 1;
        assert_eq!(arrival.claims(chunk), is_there);
        assert_eq!(arrival.has(chunk), is_there && is_believed);
        if is_there {
            let (begin, length) = subject.chunk(chunk);
            assert_eq!(begin, chunk as u64 * CHUNK_BYTES);
            missing_bytes -= if is_believed { length } else { 0 };
            let digest = &bytes[digests + chunk * 16..][..16];
            assert_eq!(arrival.digest(chunk).to_le_bytes(), digest);
        }
    }
    assert_eq!(arrival.missing_bytes(), missing_bytes);
    assert_eq!(arrival.is_complete(), bytes[8..12] == 1u32.to_le_bytes());
}

/// A map with a sound head: state and beat, bits and digests are the input's.
fn map(subject: Subject, inode: u64, is_of_this_boot: bool, input: &[u8]) -> Vec<u8> {
    let chunks = subject.file_bytes.div_ceil(CHUNK_BYTES) as usize;
    let mut bytes: Vec<u8> = input.iter().copied().take(8).collect();
    bytes.resize(8, 0);
    bytes.splice(..0, *b"STKARRV1");
    bytes.extend(subject.file_bytes.to_le_bytes());
    bytes.extend(CHUNK_BYTES.to_le_bytes());
    bytes.extend(subject.identity);
    bytes.extend(inode.to_le_bytes());
    if is_of_this_boot {
        bytes.extend(boot_id());
    }
    bytes.resize(HEAD_BYTES, 0);
    bytes.extend(input.iter().skip(8));
    bytes.resize(HEAD_BYTES + chunks.div_ceil(64) * 8 + chunks * 16, 0);
    bytes
}

fn is_of_this_boot(bytes: &[u8]) -> bool {
    bytes.get(BOOT_AT..BOOT_AT + 16).is_some_and(|boot| boot == boot_id())
}

fn boot_id() -> [u8; 16] {
    static BOOT: OnceLock<[u8; 16]> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("it is Linux");
        let digits = text.trim().replace('-', "");
        u128::from_str_radix(&digits, 16).expect("it is a UUID").to_be_bytes()
    })
}

/// In a folder of this process; who starts it says where folders of processes go, and removes them.
fn destination() -> &'static Path {
    static DESTINATION: OnceLock<PathBuf> = OnceLock::new();
    DESTINATION.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("arrival-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("there is room for a folder");
        folder.join("weights")
    })
}
