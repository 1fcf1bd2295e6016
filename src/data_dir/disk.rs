//! The narrow seam to the disk: create, append, sync, rename, sync a directory.
//!
//! Everything that decides durability goes through [`Disk`], so that a test can put a simulated
//! disk there and crash it between any two calls. [`RealDisk`] is the machine's own. Paths are
//! whatever the caller made of the data directory; nothing here knows what the files mean.

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

/// An open file. Reads and writes say where; there is no cursor to lose.
pub trait DiskFile: Send + Sync + 'static {
    /// Reads up to `buf.len()` bytes at `offset`; 0 at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`; on failure any part of them may have been written.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// fdatasync: the bytes and the length survive power loss (the directory entry may not).
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts the file to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// What the open file is now.
    fn stat(&self) -> io::Result<FileStat>;
    /// Tells that the first `to` bytes, synced, will not be read again soon: the system need not
    /// keep them in memory. A hint.
    fn release_cache(&self, to: u64);
    /// The length in bytes now.
    fn size(&self) -> io::Result<u64> {
        Ok(self.stat()?.size)
    }
    /// Takes the file's own lock (flock) until it is closed; false where another process holds it.
    fn try_lock(&self) -> io::Result<bool>;
    /// Gives that lock back, though the file stays open.
    fn unlock(&self);
}

/// An open directory.
pub trait DiskDir: Send + Sync + 'static {
    /// fsync: what was created, renamed or removed in it survives power loss.
    fn sync(&self) -> io::Result<()>;
}

/// What an open file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// The same as [`Disk::identity`] gives for a path that leads here.
    pub identity: Identity,
    /// Bytes.
    pub size: u64,
    /// Names that lead here; 0 once it was removed.
    pub links: u64,
}

/// Which file it is on this machine (device, inode): compared while a file is open, never kept.
pub type Identity = (u64, u64);

/// When a file was last written to (seconds and nanoseconds since 1970 UTC), and its size.
pub type Written = (i64, i64, u64);

/// Looks at a path, which is not opened; `None` where that fails.
pub fn written(path: &Path) -> Option<Written> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

/// A disk: what the journal and the processor do to files and directories.
pub trait Disk: Send + Sync + 'static {
    /// Creates a new file for reading and writing; fails if the path exists.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading.
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames, never replacing: fails with `AlreadyExists` if `to` exists.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Renames within a directory, in the place of what `to` leads to.
    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Opens a directory, which fails where the process has no descriptor left.
    fn open_dir(&self, dir: &Path) -> io::Result<Box<dyn DiskDir>>;
    /// Creates a directory where it is missing (parents must exist).
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in a directory, in no order: (name, is a directory). Empty if it is missing.
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, bool)>>;
    /// The identity of what the path leads to; `None` if nothing.
    fn identity(&self, path: &Path) -> io::Result<Option<Identity>>;
    /// Bytes that could still be written on the file system of `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Files that could still be created on the file system of `dir`; `None` where it has no bound.
    fn free_files(&self, dir: &Path) -> io::Result<Option<u64>>;

    /// Tells that what [`Disk::used_bytes`] says may be too much by now, as when another program
    /// deleted files. A hint, for a disk that does not look each time.
    fn count_again(&self);

    /// Syncs every file of the file system of `dir` at once, whichever program wrote it; `false` where
    /// that does not say as much as an fdatasync of each file, which is then left to the caller.
    fn sync_file_system(&self, dir: &Path) -> io::Result<bool>;

    /// Opens a directory and syncs it. To be called where a failure of either leaves nothing in doubt.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.open_dir(dir)?.sync()
    }

    /// The length of the file at a path. The default is for simulated disks; on the machine's own
    /// nothing is opened for it.
    fn size_at(&self, path: &Path) -> io::Result<u64> {
        self.open_read(path)?.size()
    }

    /// Bytes of all files in `dir` and below. A file that goes away meanwhile counts nothing.
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

/// The machine's disk.
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
            // The file system (NFS, 9p, older ZFS) or the kernel has no such call.
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
                // A link to a directory is one, as a month moved to another disk.
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

    /// Each look is a new one.
    fn count_again(&self) {}

    fn free_files(&self, dir: &Path) -> io::Result<Option<u64>> {
        let stat = rustix::fs::statvfs(dir)?;
        // Some file systems make inodes as they need them, and say that they have none at all.
        Ok((stat.f_files > 0).then_some(stat.f_favail))
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Renames without the system's help against replacing: `to` must be absent before. Between the look
/// and the rename only who holds the lock of the data directory makes such names, and its threads
/// come here one after the other. A hard link and an unlink would be no better: a crash between
/// them leaves one file under two names.
fn rename_where_absent(from: &Path, to: &Path) -> io::Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Not followed: a dangling link is there, too.
    match std::fs::symlink_metadata(to) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::rename(from, to),
        Err(error) => Err(error),
    }
}

/// A file that is not there yet.
#[expect(
    clippy::disallowed_methods,
    reason = "O_EXCL: what exists is not opened, whatever it is"
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
            let _no_matter = fadvise(self, 0, Some(length), Advice::DontNeed);
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
            tracing::debug!(%error, "a lock is kept until its file is closed");
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

/// The byte after the last `\n` before `size`; 0 if there is none. Looks back from the end, block by
/// block.
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

/// A file under a temporary name, made durable, then put in place by a rename that replaces
/// nothing: it is there whole, or not at all. `write` fills it.
pub fn write_new(
    disk: &dyn Disk,
    path: &Path,
    write: impl FnOnce(&dyn DiskFile) -> io::Result<()>,
) -> io::Result<()> {
    disk.rename_new(&write_part(disk, path, write)?, path)?;
    disk.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// The same in the place of what is there: whoever looks sees the old file or the new one. The
/// directory is not synced: until the caller does so, a power cut may bring the old one back.
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

/// Writes a small file that is no one else's, whole: a reader sees the old one, or all of the new.
pub fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put_file(path, bytes, |_| Ok(())).map(drop)
}

/// The same, and the file is locked (flock) before it is there, until it is closed.
pub fn put_held(path: &Path, bytes: &[u8]) -> io::Result<Arc<dyn DiskFile>> {
    let file = put_file(path, bytes, File::lock)?;
    Ok(Arc::new(file))
}

/// Whether a process has the file at the path locked (flock). An error where there is no file.
pub fn is_held(path: &Path) -> io::Result<bool> {
    let file = open_file(path, Access::Read)?;
    match File::try_lock_shared(&file) {
        Ok(()) => Ok(false),
        Err(std::fs::TryLockError::WouldBlock) => Ok(true),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

fn put_file(
    path: &Path,
    bytes: &[u8],
    prepare: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<File> {
    let part = part_path(path);
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = create_new(&part)?;
    FileExt::write_all_at(&file, bytes, 0)?;
    prepare(&file)?;
    std::fs::rename(&part, path)?;
    Ok(file)
}

/// `name.part` beside `name`: no scan takes it for a segment.
fn part_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}

/// Puts a finished file in the place of another by rename: whoever looks sees the old or the new,
/// also after a power cut. For the database, which lies on the machine's own disk.
pub fn replace(from: &Path, to: &Path) -> io::Result<()> {
    open_file(from, Access::Read)?.sync_all()?;
    std::fs::rename(from, to)?;
    RealDisk.sync_dir(to.parent().unwrap_or(Path::new(".")))
}

/// How long a hold is waited for before that is said.
pub const HELD_UP: std::time::Duration = std::time::Duration::from_secs(5);

/// What lies in a directory stays while this is held: a flock on the directory itself, so that
/// nothing is left behind. Whoever reads all files shares it; whoever removes some holds it alone.
#[derive(Debug)]
pub struct DirHold {
    _dir: File,
}

impl DirHold {
    /// Together with others; waits for one who holds it alone, and logs that after a while.
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

    /// Alone; `None` while others hold it. Never waits.
    pub fn alone(dir: &Path) -> io::Result<Option<Self>> {
        let dir = open::open_directory(dir)?;
        match dir.try_lock() {
            Ok(()) => Ok(Some(Self { _dir: dir })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Who keeps others from a directory by a lock on it, in words.
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
        "{holder} holds a lock on the directory {} (flock), as `tallyline verify` does while it reads and a server while it deletes old segments",
        dir.display()
    )
}

/// A lock file that no two processes hold at once (flock), with the holder's pid and start time
/// inside for the words of a refusal. Released when dropped or when the process ends, however.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// Why a lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody holds it.
    #[error("{} is held by {holder}: only one of its kind may run in a data directory; stop that one or choose another --data-dir", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// `process 123, started 2026-...` as the holder wrote it.
        holder: String,
    },
    /// It could not be opened or locked.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock or says who has it; never waits.
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
                // The holder may be about to write its name; then it is simply not known yet.
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

    /// Whether the lock file's path still leads to the file that is locked. Where it does not,
    /// another process may hold a lock of that name.
    pub fn is_in_place(&self) -> io::Result<bool> {
        let held = self.file.metadata()?;
        let identity = RealDisk.identity(&self.path)?;
        Ok(identity == Some((held.dev(), held.ino())))
    }

    /// The lock file.
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
    fn a_rename_never_replaces_with_or_without_the_systems_help() {
        // Red if a name in use is replaced, a dangling link too, or a file is left under two names.
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
