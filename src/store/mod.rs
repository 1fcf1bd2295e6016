//! The store: exact totals in one SQLite file, and how far each segment has been applied.
//!
//! # Why every event counts exactly once
//! [`Writer::apply`] is the one write transaction. In it the totals, the seen ids, the rejected
//! lines and the segment's `applied_bytes` change together, and the last only from the offset the
//! range began at (compare-and-set). So a range is in the totals if and only if the row says so:
//! whoever crashes before the commit finds the old offset and applies the range again; whoever
//! crashes after it finds the new one and goes on from there; and two that apply the same range
//! can't both find the old one. Progress is recorded nowhere else, and memory (such as
//! [`Progress`]) follows after the commit.
//!
//! A commit that fails may have happened or not: the caller then opens a new [`Writer`] and asks
//! the rows. Nothing is remembered across an error.
//!
//! # Where ids are kept
//! An id that ends in a number after a prefix lies in a block of 128 neighbouring numbers (`id_block`,
//! see [`id_blocks`]), any other in a row of its own (`event_id`). Which of the two follows from the bytes
//! of the id alone, so that it is looked for in one place only.
//!
//! # Who uses what
//! One thread owns the [`Writer`]: `synchronous=FULL`, WAL. [`Readers`] are a pool of read-only
//! connections for GET. [`Progress`] is shared: the processor publishes, HTTP waits. Nothing but
//! SQLite opens the database file; every statement is a file under `sql/`.
//!
//! The store knows no HTTP and no files of events: what of them it needs in rare cases it asks of
//! a [`Source`].

mod alone;
mod apply;
mod copy;
mod family;
mod id_blocks;
mod ledger;
mod open;
mod readers;
mod retention;
mod segments;
mod snapshot;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};

pub use self::alone::is_in_use;
pub use self::apply::{Applied, Delta, Outcome, Range, RangeEnd, Source};
pub use self::copy::{Copied, copy_database};
pub use self::ledger::Ledger;
pub use self::open::{DATABASE_FILE, Existing, sqlite_is_sound};
pub use self::readers::{Order, Overall, Page, Readers, UserTotal};
pub use self::retention::{IdsWalk, Stamps};
pub use self::segments::{
    AppliedSegments, AppliedSum, Checks, Counts, Pruned, RecoveryRows, RejectedFilter,
    RejectedLine, SegmentRow, SegmentState, discard_wal, is_consistent, read_checks,
    read_directory, read_for_recovery, read_kept, read_segments,
};
pub use self::snapshot::{IdBlockCounts, IdStatus, Snapshot, UserSum};
pub use self::writer::{Mark, Writer};
use crate::aggregate::{IdEvent, IdEvents, REJECTED_LINES_MAX, Rejected, Sums, UserLine};
pub use crate::data_dir::disk::with_suffix as sibling;

/// Why the database did not do what was asked. Nothing was changed, but for a commit that failed:
/// then the rows tell.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else holds the lock.
    #[error("database {}: locked by another program (such as an open sqlite3 with a transaction begun); end that transaction. A server then goes on by itself, a command is to be run again", path.display())]
    Locked {
        /// The database file.
        path: PathBuf,
    },
    /// Written by a later version of this program.
    #[error("database {}: version {found} is newer than this program, which knows up to {known}; use the newer program", path.display())]
    Newer {
        /// The database file.
        path: PathBuf,
        /// Its `user_version`.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// It belongs to another data directory.
    #[error("database {}: it belongs to the data directory {found}, but this one is {expected}, so its rows are about other files; move it away and run `tallyline process`, which makes one from the files here, or bring its own directory back (`tallyline restore`)", path.display())]
    OtherDirectory {
        /// The database file.
        path: PathBuf,
        /// The UUID of the directory that it belongs to.
        found: uuid::Uuid,
        /// The UUID of the directory that it lies in.
        expected: uuid::Uuid,
    },
    /// Written by an earlier version of this program, whose tables are other ones.
    #[error("database {}: version {found} was written by an earlier version of tallyline; this one reads version {known} only. Move it away and run `tallyline process`, which makes a new one from all kept files (where segments were pruned, rebuild with the version that pruned them first)", path.display())]
    Older {
        /// The database file.
        path: PathBuf,
        /// Its `user_version`.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// It has tables, but not ours.
    #[error("{}: this SQLite file is not a tallyline database: its application_id is {application} and its user_version {found} (of ours: {ours} and {known}); move it away or choose another --data-dir. If another program changed them, set them back with sqlite3's PRAGMA", path.display())]
    NotOurs {
        /// The database file.
        path: PathBuf,
        /// Its `application_id`.
        application: i64,
        /// Its `user_version`.
        found: i64,
        /// Our `application_id`.
        ours: i64,
        /// Our `user_version`.
        known: i64,
    },
    /// Connections to files that were removed or replaced are still in use.
    #[error("database {}: one of its files was removed or replaced, and a request still reads the old one; it is opened again once that is done", path.display())]
    Retired {
        /// The database file.
        path: PathBuf,
    },
    /// Somebody added triggers to our tables.
    #[error("database {}: {triggers} would change what is written; nothing is applied until another program has dropped it: sqlite3 {} '{cure}'", path.display(), path.display())]
    Triggers {
        /// The database file.
        path: PathBuf,
        /// `trigger t on user_total`, one or more.
        triggers: String,
        /// `DROP TRIGGER "t"; ...`
        cure: String,
    },
    /// The SQLite in this program has the WAL-reset bug.
    #[error(
        "SQLite {found} may lose committed rows in WAL mode; this program needs 3.51.3 or later built in"
    )]
    Unsound {
        /// The version that is built in.
        found: &'static str,
    },
    /// No reading connection was free in time.
    #[error("database {}: all reading connections are busy or cannot be opened", path.display())]
    Pool {
        /// The database file.
        path: PathBuf,
        /// What the pool said.
        source: r2d2::Error,
    },
    /// Something that is no file lies at its path.
    #[error("database {}: {unusable}", path.display())]
    Unusable {
        /// The path of the database.
        path: PathBuf,
        /// What it is, and what to do.
        unusable: crate::data_dir::disk::Unusable,
    },
    /// SQLite reported an error.
    #[error("database {}: cannot {doing}: {error}{}", path.display(), advice(error))]
    Sqlite {
        /// The database file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What SQLite reported. Not the source: it repeats its own text there.
        error: rusqlite::Error,
    },
    /// A line of the segment could not be read again.
    #[error("cannot read lines of the segment again")]
    Source(#[source] std::io::Error),
}

/// What to do about an error that SQLite reported, after a semicolon; empty where nothing is known.
fn advice(error: &rusqlite::Error) -> &'static str {
    use rusqlite::ErrorCode;
    if matches!(error, rusqlite::Error::FromSqlConversionFailure(..)) {
        return "; a row of it was damaged or changed by another program. Stop the server and run `tallyline process --rebuild`, which makes its tables from the files";
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::CannotOpen) => {
            "; this user must be able to read and write it and its directory, where SQLite creates files beside it, and there must be free inodes and descriptors"
        }
        Some(ErrorCode::ReadOnly) => {
            "; run this as the user who owns it and its directory, on a file system that is mounted read-write"
        }
        Some(ErrorCode::DiskFull) => "; free some space on its disk",
        Some(ErrorCode::SystemIoFailure) => {
            "; check its disk, the space on it, and the limit on file sizes (`ulimit -f`)"
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            "; the file is damaged. Shutdown the server, move it and its -wal and -shm away, and run `tallyline process`, which makes a new one from the kept files; if segments were pruned, only a backup has their totals (`tallyline restore`)"
        }
        _ => "",
    }
}

/// The names of the files that SQLite keeps a database in; not all of them exist at a time.
pub fn files_of(path: &Path) -> Vec<PathBuf> {
    ["", "-wal", "-shm", "-journal"]
        .map(|suffix| sibling(path, suffix))
        .to_vec()
}

impl StoreError {
    /// Wraps what SQLite said while `doing`; a lock has words of its own.
    fn sqlite(path: &Path, doing: &'static str) -> impl Fn(rusqlite::Error) -> Self {
        move |error| {
            use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
            match error.sqlite_error_code() {
                Some(DatabaseBusy | DatabaseLocked) => Self::Locked {
                    path: path.to_owned(),
                },
                _ => Self::Sqlite {
                    path: path.to_owned(),
                    doing,
                    error,
                },
            }
        }
    }

    /// Whether it is only a matter of waiting for another program.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Locked { .. })
    }
}
