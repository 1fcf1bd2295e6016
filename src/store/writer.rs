//! The writing connection. One thread owns it. It keeps no state that is not in the database.
//!
//! After any error except a lock the owner closes it and opens another, which reads the rows again. A
//! commit with an unknown outcome therefore needs no special case.

mod applying;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior, params};
use uuid::Uuid;

use super::family::{self, Token};
use super::import_contents::{self, ImportContent};
use super::open::{self, Existing};
use super::overall::{self, Overall};
use super::segments;
use super::sqlite_rows::insert_segment;
use super::{AppliedSegments, Ledger, Pruned, SegmentRow, SegmentState, StoreError};
use crate::data_dir::disk::{self, Written};
use crate::data_dir::segment::{Label, Numbers, Prefix, SegmentId, Tag};

const SET_DIRECTORY: &str = include_str!("../../sql/query/set_directory.sql");
const MARK_SEGMENT: &str = include_str!("../../sql/query/mark_segment.sql");

/// The one writer of an SQLite database.
pub struct SqliteWriter {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
    token: Token,
    /// `PRAGMA data_version` at the last check.
    data_version: i64,
    /// The database file after the last write of this writer.
    left: Option<FileState>,
    journal: JournalMode,
}

/// What a write to the database file or to the `-wal` changes.
///
/// The counts of the WAL are read twice: a commit between the two is then neither missed nor taken for a write
/// without SQLite.
#[derive(Clone, Copy)]
struct FileState {
    before: WalCounts,
    files: Files,
    after: WalCounts,
}

/// The database file and its `-wal`.
type Files = [Option<Written>; 2];

/// Frames in the WAL, and how many of them are in the file. A commit or a checkpoint changes it.
type WalCounts = (i64, i64);

fn files(database: &Path) -> Files {
    ["", "-wal"].map(|suffix| disk::written(&disk::with_suffix(database, suffix)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum JournalMode {
    Wal,
    /// The rollback journal, until the first commit into a new file: pages are then written once, not
    /// first into the WAL and again into the file.
    FirstLoad,
    /// The first load is committed; the next write turns the WAL on.
    Loaded,
}

/// A segment's state, apart from its progress.
#[derive(Clone, Debug)]
pub struct Mark<'a> {
    /// The segment whose row changes.
    pub segment: &'a SegmentId,
    /// Its tag; `None` for an imported file.
    pub tag: Option<Tag>,
    /// The current name of its file.
    pub file_name: &'a str,
    /// Applied bytes as last read; if they have changed, nothing is stored.
    pub applied_bytes: u64,
    /// The state after the change.
    pub state: SegmentState,
    /// The reason, for a corrupt or missing segment.
    pub reason: Option<&'a str>,
    /// Bytes that will not be applied.
    pub corrupt_bytes: u64,
    /// Lines in these bytes.
    pub corrupt_lines: u64,
    /// The current time, milliseconds since 1970 UTC.
    pub now_ms: i64,
}

impl SqliteWriter {
    /// Opens the database, creates its tables if it is new, and turns the WAL on.
    pub fn open(path: &Path, existing: Existing) -> Result<Self, StoreError> {
        Self::open_with(path, existing, false)
    }

    /// The same for a batch run. The first transaction into a new database does not use the WAL, so
    /// readers may have to wait for it.
    pub fn open_to_load(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, Existing::OrCreate, true)
    }

    fn open_with(path: &Path, existing: Existing, load: bool) -> Result<Self, StoreError> {
        let (connection, token, empty) = open::open_writer(path, existing, load)?;
        let doing = StoreError::sqlite(path, "check for changes by other programs");
        let writer = Self {
            data_version: data_version(&connection).map_err(doing)?,
            connection,
            path: path.to_owned(),
            token,
            left: None,
            journal: if load && empty {
                JournalMode::FirstLoad
            } else {
                JournalMode::Wal
            },
        };
        if writer.journal == JournalMode::Wal {
            writer.token.begin_writing();
        } else {
            writer.token.note();
        }
        Ok(writer)
    }

    /// Ties a new database to the data directory with this UUID. Fails if the database belongs to
    /// another data directory, because its rows are about other files.
    pub fn belong_to(&mut self, directory: Uuid) -> Result<(), StoreError> {
        let doing = StoreError::sqlite(&self.path, "store the data directory it belongs to");
        let found = segments::directory(&self.connection).map_err(&doing)?;
        match found {
            Some(found) if found == directory => Ok(()),
            Some(found) => Err(StoreError::OtherDirectory {
                path: self.path.clone(),
                found,
                expected: directory,
            }),
            None => {
                self.connection
                    .execute(SET_DIRECTORY, [directory.to_string()])
                    .map_err(&doing)?;
                Ok(())
            }
        }
    }

    /// Fails if another program deleted rows of fully applied segments, whose files would be applied again.
    pub fn check_rows(&self) -> Result<(), StoreError> {
        match segments::missing_rows(&self.connection).map_err(self.reading())? {
            None => Ok(()),
            Some((recorded, found)) => Err(StoreError::MissingRows {
                path: self.path.clone(),
                recorded,
                found,
            }),
        }
    }

    /// Bounds SQLite's page cache, in whole KiB. A transaction that changes more pages writes them out.
    pub fn cache(&self, bytes: usize) -> Result<(), StoreError> {
        let kib = i64::try_from(bytes >> 10).unwrap_or(i64::MAX);
        self.connection
            .pragma_update(None, "cache_size", -kib)
            .map_err(StoreError::sqlite(&self.path, "bound the page cache"))
    }

    /// Describes the change if one of the database's paths now leads to another file or to none.
    /// Examines the directory entries only.
    pub fn replaced(&self) -> Option<String> {
        self.token.change()
    }

    /// Whether another connection changed the database since the last check. A checkpoint by another
    /// connection counts as a change; changes by this connection do not.
    pub fn is_changed_by_others(&mut self) -> Result<bool, StoreError> {
        let version = data_version(&self.connection).map_err(StoreError::sqlite(
            &self.path,
            "check for changes by other programs",
        ))?;
        Ok(std::mem::replace(&mut self.data_version, version) != version)
    }

    /// Records the state of the database file and its `-wal` after this writer's last write.
    pub fn note_written(&mut self) -> Result<(), StoreError> {
        self.left = Some(self.file_state()?);
        Ok(())
    }

    /// Whether the database file or its `-wal` was written to since [`SqliteWriter::note_written`], and not by a
    /// checkpoint or a commit: in place, by a program other than SQLite. A `touch` has the same effect. A file
    /// that was removed or replaced is not overwritten: [`SqliteWriter::replaced`] reports it.
    pub fn is_overwritten(&mut self) -> Result<bool, StoreError> {
        let now = self.file_state()?;
        let Some(left) = self.left else {
            self.left = Some(now);
            return Ok(false);
        };
        let is_changed = |files, wal| left.files != files && left.before == wal;
        if !is_changed(now.files, now.after) {
            self.left = Some(now);
            return Ok(false);
        }
        // A transaction of another program writes to the -wal before its commit changes the counts, and has the
        // write lock meanwhile. If it has the lock now, the next check decides.
        let changed = match self.files_between_writes() {
            Err(error) if error.is_locked() => return Err(error),
            Err(_) => true,
            Ok(files) => is_changed(files, self.wal_counts()?),
        };
        // The state was read by path. The file may have been removed or replaced since the caller compared
        // the files, so they are compared again after the state was read.
        let is_overwritten = changed && self.replaced().is_none();
        self.left = Some(now);
        if is_overwritten {
            // The -wal may have lost what the index says is in it.
            family::no_checkpoint(&self.connection);
        }
        Ok(is_overwritten)
    }

    fn file_state(&self) -> Result<FileState, StoreError> {
        let before = self.wal_counts()?;
        let files = files(&self.path);
        let after = self.wal_counts()?;
        Ok(FileState {
            before,
            files,
            after,
        })
    }

    /// The same while no transaction writes.
    fn files_between_writes(&mut self) -> Result<Files, StoreError> {
        let doing = StoreError::sqlite(&self.path, "examine its files");
        let _writing = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(doing)?;
        Ok(files(&self.path))
    }

    fn wal_counts(&self) -> Result<WalCounts, StoreError> {
        let doing = StoreError::sqlite(&self.path, "examine its WAL");
        // Reads the index of the WAL again: another program may have committed.
        data_version(&self.connection).map_err(&doing)?;
        let noop = |row: &rusqlite::Row<'_>| Ok((row.get(1)?, row.get(2)?));
        self.connection
            .query_row("PRAGMA wal_checkpoint(NOOP)", [], noop)
            .map_err(doing)
    }

    /// Closes a database of which a file was replaced or removed. No checkpoint is made, because the
    /// pages in memory may not belong to the file that is at the path now. All other connections of
    /// this process are retired too.
    pub fn abandon(self) {
        self.token.retire_all();
        family::no_checkpoint(&self.connection);
    }

    /// Moves all commits from the WAL into the database file and syncs it. Returns whether the file at
    /// the path is the one that is open, and has all commits: until then a commit may be in a `-wal`
    /// only, and another program may have removed that.
    pub fn checkpoint(&self) -> Result<bool, StoreError> {
        let doing = StoreError::sqlite(&self.path, "checkpoint");
        // The contents of a removed -wal must not be moved into a file that may be another one.
        if self.replaced().is_some() {
            return Ok(false);
        }
        let complete = self
            .connection
            .query_row("PRAGMA wal_checkpoint(FULL)", [], |row| {
                let (busy, frames, moved): (i64, i64, i64) =
                    (row.get(0)?, row.get(1)?, row.get(2)?);
                Ok(busy == 0 && frames == moved)
            });
        match complete.map_err(doing) {
            Err(error) if error.is_locked() => Ok(false),
            Err(error) => Err(error),
            Ok(complete) => Ok(complete && self.replaced().is_none()),
        }
    }

    /// Turns the WAL on if the first load is committed.
    fn leave_first_load(&mut self) -> Result<(), StoreError> {
        if self.journal == JournalMode::Loaded {
            let doing = StoreError::sqlite(&self.path, "turn the WAL on");
            open::turn_wal_on(&self.connection).map_err(&doing)?;
            // The first read creates the files of the WAL.
            data_version(&self.connection).map_err(&doing)?;
            self.token.begin_writing();
            self.journal = JournalMode::Wal;
        }
        Ok(())
    }

    /// Stores a segment's state, and creates its row if it has none. Returns whether it was stored.
    pub fn mark(&mut self, mark: &Mark<'_>) -> Result<bool, StoreError> {
        let doing = StoreError::sqlite(&self.path, "store the state of a segment");
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&doing)?;
        let sql = |transaction: &Connection| -> rusqlite::Result<usize> {
            if segments::one(transaction, mark.segment)?.is_none() {
                insert_segment(
                    transaction,
                    mark.segment,
                    mark.tag,
                    params![
                        mark.file_name,
                        SegmentState::Sealed.name(),
                        0,
                        0,
                        mark.now_ms,
                        None::<String>,
                    ],
                )?;
            }
            let Some(row) = segments::one(transaction, mark.segment)? else {
                return Ok(0);
            };
            let changed = transaction.prepare_cached(MARK_SEGMENT)?.execute(params![
                row.key,
                mark.applied_bytes,
                mark.state.name(),
                mark.file_name,
                mark.reason,
                mark.corrupt_bytes,
                mark.corrupt_lines,
                mark.now_ms,
            ])?;
            if changed == 1 && mark.state == SegmentState::Applied {
                segments::add_to_applied_sum(transaction, row.key)?;
            }
            Ok(changed)
        };
        let changed = sql(&transaction).map_err(&doing)?;
        transaction.commit().map_err(&doing)?;
        Ok(changed == 1)
    }

    /// The row of one segment.
    pub fn segment(&self, id: &SegmentId) -> Result<Option<SegmentRow>, StoreError> {
        segments::one(&self.connection, id).map_err(self.reading())
    }

    /// The segments that are fully applied, and the rows of the others.
    pub fn applied(&self) -> Result<(AppliedSegments, Vec<SegmentRow>), StoreError> {
        let read = || -> rusqlite::Result<_> {
            let snapshot = self.connection.unchecked_transaction()?;
            let unfinished = segments::unfinished(&snapshot)?;
            Ok((segments::applied(&snapshot, &unfinished)?, unfinished))
        };
        read().map_err(self.reading())
    }

    /// The names of the imported files that are fully applied.
    pub fn applied_imports(&self) -> Result<HashSet<String>, StoreError> {
        segments::applied_imports(&self.connection).map_err(self.reading())
    }

    /// The content of the fully applied imported files that have counted events without an id, by name.
    pub fn import_contents(&self) -> Result<Vec<(String, ImportContent)>, StoreError> {
        import_contents::read(&self.connection).map_err(self.reading())
    }

    /// The imported files that are the native segment with this label or a part of it: the name, and what is
    /// applied of the file.
    pub fn imports_of(&self, label: Label) -> Result<Vec<(String, Prefix)>, StoreError> {
        import_contents::of_label(&self.connection, label).map_err(self.reading())
    }

    /// The numbers of native segments that have a row.
    pub fn numbers(&self) -> Result<Numbers, StoreError> {
        segments::numbers(&self.connection).map_err(self.reading())
    }

    /// The sum of the pruned segments.
    pub fn pruned(&self) -> Result<Pruned, StoreError> {
        segments::pruned(&self.connection).map_err(self.reading())
    }

    /// The counts of all lines that the database knows.
    pub fn ledger(&self) -> Result<Ledger, StoreError> {
        segments::ledger(&self.connection).map_err(self.reading())
    }

    /// The sums over all users.
    pub fn overall(&self) -> Result<Overall, StoreError> {
        overall::read(&self.connection).map_err(self.reading())
    }

    pub(super) fn reading(&self) -> impl Fn(rusqlite::Error) -> StoreError {
        StoreError::sqlite(&self.path, "read how far the segments are applied")
    }

    /// Moves all commits from the WAL into the database file. If no other connection has the database
    /// open, only that file is left.
    pub fn close(self) -> Result<(), StoreError> {
        let Self {
            connection,
            path,
            token,
            ..
        } = self;
        token.end_writing();
        connection.flush_prepared_statement_cache();
        connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .map_err(StoreError::sqlite(&path, "checkpoint"))?;
        if let Err(error) =
            connection.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))
        {
            // The WAL stays on for the other connection; the last one to close removes its files.
            tracing::debug!(%error, "the WAL stays on: another connection has the database open");
        }
        connection
            .close()
            .map_err(|(_, error)| StoreError::sqlite(&path, "close it")(error))
    }
}

/// A number that changes when another connection commits, and not when this one does.
fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA data_version", [], |row| row.get(0))
}
