//! The writer of either database: every change of totals, ids and segments is one of its methods.
//!
//! Only `processor` opens one, and the thread that opened it owns it. SQLite allows one writer at a time;
//! in PostgreSQL there is one for each node.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use super::open::Existing;
#[cfg(feature = "postgres")]
use super::postgres::PostgresWriter;
use super::{
    AppliedSegments, Database, IdsWalk, ImportContent, Ledger, Mark, Outcome, OutcomeOfAll,
    OutcomeOfFold, Overall, Pruned, Range, SegmentRow, Snapshot, Source, SqliteWriter, Stamps,
    StoreError, UserSums,
};
use crate::data_dir::segment::{Label, Numbers, Prefix, SegmentId};

/// The one writer of a database, or of a node's rows in it. One thread owns it.
pub enum Writer {
    /// Of an SQLite file.
    Sqlite(SqliteWriter),
    /// Of a node in PostgreSQL.
    #[cfg(feature = "postgres")]
    Postgres(PostgresWriter),
}

/// What a node reports about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// Lines in its files that are not applied.
    pub pending_lines: u64,
    /// The age of the oldest acknowledged event that is not applied, in milliseconds.
    pub lag_ms: u64,
    /// Why it is not ready, one reason a line; empty if it is.
    pub reasons: String,
}

/// How a database is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// To apply events as they come.
    Follow,
    /// For a batch run: the first transaction into a new SQLite file does not use the WAL, so readers may have
    /// to wait for it.
    Load,
}

macro_rules! either {
    ($self:expr, $writer:ident => $call:expr) => {
        match $self {
            Writer::Sqlite($writer) => $call,
            #[cfg(feature = "postgres")]
            Writer::Postgres($writer) => $call,
        }
    };
}

/// Operations of SQLite files; `$other` is the result on PostgreSQL.
macro_rules! file_only {
    ($self:expr, $writer:ident => $call:expr, $other:expr) => {
        match $self {
            Writer::Sqlite($writer) => $call,
            #[cfg(feature = "postgres")]
            Writer::Postgres(_) => $other,
        }
    };
}

impl Writer {
    /// Opens the database of a data directory, creates its tables if it is new, and ties it to the directory:
    /// an SQLite file of another directory is refused; in PostgreSQL the node of the directory is acquired.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(unused_variables, reason = "SQLite does not need it")
    )]
    pub fn of(
        database: &Database,
        data_dir: &Path,
        directory: Uuid,
        opening: Opening,
    ) -> Result<Self, StoreError> {
        match database {
            Database::Sqlite(path) => {
                let mut writer = match opening {
                    Opening::Follow => SqliteWriter::open(path, Existing::OrCreate)?,
                    Opening::Load => SqliteWriter::open_to_load(path)?,
                };
                writer.belong_to(directory)?;
                Ok(Self::Sqlite(writer))
            }
            #[cfg(feature = "postgres")]
            Database::Postgres(target) => {
                PostgresWriter::open(target, data_dir, directory).map(Self::Postgres)
            }
        }
    }

    /// Opens an SQLite file, creates its tables if it is new, and turns the WAL on.
    pub fn open(path: &Path, existing: Existing) -> Result<Self, StoreError> {
        SqliteWriter::open(path, existing).map(Self::Sqlite)
    }

    /// The same for a batch run. See [`Opening::Load`].
    #[cfg(test)]
    pub fn open_to_load(path: &Path) -> Result<Self, StoreError> {
        SqliteWriter::open_to_load(path).map(Self::Sqlite)
    }

    /// The connection of an SQLite file.
    #[cfg(test)]
    pub(super) fn connection(&self) -> &rusqlite::Connection {
        file_only!(self, writer => &writer.connection, unreachable!("not a file"))
    }

    /// Ties a new SQLite file to the data directory with this UUID. Fails if the file belongs to another data
    /// directory, because its rows are about other files.
    pub fn belong_to(&mut self, directory: Uuid) -> Result<(), StoreError> {
        file_only!(self, writer => writer.belong_to(directory), Ok(()))
    }

    /// Bounds SQLite's page cache, in whole KiB. A transaction that changes more pages writes them out.
    pub fn cache(&self, bytes: usize) -> Result<(), StoreError> {
        file_only!(self, writer => writer.cache(bytes), Ok(()))
    }

    /// Stores how long a server of this data directory keeps ids; `None`: for ever. SQLite does not store it.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(unused_variables, reason = "SQLite does not need it")
    )]
    pub fn keep_ids(&mut self, window: Option<Duration>) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(_) => Ok(()),
            #[cfg(feature = "postgres")]
            Self::Postgres(writer) => writer.keep_ids(window),
        }
    }

    /// Describes the change if one of the database's paths now leads to another file or to none.
    /// Examines the directory entries only.
    pub fn replaced(&self) -> Option<String> {
        file_only!(self, writer => writer.replaced(), None)
    }

    /// Whether the rows must be read again: another connection changed an SQLite file since the last check, or
    /// PostgreSQL lost commits in a failover. A checkpoint by another connection counts as a change; changes by
    /// this writer do not.
    pub fn is_changed_by_others(&mut self) -> Result<bool, StoreError> {
        either!(self, writer => writer.is_changed_by_others())
    }

    /// Stores what this node reports about itself, for people. SQLite has one node, which reports nothing.
    #[cfg_attr(not(feature = "postgres"), expect(unused_variables))]
    pub fn report(&mut self, report: &NodeReport) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(_) => Ok(()),
            #[cfg(feature = "postgres")]
            Self::Postgres(writer) => writer.report(report),
        }
    }

    /// Records the state of an SQLite file after this writer's last write.
    pub fn note_written(&mut self) -> Result<(), StoreError> {
        file_only!(self, writer => writer.note_written(), Ok(()))
    }

    /// Whether an SQLite file was written to since [`Writer::note_written`], and not by a checkpoint: in place,
    /// by a program other than SQLite. A `touch` has the same effect.
    pub fn is_overwritten(&mut self) -> Result<bool, StoreError> {
        file_only!(self, writer => writer.is_overwritten(), Ok(false))
    }

    /// Closes an SQLite file that was replaced or removed, without a checkpoint, because the pages in memory may
    /// not belong to the file that is at the path now. All other connections of this process are retired too.
    pub fn abandon(self) {
        file_only!(self, writer => writer.abandon(), ());
    }

    /// Moves all commits from the WAL into the SQLite file and syncs it. Returns whether the file at the path
    /// is the one that is open, and has all commits: until then a commit may be in a `-wal` only, and another
    /// program may have removed that.
    pub fn checkpoint(&self) -> Result<bool, StoreError> {
        file_only!(self, writer => writer.checkpoint(), Ok(true))
    }

    /// Applies a range: all of it in one transaction, or nothing. After an error other than a lock the writer
    /// must not be used again.
    pub fn apply(
        &mut self,
        range: &Range<'_>,
        source: &mut dyn Source,
    ) -> Result<Outcome, StoreError> {
        either!(self, writer => writer.apply(range, source))
    }

    /// Applies ranges of several segments, in this order, in one transaction: all of them, or nothing.
    /// The ranges must be small, because the transaction keeps the changed pages in memory. After an
    /// error other than a lock the writer must not be used again.
    pub fn apply_together(
        &mut self,
        ranges: &mut [(Range<'_>, &mut dyn Source)],
    ) -> Result<OutcomeOfAll, StoreError> {
        either!(self, writer => writer.apply_together(ranges))
    }

    /// Applies ranges of several segments whose sums per user are added up in `users`, in this order, in one
    /// transaction: all of them, or nothing. After an error other than a lock or [`StoreError::Source`] the writer
    /// must not be used again.
    pub fn apply_folded(
        &mut self,
        users: &UserSums,
        ranges: &mut [(Range<'_>, &mut dyn Source)],
    ) -> Result<OutcomeOfFold, StoreError> {
        either!(self, writer => writer.apply_folded(users, ranges))
    }

    /// Stores a segment's state, and creates its row if it has none. Returns whether it was stored.
    pub fn mark(&mut self, mark: &Mark<'_>) -> Result<bool, StoreError> {
        either!(self, writer => writer.mark(mark))
    }

    /// The row of one segment.
    pub fn segment(&self, id: &SegmentId) -> Result<Option<SegmentRow>, StoreError> {
        either!(self, writer => writer.segment(id))
    }

    /// The segments that are fully applied, and the rows of the others.
    pub fn applied(&self) -> Result<(AppliedSegments, Vec<SegmentRow>), StoreError> {
        either!(self, writer => writer.applied())
    }

    /// The names of the imported files that are fully applied.
    pub fn applied_imports(&self) -> Result<HashSet<String>, StoreError> {
        either!(self, writer => writer.applied_imports())
    }

    /// The content of the fully applied imported files that have counted events without an id, by name.
    pub fn import_contents(&self) -> Result<Vec<(String, ImportContent)>, StoreError> {
        either!(self, writer => writer.import_contents())
    }

    /// The imported files that are the native segment with this label or a part of it: the name, and what is
    /// applied of the file.
    pub fn imports_of(&self, label: Label) -> Result<Vec<(String, Prefix)>, StoreError> {
        either!(self, writer => writer.imports_of(label))
    }

    /// The numbers of native segments that have a row.
    pub fn numbers(&self) -> Result<Numbers, StoreError> {
        either!(self, writer => writer.numbers())
    }

    /// The sum of the pruned segments.
    pub fn pruned(&self) -> Result<Pruned, StoreError> {
        either!(self, writer => writer.pruned())
    }

    /// The counts of all lines that the database knows of the data directory.
    pub fn ledger(&self) -> Result<Ledger, StoreError> {
        either!(self, writer => writer.ledger())
    }

    /// The sums over all users; in PostgreSQL, of the node.
    pub fn overall(&self) -> Result<Overall, StoreError> {
        either!(self, writer => writer.overall())
    }

    /// Fails if another program deleted rows of fully applied segments of an SQLite file, whose files would be
    /// applied again.
    pub fn check_rows(&self) -> Result<(), StoreError> {
        file_only!(self, writer => writer.check_rows(), Ok(()))
    }

    /// The last trusted time, milliseconds since 1970 UTC; `None` if none was stored.
    pub fn clock(&self) -> Result<Option<i64>, StoreError> {
        either!(self, writer => writer.clock())
    }

    /// Stores a trusted time.
    pub fn set_clock(&mut self, at_ms: i64) -> Result<(), StoreError> {
        either!(self, writer => writer.set_clock(at_ms))
    }

    /// Replaces implausible times of fully applied segments by the current time.
    pub fn restamp_segments(&mut self, stamps: &Stamps) -> Result<(), StoreError> {
        either!(self, writer => writer.restamp_segments(stamps))
    }

    /// The fully applied native segment with the lowest number.
    pub fn oldest_applied(&self) -> Result<Option<SegmentRow>, StoreError> {
        either!(self, writer => writer.oldest_applied())
    }

    /// The highest number of a sealed native segment; 0 if there is none.
    pub fn highest_sealed(&self) -> Result<u64, StoreError> {
        either!(self, writer => writer.highest_sealed())
    }

    /// Adds a fully applied segment's sums to the `pruned` row and deletes the segment's row, in one
    /// transaction. Returns false, and changes nothing, if the row is no longer `row`. The caller
    /// deletes the file afterwards.
    pub fn prune(&mut self, row: &SegmentRow, now_ms: i64) -> Result<bool, StoreError> {
        either!(self, writer => writer.prune(row, now_ms))
    }

    /// One step of a walk over all ids: examines up to `count` rows and expires those applied before
    /// `before_s` (seconds since 1970 UTC). Implausible times are replaced by the current time. A block
    /// of sequential ids expires as a whole, by its newest time. After the last row the walk starts
    /// again at the first. A step that finds nothing to change opens no transaction.
    ///
    /// In PostgreSQL the longest window of all nodes applies instead of `before_s`, measured by the clock of
    /// the database.
    pub fn expire_ids(
        &mut self,
        walk: &IdsWalk,
        before_s: i64,
        stamps: &Stamps,
        count: u32,
    ) -> Result<IdsWalk, StoreError> {
        match self {
            Self::Sqlite(writer) => writer.expire_ids(walk, before_s, stamps, count),
            #[cfg(feature = "postgres")]
            Self::Postgres(writer) => writer.expire_ids(walk, stamps, count),
        }
    }

    /// Carries the effect of pruned segments over to a new SQLite file: their sums, the part of each user's
    /// total that the kept files do not account for, and the ids counted in them. The new database must have
    /// no totals yet.
    pub fn carry(&mut self, snapshot: &Snapshot, now_ms: i64) -> Result<(), StoreError> {
        file_only!(self, writer => writer.carry(snapshot, now_ms), Ok(()))
    }

    /// Begins a rebuild of the node's rows in PostgreSQL: one transaction, to which all later writes belong.
    /// `carried` has the totals that the kept files do not account for. Without [`Writer::commit_rebuild`]
    /// nothing is changed.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(unused_variables, reason = "SQLite builds a new file")
    )]
    pub fn begin_rebuild(
        &mut self,
        carried: Option<&Snapshot>,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(_) => Ok(()),
            #[cfg(feature = "postgres")]
            Self::Postgres(writer) => writer.begin_rebuild(carried, now_ms),
        }
    }

    /// Commits a rebuild; `before` are the rows before it. Returns how many ids were released because their
    /// events are no longer in the files.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(unused_variables, reason = "SQLite builds a new file")
    )]
    pub fn commit_rebuild(&mut self, before: &[SegmentRow]) -> Result<u64, StoreError> {
        match self {
            Self::Sqlite(_) => Ok(0),
            #[cfg(feature = "postgres")]
            Self::Postgres(writer) => writer.commit_rebuild(before),
        }
    }

    /// Closes the connection. In SQLite, all commits are moved from the WAL into the file; if no other
    /// connection has it open, only that file is left.
    pub fn close(self) -> Result<(), StoreError> {
        file_only!(self, writer => writer.close(), Ok(()))
    }
}
