//! The interface to the file system: create, append, sync, rename, sync a directory.
//!
//! Every operation that durability depends on goes through [`Disk`], so that a test can replace it by
//! a simulated disk and crash between any two calls. [`RealDisk`] is the file system of the machine.
//! The interface knows nothing about the meaning of the files. It has no state and no thread of its
//! own; every error is returned to the caller.

mod kind;
mod layer;
mod lock;
mod named;
mod open;
mod read;
mod real;
mod usage;
mod walk;
mod write;

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

pub use self::kind::unsafe_for_wal;
pub use self::layer::{DiskLayer, FileLayer};
pub use self::lock::{DirLock, Lock, LockError, WAIT_LOGGED_AFTER, lock_holders};
pub use self::named::{read, read_to_string};
pub use self::open::{Guard, Unusable, is_relative_link, unusable, with_suffix};
pub use self::read::{last_line_end, read_exactly};
pub use self::real::RealDisk;
pub use self::usage::{MeteredDisk, UsageThread};
pub use self::write::{is_held, put_held, replace, write_new, write_over};

/// An open file. Reads and writes take an offset; there is no file cursor.
pub trait DiskFile: Send + Sync + 'static {
    /// Reads up to `buf.len()` bytes at `offset`; 0 at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`; on failure any part of them may have been written.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// fdatasync: the bytes and the length survive power loss (the directory entry may not).
    fn sync_data(&self) -> io::Result<()>;
    /// Truncates the file to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// The current identity, size and link count of the open file.
    fn stat(&self) -> io::Result<FileStat>;
    /// Advises the system to drop the first `to` bytes, which are synced, from the page cache.
    fn release_cache(&self, to: u64);
    /// The current length in bytes.
    fn size(&self) -> io::Result<u64> {
        Ok(self.stat()?.size)
    }
    /// Takes an exclusive flock on the file, which is held until the file is closed. Returns false if
    /// another process holds it.
    fn try_lock(&self) -> io::Result<bool>;
    /// Releases that lock while the file stays open.
    fn unlock(&self);
}

/// An open directory, so that a sync needs no free file descriptor.
pub trait DiskDir: Send + Sync + 'static {
    /// fsync: entries that were created, renamed or removed survive power loss.
    fn sync(&self) -> io::Result<()>;
}

/// The identity, size and link count of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// The same as [`Disk::identity`] returns for a path that leads to this file.
    pub identity: Identity,
    /// The length in bytes.
    pub size: u64,
    /// The number of hard links; 0 once the file was removed.
    pub links: u64,
}

/// The device and inode of a file. They are compared only while the file is open, and never stored.
pub type Identity = (u64, u64);

/// A file's modification time (seconds and nanoseconds since 1970 UTC) and its size in bytes.
pub type Written = (i64, i64, u64);

/// The modification time and size of the file at a path, which is not opened; `None` on any error.
pub fn written(path: &Path) -> Option<Written> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

/// Writes out all files of the file system of `dir`, whichever program wrote them, and waits for that.
/// Nothing is done where the kernel cannot do it.
pub fn sync_file_system(dir: &Path) -> io::Result<()> {
    RealDisk.sync_file_system(dir).map(|_| ())
}

/// The operations on files and directories that the journal and the processor use.
pub trait Disk: Send + Sync + 'static {
    /// Creates a new file for reading and writing; fails if the path exists.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading.
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file; fails with `AlreadyExists` if `to` exists.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Renames a file within a directory and replaces `to` if it exists.
    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. The removal is durable only after a sync of its directory.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Opens a directory, for [`DiskDir::sync`]. Fails if the process has no file descriptor left.
    fn open_dir(&self, dir: &Path) -> io::Result<Box<dyn DiskDir>>;
    /// Creates a directory unless it exists. Its parent must exist.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// The entries of a directory, unordered: (name, is a directory). Empty if it does not exist.
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, bool)>>;
    /// The identity of the file that the path leads to; `None` if it does not exist.
    fn identity(&self, path: &Path) -> io::Result<Option<Identity>>;
    /// Free bytes on the file system of `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
    /// Size in bytes of the file system of `dir`.
    fn capacity_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Free inodes on the file system of `dir`; `None` if it has no limit.
    fn free_files(&self, dir: &Path) -> io::Result<Option<u64>>;

    /// Requests an early recount for [`Disk::used_bytes`], because another program may have deleted
    /// files. It has no effect on a disk that counts at each call.
    fn count_again(&self);

    /// Syncs all files of the file system of `dir`, whichever program wrote them. Returns `false` where
    /// that is weaker than an fdatasync of each file; the caller then syncs each file.
    fn sync_file_system(&self, dir: &Path) -> io::Result<bool>;

    /// Opens a directory and syncs it. The caller must be able to handle a failure of either step.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.open_dir(dir)?.sync()
    }

    /// The length of the file at a path, in bytes. The default is for simulated disks; [`RealDisk`]
    /// does not open the file.
    fn size_at(&self, path: &Path) -> io::Result<u64> {
        self.open_read(path)?.size()
    }

    /// The total size of all files in `dir` and below, in bytes. Files removed meanwhile are ignored.
    fn used_bytes(&self, dir: &Path) -> io::Result<u64> {
        let mut bytes = 0;
        for (name, is_dir) in self.list(dir)? {
            let path = dir.join(name);
            bytes += match if is_dir {
                self.used_bytes(&path)
            } else {
                self.size_at(&path)
            } {
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                size => size?,
            };
        }
        Ok(bytes)
    }
}
