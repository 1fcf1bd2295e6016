//! The data directory: the names of its files, and access to them. All other modules build on it.
//!
//! ```text
//! events.jsonl                                       the active segment
//! events-<UTC time>-<number>-<tag>-<length>-<checksum>.jsonl
//!                                                    sealed segments that are not archived yet
//! applied/YYYY-MM/                                   sealed segments that were applied
//! quarantine/                                        files set aside, torn tails, notes of missing segments
//! directory.json                                     the directory's UUID, the active segment
//! node.json                                          the tokens of a node of a shared database
//! revenue.db                                         the database: see `store`
//! serve.lock, process.lock                           one writer, one processor
//! ```
//!
//! [`segment`] defines names, labels and positions; [`Directory`] is the content of `directory.json`;
//! [`Catalog`] lists the segments by name; [`disk`] is the interface to the file system, through which
//! every file is opened. The module has no threads except the one of [`disk::MeteredDisk`]. It depends
//! neither on the database nor on HTTP.

mod catalog;
mod directory;
pub mod disk;
pub mod node_position;
#[cfg(feature = "postgres")]
pub mod node_tokens;
pub(crate) mod numbers;
pub mod segment;
#[cfg(test)]
pub(crate) mod testing;

use std::io;
use std::path::{Path, PathBuf};

pub use self::catalog::{
    APPLIED_DIR, Catalog, Claims, Found, Place, QUARANTINE_DIR, describe_rivals,
};
pub(crate) use self::catalog::{SegmentFile, missing_note};
pub use self::directory::{DIRECTORY_FILE, Directory, directory_tag, read_label};
pub(crate) use self::directory::{active_label, first_free, given_out, is_sealed};

/// In a data directory whose totals are in a shared database: the tokens of the node.
pub const NODE_FILE: &str = "node.json";

/// Locked by the process that appends to the active segment.
pub const SERVE_LOCK: &str = "serve.lock";
/// Locked by the process that applies segments to the database.
pub const PROCESS_LOCK: &str = "process.lock";

/// A file or directory of the data directory could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct DataDirError {
    /// The operation that failed, as a verb.
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// As the system call returned it.
    pub source: io::Error,
}

impl DataDirError {
    /// For `map_err`: `action` failed on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self {
            action,
            path: path.to_owned(),
            source,
        }
    }
}
