//! The file system of the machine.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Advice, fadvise};

use super::open::{OpenMode, open_directory, open_file};
use super::{Disk, DiskDir, DiskFile, FileStat, Identity, kind, walk};

/// The file system of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(create_new(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(open_file(path, OpenMode::ReadWrite)?))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(open_file(path, OpenMode::Read)?))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // The file system (NFS, 9p, older ZFS) or the kernel does not support the flag.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => rename_where_absent(from, to),
            renamed => renamed.map_err(io::Error::from),
        }
    }

    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn open_dir(&self, dir: &Path) -> io::Result<Box<dyn DiskDir>> {
        Ok(Box::new(open_directory(dir)?))
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        match std::fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
            made => made,
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(String, bool)>> {
        let entries = match std::fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        entries
            .map(|entry| {
                let entry = entry?;
                let file_type = entry.file_type()?;
                // A link to a directory counts as one: a month may be moved to another disk.
                let is_dir = file_type.is_dir()
                    || file_type.is_symlink()
                        && std::fs::metadata(entry.path()).is_ok_and(|target| target.is_dir());
                Ok((entry.file_name().to_string_lossy().into_owned(), is_dir))
            })
            .collect()
    }

    fn identity(&self, path: &Path) -> io::Result<Option<Identity>> {
        match std::fs::metadata(path) {
            Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn size_at(&self, path: &Path) -> io::Result<u64> {
        Ok(std::fs::metadata(path)?.len())
    }

    fn used_bytes(&self, dir: &Path) -> io::Result<u64> {
        walk::walk(dir, &[])
    }

    fn sync_file_system(&self, dir: &Path) -> io::Result<bool> {
        if !kind::syncs_as_a_whole(dir)? {
            return Ok(false);
        }
        rustix::fs::syncfs(open_directory(dir)?)?;
        Ok(true)
    }

    /// Does nothing: each call of `used_bytes` counts.
    fn count_again(&self) {}

    fn free_files(&self, dir: &Path) -> io::Result<Option<u64>> {
        let stat = rustix::fs::statvfs(dir)?;
        // File systems that allocate inodes dynamically report 0.
        Ok((stat.f_files > 0).then_some(stat.f_favail))
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn capacity_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }
}

/// `rename_new` for systems without `RENAME_NOREPLACE`: checks that `to` does not exist, then renames.
/// Only the process that holds the lock of the data directory creates such names, and a mutex
/// serializes its threads, so no file appears between the check and the rename. A hard link and an
/// unlink are not used instead, because a crash between them leaves one file under two names.
fn rename_where_absent(from: &Path, to: &Path) -> io::Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Links are not followed: a dangling link counts as existing.
    match std::fs::symlink_metadata(to) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::rename(from, to),
        Err(error) => Err(error),
    }
}

/// Creates a file; fails if the path exists.
#[expect(
    clippy::disallowed_methods,
    reason = "O_EXCL: no existing file is opened"
)]
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
}

impl DiskDir for File {
    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

impl DiskFile for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match FileExt::read_at(self, buf, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn release_cache(&self, to: u64) {
        if let Some(length) = NonZeroU64::new(to) {
            let _only_advice = fadvise(self, 0, Some(length), Advice::DontNeed);
        }
    }

    fn try_lock(&self) -> io::Result<bool> {
        match File::try_lock(self) {
            Ok(()) => Ok(true),
            Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn unlock(&self) {
        if let Err(error) = File::unlock(self) {
            tracing::debug!(%error, "cannot release a file lock; it is held until the file is closed");
        }
    }

    fn stat(&self) -> io::Result<FileStat> {
        let metadata = self.metadata()?;
        Ok(FileStat {
            identity: (metadata.dev(), metadata.ino()),
            size: metadata.len(),
            links: metadata.nlink(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rename = fn(&Path, &Path) -> io::Result<()>;

    #[test]
    fn rename_new_never_replaces_with_either_implementation() {
        // Fails if an existing file or a dangling link is replaced, or a file is left under two names.
        let by_system: Rename = |from, to| RealDisk.rename_new(from, to);
        for rename in [by_system, rename_where_absent] {
            let dir = tempfile::tempdir().expect("a directory");
            let [from, to, link] = ["from", "to", "link"].map(|name| dir.path().join(name));
            std::fs::write(&from, "new").expect("written");
            std::fs::write(&to, "old").expect("written");
            std::os::unix::fs::symlink("nowhere", &link).expect("a link");
            for taken in [&to, &link] {
                let error = rename(&from, taken).expect_err("taken");
                assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            }
            assert_eq!(std::fs::read(&to).expect("there"), b"old");
            std::fs::remove_file(&to).expect("removed");
            rename(&from, &to).expect("free");
            assert_eq!(std::fs::read(&to).expect("there"), b"new");
            assert!(!from.exists());
            let missing = rename(&from, &dir.path().join("other")).expect_err("missing");
            assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        }
    }
}
