//! Opens files of the data directory. All other modules open existing files through this one.
//!
//! POSIX locks belong to a process and an inode, and closing *any* descriptor of the inode releases all
//! of them. If this process opened and closed `revenue.db` or its `-shm` itself, it would release
//! SQLite's locks. An external `sqlite3` could then act as the last user, checkpoint, and delete the
//! `-wal` that is still in use. Therefore only SQLite opens these files while this process has the
//! database open, under whatever name. [`Guard`] enforces it.
//!
//! A path is first opened with `O_PATH`, which does not block on a FIFO, has no side effects on a
//! device, and releases no locks when it is closed. If the result is a regular file and not an open
//! database, it is opened through `/proc/self/fd`, so that the opened file is the one that was examined.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::{Identity, kind};

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    Read,
    /// For reading and writing.
    ReadWrite,
}

/// Why a path is rejected.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Not a regular file.
    #[error("it is a {0}, not a regular file; move it away")]
    NotRegular(&'static str),
    /// The kernel generates the content: its size is meaningless, and a read may block.
    #[error(
        "it is a file of {0}, which the kernel generates as it is read; copy its content to a file"
    )]
    Generated(&'static str),
    /// One of the three files of a database that SQLite has open.
    #[error("it is the open database {} or one of its files, under another name; remove that name", .0.display())]
    Database(PathBuf),
    /// A symbolic link whose target does not exist.
    #[error("it is a link to {}, which does not exist; remove the link", .0.display())]
    Dangling(PathBuf),
    /// A cycle of symbolic links.
    #[error("it is a link that leads back to itself; remove the link")]
    Loop,
    /// A name that cannot be stored in the database.
    #[error("its name is not UTF-8; rename it")]
    NotUtf8,
}

impl Unusable {
    /// Whether an error of this module is of this type, so that a retry cannot succeed.
    pub fn is_reason_of(error: &io::Error) -> bool {
        error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Self>())
            .is_some()
    }
}

impl From<Unusable> for io::Error {
    fn from(unusable: Unusable) -> Self {
        Self::new(io::ErrorKind::InvalidInput, unusable)
    }
}

/// Opens an existing regular file. Rejects the files of an open database.
pub fn open_file(path: &Path, access: OpenMode) -> io::Result<File> {
    let named = named(path)?;
    let stat = rustix::fs::fstat(&named)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        other => return Err(Unusable::NotRegular(type_name(other)).into()),
    }
    // If fstatfs fails, the file system is assumed to be an ordinary one.
    if let Ok(Some(file_system)) = rustix::fs::fstatfs(&named).map(|of| kind::generated(&of)) {
        return Err(Unusable::Generated(file_system).into());
    }
    open_named(path, &named, &stat, access)
}

/// Why the path is not a regular file, without opening it. `None` if it is one, does not exist, or
/// cannot be examined.
pub fn unusable(path: &Path) -> Option<Unusable> {
    let stat = rustix::fs::fstat(&named(path).ok()?).ok()?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => None,
        other => Some(Unusable::NotRegular(type_name(other))),
    }
}

/// Whether a path is a symbolic link with a relative target, which breaks when it is moved to another
/// directory.
pub fn is_relative_link(path: &Path) -> bool {
    std::fs::read_link(path).is_ok_and(|target| target.is_relative())
}

/// Opens a directory. Fails without opening anything if the path is not a directory.
pub(super) fn open_directory(dir: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(File::from(system_open(dir, flags)?))
}

/// An `O_PATH` descriptor of the file that the path leads to.
pub(super) fn named(path: &Path) -> io::Result<OwnedFd> {
    system_open(path, OFlags::PATH | OFlags::CLOEXEC).map_err(|error| missing(path, error))
}

/// Replaces "not found" by the actual reason: a dangling link, or a name that is not UTF-8.
fn missing(path: &Path, error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
        return Unusable::Loop.into();
    }
    if error.kind() != io::ErrorKind::NotFound {
        return error;
    }
    if let Ok(target) = std::fs::read_link(path) {
        return Unusable::Dangling(target).into();
    }
    if is_lossy_name(path).unwrap_or(false) {
        return Unusable::NotUtf8.into();
    }
    error
}

/// Whether a name with replacement characters, as [`Disk::list`](super::Disk::list) returns it, is that of a file whose
/// real name is not UTF-8.
fn is_lossy_name(path: &Path) -> Option<bool> {
    let name = path.file_name()?.to_str()?;
    if !name.contains(char::REPLACEMENT_CHARACTER) {
        return Some(false);
    }
    let entries = std::fs::read_dir(path.parent()?).ok()?;
    let mut names = entries.flatten().map(|entry| entry.file_name());
    Some(names.any(|found| found.to_str().is_none() && found.to_string_lossy() == name))
}

/// Opens the file behind `named`, unless it belongs to an open database.
fn open_named(path: &Path, named: &OwnedFd, stat: &Stat, access: OpenMode) -> io::Result<File> {
    open_named_with(path, named, stat, access, OFlags::empty())
}

/// The same with additional flags.
pub(super) fn open_named_with(
    path: &Path,
    named: &OwnedFd,
    stat: &Stat,
    access: OpenMode,
    more: OFlags,
) -> io::Result<File> {
    if let Some(database) = database_of(identity(stat)) {
        return Err(Unusable::Database(database).into());
    }
    let flags = OFlags::CLOEXEC
        | OFlags::NOCTTY
        | more
        | match access {
            OpenMode::Read => OFlags::RDONLY,
            OpenMode::ReadWrite => OFlags::RDWR,
        };
    let through = format!("/proc/self/fd/{}", named.as_raw_fd());
    match system_open(Path::new(&through), flags) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            by_path(path, stat, flags | OFlags::NONBLOCK)
        }
        opened => Ok(File::from(opened?)),
    }
}

/// Without `/proc`: opens the path itself and checks that it still leads to the examined file.
fn by_path(path: &Path, examined: &Stat, flags: OFlags) -> io::Result<File> {
    let file = File::from(system_open(path, flags)?);
    let now = identity(&rustix::fs::fstat(&file)?);
    if now == identity(examined) {
        return Ok(file);
    }
    if database_of(now).is_some() {
        // Closing it would release SQLite's locks, so it stays open until the process ends.
        static KEPT: Mutex<Vec<File>> = Mutex::new(Vec::new());
        lock(&KEPT).push(file);
    }
    Err(io::Error::other(
        "it was replaced while it was being opened; try again",
    ))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where an existing path is opened"
)]
fn system_open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    loop {
        match rustix::fs::open(path, flags, Mode::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            opened => return Ok(opened?),
        }
    }
}

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Directory => "directory",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Symlink => "symbolic link",
        FileType::RegularFile | FileType::Unknown => "file of an unknown type",
    }
}

/// The suffixes of the files of a database.
const SIBLINGS: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// Reserves a database for SQLite as long as this exists. [`open_file`] rejects the files at the
/// database's paths, and the files that were noted there while it was open, even after a rename. Each
/// noted file is held by an `O_PATH` descriptor, so that its inode number is not reused; closing such
/// a descriptor does not release SQLite's locks.
#[derive(Debug)]
pub struct Guard {
    path: PathBuf,
    seen: Mutex<HashMap<Identity, OwnedFd>>,
}

static GUARDS: Mutex<Vec<Weak<Guard>>> = Mutex::new(Vec::new());

impl Guard {
    /// Guards the database at `path`, which need not exist yet.
    pub fn new(path: &Path) -> Arc<Self> {
        let guard = Arc::new(Self {
            path: path.to_owned(),
            seen: Mutex::default(),
        });
        let mut guards = lock(&GUARDS);
        guards.retain(|guard| guard.strong_count() > 0);
        guards.push(Arc::downgrade(&guard));
        guard
    }

    /// Notes the files that are at the database's paths now. Call it while the database is open.
    pub fn note(&self) {
        let mut seen = lock(&self.seen);
        for suffix in SIBLINGS {
            // Without a free descriptor, only the path protects the file.
            if let Ok(held) = named(&with_suffix(&self.path, suffix))
                && let Ok(stat) = rustix::fs::fstat(&held)
            {
                seen.entry(identity(&stat)).or_insert(held);
            }
        }
    }

    /// Forgets the noted files. Call it after this process has closed its last connection.
    pub fn forget(&self) {
        lock(&self.seen).clear();
    }

    fn now(&self) -> impl Iterator<Item = Identity> {
        SIBLINGS.iter().filter_map(|suffix| {
            let path = with_suffix(&self.path, suffix);
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.dev(), metadata.ino()))
        })
    }
}

/// The guarded database that a file belongs to; `None` if it belongs to none.
fn database_of(identity: Identity) -> Option<PathBuf> {
    // Locked throughout: a guard that this thread upgraded must not outlive its owner for the search of
    // another thread, which would then find a database that is closed.
    let guards = lock(&GUARDS);
    guards.iter().filter_map(Weak::upgrade).find_map(|guard| {
        let is_of =
            lock(&guard.seen).contains_key(&identity) || guard.now().any(|now| now == identity);
        is_of.then(|| guard.path.clone())
    })
}

/// Appends a suffix to the file name: `revenue.db` becomes `revenue.db-wal`.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::data_dir::disk::read;

    fn reason(path: &Path) -> String {
        let error = open_file(path, OpenMode::Read).expect_err("it is not opened");
        assert!(Unusable::is_reason_of(&error), "{error}");
        error.to_string()
    }

    #[test]
    fn only_regular_files_are_opened_and_others_do_not_block() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "x").expect("written");
        assert!(open_file(&at("file"), OpenMode::ReadWrite).is_ok());
        symlink(at("file"), at("link")).expect("a link");
        assert!(open_file(&at("link"), OpenMode::Read).is_ok());

        let made = std::process::Command::new("mkfifo")
            .arg(at("fifo"))
            .status();
        assert!(made.is_ok_and(|status| status.success()));
        assert!(reason(&at("fifo")).contains("FIFO"));
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
        assert!(reason(&at("socket")).contains("socket"));
        std::fs::create_dir(at("directory")).expect("a directory");
        assert!(reason(&at("directory")).contains("directory"));
        symlink("/dev/zero", at("device")).expect("a link");
        assert!(reason(&at("device")).contains("character device"));
        symlink("/nowhere/at/all", at("dangling")).expect("a link");
        assert!(reason(&at("dangling")).contains("/nowhere/at/all"));
        let no_utf8 = std::ffi::OsStr::from_bytes(b"events_\xff.jsonl");
        std::fs::write(dir.path().join(no_utf8), "x").expect("written");
        assert!(reason(&at("events_\u{FFFD}.jsonl")).contains("UTF-8"));
        symlink(at("loop"), at("loop")).expect("a link");
        assert!(reason(&at("loop")).contains("leads back"));
        let error = open_file(&at("none"), OpenMode::Read).expect_err("nothing");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_guarded_database_is_not_opened_under_any_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        for name in ["revenue.db", "revenue.db-wal", "revenue.db-shm"] {
            std::fs::write(at(name), "x").expect("written");
        }
        let guard = Guard::new(&at("revenue.db"));
        guard.note();
        std::fs::hard_link(at("revenue.db"), at("hard")).expect("a hard link");
        symlink(at("revenue.db-shm"), at("soft")).expect("a link");
        std::fs::rename(at("revenue.db-wal"), at("moved")).expect("moved");
        for name in ["revenue.db", "revenue.db-shm", "hard", "soft", "moved"] {
            assert!(reason(&at(name)).contains("revenue.db"), "{name}");
            assert!(read(&at(name)).is_err(), "{name}");
        }
        guard.forget();
        assert!(open_file(&at("moved"), OpenMode::Read).is_ok());
        assert!(
            open_file(&at("hard"), OpenMode::Read).is_err(),
            "by its path"
        );
        drop(guard);
        assert!(open_file(&at("revenue.db"), OpenMode::Read).is_ok());
    }

    #[test]
    fn a_database_is_released_at_once_whatever_other_threads_open() {
        // Fails if the search of another thread keeps the guard of a closed database alive.
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("closed.db"), "x").expect("written");
        std::fs::write(at("other"), "x").expect("written");
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    drop(open_file(&at("other"), OpenMode::Read).expect("no database"));
                }
            });
            let rejected = (0..5000).filter(|_| {
                let guard = Guard::new(&at("closed.db"));
                guard.note();
                drop(guard);
                open_file(&at("closed.db"), OpenMode::Read).is_err()
            });
            let rejected = rejected.count();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(rejected, 0);
        });
    }
}
