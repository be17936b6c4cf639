//! The sidecar: a byte that says what is done with the rest, eight for the length of the data, the
//! header's text, and then a sidecar, or changes of the right one.

use std::path::Path;

use stoker_loader_core::digest::CHUNK_BYTES;
use stoker_loader_core::header::{self, LENGTH_BYTES};
use stoker_loader_core::sidecar::{encode, parse};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::bytes::Bytes;
use crate::header::{check_sound, check_written_again, needed_bytes};

const FILE: &str = "model.stx";
/// Makes a few hundred digests.
const MAX_DATA_BYTES: u64 = 2 << 30;
const HEAD_BYTES: usize = 64;
const RECORD_BYTES: usize = 40;
const DIGEST_BYTES: usize = 16;
/// The bits of the first byte.
const CHANGED: u8 = 1;
const SEALED: u8 = 2;

/// Parses a sidecar beside a header.
pub fn check(input: &[u8]) {
    let mut input = Bytes(input);
    let (mode, room) = (input.byte(), input.number() % MAX_DATA_BYTES);
    let text = input.block();
    let data_offset = LENGTH_BYTES + text.len() as u64;
    let data_bytes =
        if mode & CHANGED == CHANGED { needed_bytes(text) % MAX_DATA_BYTES } else { room };
    let file_bytes = data_offset + data_bytes;
    let parsed = header::parse(Path::new("model.safetensors"), text, file_bytes);
    let mut bytes = match &parsed {
        Ok(header) if mode & CHANGED == CHANGED => {
            let chunks: Vec<u128> = (0..file_bytes.div_ceil(CHUNK_BYTES)).map(u128::from).collect();
            let mut bytes = encode(header, text, file_bytes, &chunks);
            while !input.is_empty() {
                let at = input.number() as usize % bytes.len();
                bytes[at] ^= input.byte();
            }
            bytes
        }
        _ => input.0.to_vec(),
    };
    if mode & SEALED == SEALED {
        seal(&mut bytes, text, file_bytes);
    }
    match parse(Path::new(FILE), &bytes, text, file_bytes) {
        Ok(Some(sidecar)) => {
            assert_eq!(encode(&sidecar.header, text, file_bytes, &sidecar.chunks), bytes);
            check_sound(&sidecar.header, data_offset, data_bytes);
            check_written_again(&sidecar.header, data_offset, data_bytes);
        }
        Ok(None) => {
            let bound = bytes[8..12] == 1u32.to_le_bytes()
                && bytes[16..32] == binding(text, file_bytes)
                && bytes[32..48] == xxh3_128(text).to_le_bytes();
            assert!(!bound, "only a sidecar of something else, or of later, is ignored");
        }
        Err(error) => {
            assert_eq!((error.kind.code(), &*error.file), ("sidecar_invalid", Path::new(FILE)));
        }
    }
}

fn binding(text: &[u8], file_bytes: u64) -> [u8; 16] {
    let both = u128::from(file_bytes) | (text.len() as u128) << 64;
    both.to_le_bytes()
}

/// Makes all hashes right, as a writer with a mistake would: else no search gets behind them.
fn seal(bytes: &mut [u8], text: &[u8], file_bytes: u64) {
    if bytes.len() < HEAD_BYTES + DIGEST_BYTES {
        return;
    }
    bytes[..8].copy_from_slice(b"STKTENSR");
    bytes[16..32].copy_from_slice(&binding(text, file_bytes));
    bytes[32..48].copy_from_slice(&xxh3_128(text).to_le_bytes());
    let body_bytes = bytes.len() - DIGEST_BYTES;
    seal_names(&mut bytes[..body_bytes]);
    let checksum = xxh3_128(&bytes[..body_bytes]).to_le_bytes();
    bytes[body_bytes..].copy_from_slice(&checksum);
}

fn seal_names(body: &mut [u8]) {
    let count =
        |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| body[at + byte])) as usize;
    let (tensors, strings) = (count(12), count(60));
    let Some(first) = body.len().checked_sub(strings) else { return };
    let records = HEAD_BYTES..body.len();
    for at in records.step_by(RECORD_BYTES).take(tensors) {
        let Some(record) = body.get(at..at + RECORD_BYTES) else { return };
        let number = |place: usize| {
            u32::from_le_bytes(std::array::from_fn(|byte| record[place + byte])) as usize
        };
        let begin = first + number(16);
        let hash = body.get(begin..begin + number(20)).map(xxh3_64);
        if let Some(hash) = hash {
            body[at..at + 8].copy_from_slice(&hash.to_le_bytes());
        }
    }
}
