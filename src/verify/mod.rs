//! Everything behind `verify`: whether the database is what the files come to.
//!
//! [`recount`] counts every kept file again and compares it with its row, [`sums`] compares the
//! database with itself after an unclean stop, [`contents`] tells which file is the segment that the
//! database knows. Nothing here changes a file or the database, so the processor uses it, too.

pub(crate) mod contents;
pub(crate) mod recount;
pub(crate) mod seal;
pub(crate) mod sums;

use std::path::{Path, PathBuf};

use uuid::Uuid;

pub use self::recount::{Finding, VerifyReport, verify};
use crate::aggregate::memory_budget::MemoryBudget;
use crate::data_dir::disk::Disk;
use crate::data_dir::segment::DirectoryTag;
use crate::data_dir::{DataDirError, Directory, directory_tag};
use crate::store::{DATABASE_FILE, StoreError, read_directory};

/// What is verified, and within which memory.
#[derive(Clone, Debug)]
pub struct Target {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The database file.
    pub database: PathBuf,
    /// The UUID of the data directory; nil until it has been read.
    pub directory: Uuid,
    /// The most memory that a recount may hold, in bytes.
    pub memory_bytes: usize,
    /// Threads that scan, at least 1.
    pub threads: usize,
}

impl Target {
    /// The database in its place, a thread a core, 384 MiB.
    pub fn new(data_dir: &Path) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            database: data_dir.join(DATABASE_FILE),
            directory: Uuid::nil(),
            memory_bytes: 384 << 20,
            threads: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
        }
    }

    /// With the UUID that `directory.json` says, or else the database; changes nothing.
    pub(crate) fn identified(&self, disk: &dyn Disk) -> Result<Self, VerifyError> {
        let directory = match Directory::of(disk, &self.data_dir)? {
            Some(directory) => Some(directory.id),
            None => read_directory(&self.database)?,
        };
        Ok(Self {
            directory: directory.unwrap_or_default(),
            ..self.clone()
        })
    }

    fn tag(&self) -> DirectoryTag {
        directory_tag(self.directory)
    }

    fn shares(&self) -> MemoryBudget {
        MemoryBudget::of(self.memory_bytes, self.threads)
    }
}

/// Why the files could not be compared with the database.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The database could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file or directory could not be read.
    #[error(transparent)]
    Io(#[from] DataDirError),
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

impl VerifyError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| DataDirError::io(action, path)(source).into()
    }
}
