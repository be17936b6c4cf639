//! Small safetensors files for tests.

use std::fs;
use std::path::Path;

/// Writes a file of U8 tensors of one dimension, in the order given.
pub fn write_bytes(path: &Path, tensors: &[(&str, Vec<u8>)]) {
    let shaped: Vec<_> = tensors
        .iter()
        .map(|(name, data)| (*name, "U8", vec![data.len() as u64], data.clone()))
        .collect();
    write_tensors(path, &shaped);
}

/// Writes a file of tensors `(name, dtype, shape, bytes)` in the order given.
pub fn write_tensors(path: &Path, tensors: &[(&str, &str, Vec<u64>, Vec<u8>)]) {
    let mut begin = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| {
            let end = begin + data.len();
            let offsets = format!("[{begin},{end}]");
            begin = end;
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":{offsets}}}"#)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    tensors.iter().for_each(|(.., data)| bytes.extend(data));
    fs::write(path, bytes).expect("the test's directory is writable");
}
