//! Why the journal could not be opened, and why a batch was not acknowledged.

use std::path::{Path, PathBuf};

use crate::data_dir::DataDirError;

/// Why a batch was not acknowledged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The disk is full, or the append would use its reserve or exceed `--max-disk`. Nothing was
    /// appended.
    #[error("{0}")]
    DiskFull(String),
    /// The queue of the committer is full. Nothing was appended.
    #[error("the write queue is full with {waiting} bytes; try again later")]
    Busy {
        /// Bytes in the queue.
        waiting: u64,
    },
    /// The server is stopping. Nothing was appended.
    #[error("the server is stopping; try again after it has restarted")]
    Stopping,
    /// The write or the sync failed and was undone, or the journal was already poisoned. Nothing
    /// was appended.
    #[error("{0}")]
    Failed(String),
    /// The write failed and could not be undone: the events may or may not be counted.
    #[error("{0}")]
    Unknown(String),
}

/// Why the journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file or directory could not be read or written.
    #[error(transparent)]
    Io(#[from] DataDirError),
    /// Another process holds the lock on the active file.
    #[error("cannot lock {}: another server appends to it; only one may run in a data directory", path.display())]
    Locked {
        /// Path of the active file.
        path: PathBuf,
    },
    /// The committer thread could not be started.
    #[error("cannot start the committer thread")]
    Thread(#[source] std::io::Error),
}

impl JournalError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| DataDirError::io(action, path)(source).into()
    }
}
