//! The checks behind `tallyline verify`: do the totals in the database match the files?
//!
//! [`recount`] counts every kept file again and compares it with its row; [`sums`] checks the database
//! against itself after an unclean shutdown; [`contents`] determines which of several files is the segment
//! that the database has applied; [`seal`] compares a sealed file with the checksum in its name.
//!
//! Nothing here changes a file or the database. The processor uses the last three.

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
use crate::store::{Database, StoreError};

/// The data directory to verify, and the resources to use.
#[derive(Clone, Debug)]
pub struct Target {
    /// The data directory whose files are recounted.
    pub data_dir: PathBuf,
    /// The database that they are compared with.
    pub database: Database,
    /// The UUID of the data directory; nil until [`Target::identified`].
    pub directory: Uuid,
    /// Memory budget of the recount, in bytes.
    pub memory_bytes: usize,
    /// Scanning threads, at least 1.
    pub threads: usize,
}

impl Target {
    /// The database in the data directory, one thread per core, 384 MiB.
    pub fn new(data_dir: &Path) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            database: Database::in_dir(data_dir),
            directory: Uuid::nil(),
            memory_bytes: 384 << 20,
            threads: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
        }
    }

    /// Fills in the UUID, from `directory.json` or else from the database. Changes nothing on disk.
    pub(crate) fn identified(&self, disk: &dyn Disk) -> Result<Self, VerifyError> {
        let directory = match Directory::of(disk, &self.data_dir)? {
            Some(directory) => Some(directory.id),
            None => self.database.directory()?,
        };
        Ok(Self {
            directory: directory.unwrap_or_default(),
            ..self.clone()
        })
    }

    fn tag(&self) -> DirectoryTag {
        directory_tag(self.directory)
    }

    fn memory_budget(&self) -> MemoryBudget {
        MemoryBudget::of(self.memory_bytes, self.threads)
    }
}

/// The files could not be compared with the database.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The database could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file or directory could not be read.
    #[error(transparent)]
    Io(#[from] DataDirError),
}

impl VerifyError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| DataDirError::io(action, path)(source).into()
    }
}
