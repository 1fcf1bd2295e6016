//! Locks between processes: a flock on a directory, and lock files that name their holder.
//!
//! Both are released when the process ends.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::named::read_to_string;
use super::open::{OpenMode, open_directory, open_file};
use super::real::create_new;
use super::{Disk as _, RealDisk};

/// How long a thread waits for a directory lock before it logs the wait.
pub const WAIT_LOGGED_AFTER: std::time::Duration = std::time::Duration::from_secs(5);

/// A flock on a directory, which leaves no lock file behind. A process that reads all files holds it
/// shared; a process that deletes files holds it exclusively.
#[derive(Debug)]
pub struct DirLock {
    _dir: File,
}

impl DirLock {
    /// Takes the lock shared. Waits while another process holds it exclusively, and logs the wait
    /// after [`WAIT_LOGGED_AFTER`].
    pub fn shared(dir: &Path) -> io::Result<Self> {
        let file = open_directory(dir)?;
        match file.try_lock_shared() {
            Ok(()) => return Ok(Self { _dir: file }),
            Err(std::fs::TryLockError::WouldBlock) => {}
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
        let (locked, waiting) = crossbeam_channel::bounded::<()>(0);
        let notice = move || {
            if waiting.recv_timeout(WAIT_LOGGED_AFTER)
                == Err(crossbeam_channel::RecvTimeoutError::Timeout)
            {
                tracing::warn!("waiting: {}", lock_holders(dir));
            }
        };
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("lock-notice".to_owned())
                .spawn_scoped(scope, notice)?;
            let result = file.lock_shared();
            drop(locked);
            result
        })?;
        Ok(Self { _dir: file })
    }

    /// Takes the lock exclusively; `None` if another process holds it. Never waits.
    pub fn try_exclusive(dir: &Path) -> io::Result<Option<Self>> {
        let dir = open_directory(dir)?;
        match dir.try_lock() {
            Ok(()) => Ok(Some(Self { _dir: dir })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

/// A message that names the processes with a lock on a directory, from `/proc/locks`.
pub fn lock_holders(dir: &Path) -> String {
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
        /// Path of the lock file.
        path: PathBuf,
        /// The content of the lock file: `process 123, started 2026-...`.
        holder: String,
    },
    /// The file could not be opened or locked.
    #[error("cannot lock {}", path.display())]
    Io {
        /// Path of the lock file.
        path: PathBuf,
        /// As the system call returned it.
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
        match open_file(path, OpenMode::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match create_new(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created,
        }
    }
}
