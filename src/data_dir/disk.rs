//! The interface to the file system: create, append, sync, rename, sync a directory.
//!
//! Every operation that durability depends on goes through [`Disk`], so that a test can replace it by
//! a simulated disk and crash between any two calls. [`RealDisk`] is the file system of the machine.
//! The interface knows nothing about the meaning of the files. It has no state and no thread of its
//! own; every error is returned to the caller.

mod kind;
mod layer;
mod open;
mod usage;

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Advice, fadvise};

pub use self::kind::unsafe_for_wal;
pub use self::layer::{DiskLayer, FileLayer};
pub use self::open::{
    Access, Guard, Unusable, is_relative_link, open_file, read, read_to_string, unusable,
    with_suffix,
};
pub use self::usage::{MeteredDisk, UsageThread};

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

/// An open directory.
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
    /// Removes a file.
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

/// The file system of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(create_new(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(open_file(path, Access::ReadWrite)?))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(open_file(path, Access::Read)?))
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
        Ok(Box::new(open::open_directory(dir)?))
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
        usage::walk(dir, &[])
    }

    fn sync_file_system(&self, dir: &Path) -> io::Result<bool> {
        if !kind::syncs_as_a_whole(dir)? {
            return Ok(false);
        }
        rustix::fs::syncfs(open::open_directory(dir)?)?;
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
fn create_new(path: &Path) -> io::Result<File> {
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

/// The offset after the last `\n` before `size`; 0 if there is none. Reads backwards in blocks.
pub fn last_line_end(file: &dyn DiskFile, size: u64) -> io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let mut block = Vec::new();
    let mut end = size;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        block.resize(usize::try_from(end - start).unwrap_or_default(), 0);
        let mut filled = 0;
        while filled < block.len() {
            match file.read_at(&mut block[filled..], start + filled as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        if let Some(index) = memchr::memrchr(b'\n', &block) {
            return Ok(start + index as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

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
    let file = open_file(path, Access::Read)?;
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
    open_file(from, Access::Read)?.sync_all()?;
    std::fs::rename(from, to)?;
    RealDisk.sync_dir(to.parent().unwrap_or(Path::new(".")))
}

/// How long a thread waits for a directory lock before it logs the wait.
pub const HELD_UP: std::time::Duration = std::time::Duration::from_secs(5);

/// A flock on a directory, which leaves no lock file behind. A process that reads all files holds it
/// shared; a process that deletes files holds it exclusively.
#[derive(Debug)]
pub struct DirHold {
    _dir: File,
}

impl DirHold {
    /// Takes the lock shared. Waits while another process holds it exclusively, and logs the wait
    /// after [`HELD_UP`].
    pub fn share(dir: &Path) -> io::Result<Self> {
        let file = open::open_directory(dir)?;
        match file.try_lock_shared() {
            Ok(()) => return Ok(Self { _dir: file }),
            Err(std::fs::TryLockError::WouldBlock) => {}
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
        let (locked, waiting) = crossbeam_channel::bounded::<()>(0);
        let notice = move || {
            if waiting.recv_timeout(HELD_UP) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
                tracing::warn!("waiting: {}", held_by(dir));
            }
        };
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("hold-notice".to_owned())
                .spawn_scoped(scope, notice)?;
            let result = file.lock_shared();
            drop(locked);
            result
        })?;
        Ok(Self { _dir: file })
    }

    /// Takes the lock exclusively; `None` if another process holds it. Never waits.
    pub fn alone(dir: &Path) -> io::Result<Option<Self>> {
        let dir = open::open_directory(dir)?;
        match dir.try_lock() {
            Ok(()) => Ok(Some(Self { _dir: dir })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

/// A message that names the processes with a lock on a directory, from `/proc/locks`.
pub fn held_by(dir: &Path) -> String {
    let inode = std::fs::metadata(dir).map_or(0, |dir| dir.ino());
    let locks = read_to_string(Path::new("/proc/locks")).unwrap_or_default();
    let pids = locks.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else {
            return None;
        };
        file.ends_with(&format!(":{inode}")).then_some(pid)
    });
    let named: Vec<String> = pids
        .map(|pid| {
            let name = read_to_string(&Path::new("/proc").join(pid).join("comm"));
            format!("process {pid} ({})", name.unwrap_or_default().trim())
        })
        .collect();
    let holder = if named.is_empty() {
        "another process".to_owned()
    } else {
        named.join(", ")
    };
    format!(
        "{holder} holds a lock (flock) on the directory {}; `tallyline verify` takes it while it reads, and a server while it deletes old segments",
        dir.display()
    )
}

/// An exclusive flock on a lock file. The file contains the pid and start time of the holder, for the
/// error message of other processes. The lock is released on drop, or when the process ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// Why a lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("{} is held by {holder}: only one of its kind may run in a data directory; stop that one or choose another --data-dir", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The content of the lock file: `process 123, started 2026-...`.
        holder: String,
    },
    /// The file could not be opened or locked.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock, or returns an error that names the holder. Never waits.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        use std::io::{Read, Seek, Write};
        let io = |source| LockError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = open_or_create(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The holder may not have written the file yet.
                let _unread = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".to_owned(),
                    named => named.to_owned(),
                };
                return Err(LockError::Held {
                    path: path.to_owned(),
                    holder,
                });
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(io(source)),
        }
        let started = crate::timestamp::rfc3339_seconds(std::time::SystemTime::now());
        file.set_len(0).map_err(io)?;
        file.rewind().map_err(io)?;
        writeln!(file, "process {}, started {started}", std::process::id()).map_err(io)?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Whether the path still leads to the locked file. If not, another process may hold a lock on a
    /// new file of that name.
    pub fn is_in_place(&self) -> io::Result<bool> {
        let held = self.file.metadata()?;
        let identity = RealDisk.identity(&self.path)?;
        Ok(identity == Some((held.dev(), held.ino())))
    }

    /// The path of the lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn open_or_create(path: &Path) -> io::Result<File> {
    loop {
        match open_file(path, Access::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match create_new(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created,
        }
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
