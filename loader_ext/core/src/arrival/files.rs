//! The files of an arrival: their names, and whether what has a name is the very file that is meant.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::head::{HEAD_BYTES, Head, parse};
use crate::error::{Error, Result};

/// Where the bytes of a file grow until it is complete.
pub fn part_path(destination: &Path) -> PathBuf {
    beside(destination, ".part")
}

/// Where the map of a file on its way is.
pub fn map_path(destination: &Path) -> PathBuf {
    beside(destination, MAP_SUFFIX)
}

/// Whether anything, even a broken link, has this name.
pub(crate) fn exists(destination: &Path) -> bool {
    destination.symlink_metadata().is_ok()
}

/// The end of every map's name.
pub const MAP_SUFFIX: &str = ".part.map";

fn beside(destination: &Path, suffix: &str) -> PathBuf {
    let mut name = destination.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(super) fn open_map(path: &Path) -> Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some).map_err(|error| Error::io(path, "open", &error)),
    }
}

/// Whether the open file is the one that the path names now.
pub(super) fn is_at(file: &File, path: &Path) -> Result<bool> {
    let opened = file.metadata().map_err(|error| Error::io(path, "stat", &error))?;
    match fs::metadata(path) {
        Ok(named) => Ok((opened.dev(), opened.ino()) == (named.dev(), named.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(path, "stat", &error)),
    }
}

pub(super) fn read_head(file: &File, path: &Path) -> Result<Option<Head>> {
    let io = |error: &std::io::Error| Error::io(path, "read", error);
    let map_bytes = file.metadata().map_err(|error| io(&error))?.len();
    let mut head = [0; HEAD_BYTES];
    match file.read_exact_at(&mut head, 0) {
        Ok(()) => Ok(parse(&head, map_bytes)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(io(&error)),
    }
}

/// Opens the file at `path` if it is the one with this inode.
pub(super) fn open_inode(path: &Path, inode: u64, writes: bool) -> Result<Option<File>> {
    let mut options = OpenOptions::new();
    // Whatever else has the name by now, a pipe say, is neither followed nor waited for.
    options.read(true).write(writes).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    match options.open(path) {
        Ok(file) => {
            let found = file.metadata().map_err(|error| Error::io(path, "stat", &error))?;
            Ok(Some(file).filter(|_| found.ino() == inode))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, "open", &error)),
    }
}

pub(super) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path, "unlink", &error)),
        _ => Ok(()),
    }
}
