//! The regular files under a path, by sorted relative names.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// What to do with a symbolic link to a regular file. Links to directories are always refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Stand for the file that they point to.
    Follow,
    /// Are errors: a digest must not depend on bytes elsewhere.
    Refuse,
}

/// One regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path below the root with `/` between the parts; the file's own name for a file.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub size_bytes: u64,
}

/// All regular files under `root` (or `root` itself) by name.
///
/// Errors: `NotFound`, `SymlinkRefused` for links, sockets, devices and pipes, `NameNotUtf8`, `Io`.
pub fn inventory(root: &Path, links: Links) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let found = fs::metadata(root).map_err(|error| Error::io(root, "stat", &error))?;
    if found.is_dir() {
        walk(root, "", links, &mut entries)?;
    } else {
        let name = root.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::new(root, Kind::NameNotUtf8))?;
        entries.extend(regular(root, name.to_owned(), links)?);
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn walk(directory: &Path, prefix: &str, links: Links, entries: &mut Vec<Entry>) -> Result<()> {
    let failed = |error| Error::io(directory, "reading the directory", &error);
    for item in fs::read_dir(directory).map_err(failed)? {
        let path = item.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::new(&path, Kind::NameNotUtf8))?;
        let name = format!("{prefix}{name}");
        match regular(&path, name.clone(), links)? {
            Some(entry) => entries.push(entry),
            None => walk(&path, &format!("{name}/"), links, entries)?,
        }
    }
    Ok(())
}

/// The entry of a regular file, `None` for a directory.
fn regular(path: &Path, name: String, links: Links) -> Result<Option<Entry>> {
    let failed = |error| Error::io(path, "stat", &error);
    let mut found = fs::symlink_metadata(path).map_err(failed)?;
    if found.is_dir() {
        return Ok(None);
    }
    if found.is_symlink() && links == Links::Follow {
        found = fs::metadata(path).map_err(failed)?;
    }
    if !found.is_file() {
        return Err(Error::new(path, Kind::SymlinkRefused));
    }
    Ok(Some(Entry { name, path: path.to_path_buf(), size_bytes: found.len() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn names_are_sorted_and_relative() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("sub")).unwrap();
        fs::write(root.path().join("sub/b"), b"12").unwrap();
        fs::write(root.path().join("a"), b"1").unwrap();
        let found = inventory(root.path(), Links::Refuse).unwrap();
        let names: Vec<_> = found.iter().map(|e| (e.name.as_str(), e.size_bytes)).collect();
        assert_eq!(names, [("a", 1), ("sub/b", 2)]);
    }

    #[test]
    fn links_are_followed_to_files_alone() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a"), b"1").unwrap();
        symlink("a", root.path().join("link")).unwrap();
        assert_eq!(inventory(root.path(), Links::Follow).unwrap().len(), 2);
        let error = inventory(root.path(), Links::Refuse).unwrap_err();
        assert_eq!((error.kind, error.file), (Kind::SymlinkRefused, root.path().join("link")));
        symlink(".", root.path().join("loop")).unwrap();
        assert!(inventory(root.path(), Links::Follow).is_err());
    }
}
