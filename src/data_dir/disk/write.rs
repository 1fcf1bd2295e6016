//! Files that are written as a whole and put in place by a rename.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::open::{OpenMode, open_file};
use super::real::create_new;
use super::{Disk, DiskFile, RealDisk};

/// Creates a file atomically: it is written under a temporary name by `write`, synced, and renamed.
/// Then the directory is synced. Fails with `AlreadyExists` if `path` exists.
pub fn write_new(
    disk: &dyn Disk,
    path: &Path,
    write: impl FnOnce(&dyn DiskFile) -> io::Result<()>,
) -> io::Result<()> {
    disk.rename_new(&write_part(disk, path, write)?, path)?;
    disk.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Replaces a file atomically: a reader sees the old file or the new one. The directory is not synced;
/// until the caller does so, a power failure may restore the old file.
pub fn write_over(
    disk: &dyn Disk,
    path: &Path,
    write: impl FnOnce(&dyn DiskFile) -> io::Result<()>,
) -> io::Result<()> {
    disk.rename_over(&write_part(disk, path, write)?, path)
}

fn write_part(
    disk: &dyn Disk,
    path: &Path,
    write: impl FnOnce(&dyn DiskFile) -> io::Result<()>,
) -> io::Result<PathBuf> {
    let part = part_path(path);
    match disk.remove(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create_new(&part)?;
    write(&*file)?;
    file.sync_data()?;
    Ok(part)
}

/// Replaces a small file by rename, without a sync: a reader sees the old content or the new one. The
/// new file is locked (flock) before it becomes visible, until the returned file is closed.
pub fn put_held(path: &Path, bytes: &[u8]) -> io::Result<Arc<dyn DiskFile>> {
    let part = part_path(path);
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = create_new(&part)?;
    FileExt::write_all_at(&file, bytes, 0)?;
    file.lock()?;
    std::fs::rename(&part, path)?;
    Ok(Arc::new(file))
}

/// Whether a process holds an exclusive flock on the file. Fails if the file does not exist.
pub fn is_held(path: &Path) -> io::Result<bool> {
    let file = open_file(path, OpenMode::Read)?;
    match File::try_lock_shared(&file) {
        Ok(()) => Ok(false),
        Err(std::fs::TryLockError::WouldBlock) => Ok(true),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

/// The temporary name `name.part`, which is not the name of a segment.
fn part_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}

/// Syncs `from`, renames it over `to`, and syncs the directory. A reader sees the old file or the new
/// one, also after a power failure. Used for the database, which is always on the real disk.
pub fn replace(from: &Path, to: &Path) -> io::Result<()> {
    open_file(from, OpenMode::Read)?.sync_all()?;
    std::fs::rename(from, to)?;
    RealDisk.sync_dir(to.parent().unwrap_or(Path::new(".")))
}
