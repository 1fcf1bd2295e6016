//! The size of a directory tree.

use std::io;
use std::path::{Path, PathBuf};

/// The total size of all files in `dir` and below, except those in `except`. Links are not followed,
/// and files removed meanwhile are ignored.
pub(super) fn walk(dir: &Path, except: &[PathBuf]) -> io::Result<u64> {
    let mut bytes = 0;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        // A path is built only in directories with an exception, which saves time in the archive.
        let leaves_out = except.iter().any(|path| path.parent() == Some(&dir));
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => dirs.push(entry.path()),
                Ok(metadata)
                    if metadata.is_file() && !(leaves_out && except.contains(&entry.path())) =>
                {
                    bytes += metadata.len();
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(bytes)
}
