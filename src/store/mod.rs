//! The store: the exact totals and the applied offset of each segment, in one SQLite file or in PostgreSQL.
//!
//! [`Database`] says which. Everything below is true of both; `postgres` adds what several nodes in one
//! database need.
//!
//! # Exactly-once application
//! Events are applied by one kind of transaction, [`Writer::apply`]. It changes the totals, the event ids,
//! the rejected lines and the segment's `applied_bytes` together. `applied_bytes` changes only from the
//! offset at which the range begins (compare-and-set). A range is therefore in the totals if and only
//! if its segment's row says so:
//! - After a crash before the commit, the row has the old offset, and the range is applied again.
//! - After a crash after the commit, the row has the new offset, and the processor continues there.
//! - If two processes apply the same range, the compare-and-set fails for one of them.
//!
//! [`Writer::apply_together`] does the same for ranges of several segments in one transaction: each
//! row changes from its own `from` to its own `to`, with the totals of that range, and either all of
//! them commit or none. The argument above therefore holds for each range. [`Writer::apply_folded`] also
//! changes the rows of several segments in one transaction, but adds their sums together, so that a user
//! who occurs in all of them is written once.
//!
//! The applied offset is stored nowhere else. In-memory state, such as `Progress`, is updated after the
//! commit.
//!
//! If a commit fails, its outcome is unknown. The caller then opens a new [`Writer`] and reads the rows.
//! No in-memory state is kept after an error.
//!
//! # Ids
//! An id that ends in a number after a prefix is stored in a block of 128 consecutive numbers
//! (`id_block`, see [`id_blocks`]), any other in a row of its own (`event_id`). Which of the two follows
//! from the bytes of the id alone, so each id has one possible place.
//!
//! # Threads
//! One thread owns the [`Writer`], which uses the WAL and `synchronous=FULL`. [`Readers`] is a pool of
//! read-only connections for any thread. Only SQLite opens the database file, and every statement is a
//! file under `sql/`.
//!
//! The store depends neither on HTTP nor on the files of events. In rare cases it needs their lines
//! again, and gets them from a [`Source`].

mod alone;
mod apply;
mod carry;
mod checks;
mod copy;
mod database;
mod database_status;
mod expiry;
mod family;
mod id_blocks;
mod import_contents;
mod ledger;
mod listing;
mod members;
mod open;
mod overall;
#[cfg(feature = "postgres")]
pub mod postgres;
mod readers;
mod reading;
mod recovery;
mod rejected;
mod retention;
mod segment_row;
mod segments;
mod snapshot;
mod sqlite_rows;
#[cfg(test)]
mod tests;
mod write_back;
mod writer;
mod writing;

use std::path::{Path, PathBuf};

pub use self::alone::is_in_use;
pub use self::apply::{
    Applied, Delta, Outcome, OutcomeOfAll, OutcomeOfFold, Range, RangeEnd, Source,
};
pub use self::checks::{is_consistent, read_checks};
pub use self::copy::{Copied, copy_database};
pub use self::database::Database;
pub use self::expiry::IdsWalk;
pub use self::import_contents::ImportContent;
pub use self::ledger::Ledger;
pub use self::listing::{Listing, Order, Page, UserTotal};
#[cfg(feature = "postgres")]
pub use self::members::ReportRow;
pub use self::members::{Cluster, Member, NodeState};
pub use self::open::{DATABASE_FILE, Existing};
pub use self::overall::{IdCount, Overall};
pub use self::reading::{NodeProgress, Readers};
#[cfg(any(test, feature = "testing"))]
pub use self::recovery::read_segments;
pub use self::recovery::{discard_wal, read_directory, read_for_recovery, read_kept};
pub use self::rejected::{RejectedFilter, RejectedLine};
pub use self::retention::Stamps;
pub use self::segment_row::{
    AppliedSegments, AppliedSum, Counts, Pruned, SegmentRow, SegmentState,
};
pub use self::snapshot::{IdStatus, Snapshot, UserSum};
pub use self::writer::{Mark, SqliteWriter};
pub use self::writing::{NodeReport, Opening, Writer};
use crate::aggregate::{IdEvent, IdEvents, REJECTED_LINES_MAX, Rejected, Sums, UserLine, UserSums};
pub use crate::data_dir::disk::with_suffix as sibling;

/// Why a database operation failed. Nothing was changed, unless a commit failed: its outcome is unknown,
/// and the rows must be read again.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another program holds the lock.
    #[error("database {}: locked by another program (such as sqlite3 with an open transaction); end that transaction. A server then continues without a restart; run a command again", path.display())]
    Locked {
        /// Path of the SQLite file.
        path: PathBuf,
    },
    /// A later version of this program wrote the database.
    #[error("database {}: version {found} is newer than this program, which supports version {known}; use the newer program", path.display())]
    Newer {
        /// Path of the SQLite file.
        path: PathBuf,
        /// The `user_version` of the file.
        found: i64,
        /// The `user_version` that this program supports.
        known: i64,
    },
    /// The database belongs to another data directory.
    #[error("database {}: it belongs to the data directory {found}, but this one is {expected}, so its rows describe other files; move it away and run `tallyline process`, which creates a database from the files here, or restore the other directory (`tallyline restore`)", path.display())]
    OtherDirectory {
        /// Path of the SQLite file.
        path: PathBuf,
        /// The UUID of the directory that it belongs to.
        found: uuid::Uuid,
        /// The UUID of the directory that contains it.
        expected: uuid::Uuid,
    },
    /// An earlier version of this program wrote the database; its tables are different.
    #[error("database {}: version {found} was written by an earlier version of tallyline; this one supports version {known}. {cure}", path.display())]
    Older {
        /// Path of the SQLite file.
        path: PathBuf,
        /// The `user_version` of the file.
        found: i64,
        /// The `user_version` that this program supports.
        known: i64,
        /// What to do.
        cure: &'static str,
    },
    /// The file is an SQLite database of another program.
    #[error("{}: this SQLite file is not a tallyline database: its application_id is {application} and its user_version {found} (expected: {ours} and {known}); move it away or choose another --data-dir. If another program changed the two values, set them back with sqlite3's PRAGMA", path.display())]
    NotOurs {
        /// Path of the SQLite file.
        path: PathBuf,
        /// The `application_id` of the file.
        application: i64,
        /// The `user_version` of the file.
        found: i64,
        /// The `application_id` that this program writes.
        ours: i64,
        /// The `user_version` that this program writes.
        known: i64,
    },
    /// Connections to files that were removed or replaced are still in use.
    #[error("database {}: one of its files was removed or replaced, and a request still reads the old one; it is opened again when that request ends", path.display())]
    Retired {
        /// Path of the SQLite file.
        path: PathBuf,
    },
    /// Another program added triggers to the tables.
    #[error("database {}: {triggers} would change the written rows; no events are applied until it is dropped: sqlite3 {} '{cure}'", path.display(), path.display())]
    Triggers {
        /// Path of the SQLite file.
        path: PathBuf,
        /// The triggers, such as `trigger t on user_total`, separated by commas.
        triggers: String,
        /// The SQL that drops them, such as `DROP TRIGGER "t"`.
        cure: String,
    },
    /// Another program deleted rows of fully applied segments.
    #[error("database {}: {recorded} segments were fully applied, but it has rows of {found} only: another program deleted them, and a file without a row would be counted again; no events are applied. Stop the server and run `tallyline process --rebuild`, which makes the rows from the files", path.display())]
    MissingRows {
        /// Path of the SQLite file.
        path: PathBuf,
        /// The stored number of fully applied segments.
        recorded: u64,
        /// The number of their rows.
        found: u64,
    },
    /// The SQLite in this program has the WAL-reset bug.
    #[error(
        "SQLite {found} may lose committed rows in WAL mode; build this program with SQLite 3.51.3 or later"
    )]
    Unsound {
        /// The version of the built-in SQLite.
        found: &'static str,
    },
    /// No reading connection became available in time.
    #[error("database {}: all reading connections are busy or cannot be opened", path.display())]
    Pool {
        /// Path of the SQLite file.
        path: PathBuf,
        /// The error of the pool.
        source: r2d2::Error,
    },
    /// The path does not lead to a regular file.
    #[error("database {}: {unusable}", path.display())]
    Unusable {
        /// The path of the database.
        path: PathBuf,
        /// The kind of file, and what to do.
        unusable: crate::data_dir::disk::Unusable,
    },
    /// SQLite reported an error.
    #[error("database {}: cannot {doing}: {error}{}", path.display(), advice(error))]
    Sqlite {
        /// Path of the SQLite file.
        path: PathBuf,
        /// The operation that failed, as a verb phrase.
        doing: &'static str,
        /// The error of SQLite. It is not the source, because its text is already in the message.
        error: rusqlite::Error,
    },
    /// PostgreSQL reported an error, or could not be reached. If it was reported by a commit, the outcome is
    /// unknown.
    #[cfg(feature = "postgres")]
    #[error("database {database}: cannot {doing}: {cause}{}", cure.as_deref().map(|cure| format!("; {cure}")).unwrap_or_default())]
    Postgres {
        /// The URL without its password.
        database: String,
        /// The operation that failed, as a verb phrase.
        doing: &'static str,
        /// The error with its causes.
        cause: String,
        /// The error code of PostgreSQL; `None` if the error is one of the connection.
        code: Option<String>,
        /// What to do; `None` if there is no advice.
        cure: Option<String>,
    },
    /// PostgreSQL rolled the transaction back because of another one (40001, 40P01), or an id that was in the
    /// way disappeared. The same transaction may succeed now.
    #[cfg(feature = "postgres")]
    #[error(
        "database {database}: cannot {doing}: the transaction was rolled back because of another one ({cause}); it is repeated"
    )]
    Conflict {
        /// The URL without its password.
        database: String,
        /// The operation that failed, as a verb phrase.
        doing: &'static str,
        /// What is wrong, for the message.
        cause: String,
    },
    /// The server, the database or the rights of the user are not sufficient. A retry does not help until they are
    /// changed.
    #[cfg(feature = "postgres")]
    #[error("database {database}: {reason}")]
    UnsupportedServer {
        /// The URL without its password.
        database: String,
        /// What is missing, and what to do.
        reason: String,
    },
    /// Another server or command has taken over this node, or it was removed from the database.
    #[cfg(feature = "postgres")]
    #[error("database {database}: {reason}")]
    Fenced {
        /// The URL without its password.
        database: String,
        /// What was found, and what to do.
        reason: String,
    },
    /// The files of this node could not be read, or its token not be recorded.
    #[cfg(feature = "postgres")]
    #[error("cannot acquire this node")]
    NodeTokens(#[source] crate::data_dir::DataDirError),
    /// The operation is not available with this database.
    #[error("database {database}: cannot {doing}: {reason}")]
    Unsupported {
        /// The database, without a password.
        database: String,
        /// The operation, as a verb phrase.
        doing: &'static str,
        /// Why, and what to do instead.
        reason: &'static str,
    },
    /// The sums of the range, or a line of the segment, could not be read.
    #[error("cannot read the events of the segment again")]
    Source(#[source] std::io::Error),
}

/// What to do about an SQLite error, after a semicolon; empty if there is no advice.
fn advice(error: &rusqlite::Error) -> &'static str {
    use rusqlite::ErrorCode;
    if matches!(error, rusqlite::Error::FromSqlConversionFailure(..)) {
        return "; a row of it was damaged or changed by another program. Stop the server and run `tallyline process --rebuild`, which makes its tables from the files";
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::CannotOpen) => {
            "; check that this user may read and write the file and its directory, where SQLite creates further files, and that there are free inodes and file descriptors"
        }
        Some(ErrorCode::ReadOnly) => {
            "; run this as the user who owns the file and its directory, on a file system that is mounted read-write"
        }
        Some(ErrorCode::DiskFull) => "; free some space on its disk",
        Some(ErrorCode::SystemIoFailure) => {
            "; check its disk, the space on it, and the limit on file sizes (`ulimit -f`)"
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            "; the file is damaged. Stop the server, move the file and its -wal and -shm away, and run `tallyline process`, which creates a new one from the kept files; if segments were pruned, only a backup has their totals (`tallyline restore`)"
        }
        _ => "",
    }
}

/// The paths of all files of a database. Usually only some of them exist.
pub fn files_of(path: &Path) -> Vec<PathBuf> {
    ["", "-wal", "-shm", "-journal"]
        .map(|suffix| sibling(path, suffix))
        .to_vec()
}

impl StoreError {
    /// Wraps an SQLite error of the operation `doing`; a lock becomes [`StoreError::Locked`].
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

    /// Whether another program holds a lock, so that a retry may succeed.
    pub fn is_locked(&self) -> bool {
        #[cfg(feature = "postgres")]
        if matches!(self, Self::Conflict { .. }) {
            return true;
        }
        matches!(self, Self::Locked { .. })
    }
}
