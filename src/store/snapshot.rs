//! The read snapshot behind `verify`: rows and totals as of one moment, the status of ids, and the comparison
//! of the totals with the sums of the files.
//!
//! Owned by the thread that verifies. Rows and totals are copied in one read transaction, so a running
//! server can continue to checkpoint its WAL. Ids and rejected lines are read afterwards: those of
//! events before the copied `applied_bytes` change only when segments are pruned or ids expire, and
//! both wait while `verify` runs. The blocks of sequential ids are counted in the read transaction,
//! because a run may continue past the copied `applied_bytes` and does not say how many of its numbers
//! lie before it. SQLite keeps the temporary database with the copy in memory while it is small, and beyond
//! that on disk (`SQLITE_TMPDIR`, else `/var/tmp`).

mod differences;
mod id_block_counts;
mod ids;

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Row, params};
use uuid::Uuid;

pub use self::differences::UserSum;
#[cfg(feature = "postgres")]
use self::id_block_counts::BlockCounter;
#[cfg(feature = "postgres")]
pub(super) use self::id_block_counts::BlockRow;
pub use self::id_block_counts::IdBlockCounts;
pub(super) use self::id_block_counts::count_blocks;
pub use self::ids::IdStatus;
#[cfg(feature = "postgres")]
pub(super) use self::ids::status_in;
use super::family::Reading;
use super::id_blocks::{self, Block};
use super::import_contents;
use super::open::{self, Contents};
use super::overall::{self, IdCount, Overall};
#[cfg(feature = "postgres")]
use super::postgres::PostgresSnapshot;
use super::segments;
use super::{AppliedSum, Database, IdEvent, IdEvents, Pruned, SegmentRow, StoreError, UserSums};
use crate::data_dir::segment::{Label, Prefix, SegmentId};

const SCRATCH: &str = include_str!("../../sql/verify/scratch.sql");
const INSERT_DATABASE_TOTAL: &str = include_str!("../../sql/verify/insert_database_total.sql");
const SELECT_USER_TOTALS: &str = include_str!("../../sql/query/select_user_totals.sql");
const SELECT_IDS_OF_PRUNED: &str = include_str!("../../sql/query/select_ids_of_pruned.sql");
const SELECT_ID_PLACES: &str = include_str!("../../sql/query/select_id_places.sql");
const SELECT_ID_BLOCKS: &str = include_str!("../../sql/query/select_id_blocks.sql");
const QUICK_CHECK: &str = include_str!("../../sql/verify/quick_check.sql");
const SELECT_OVERFLOWS: &str = include_str!("../../sql/query/select_overflows.sql");

/// Memory for the temporary table before SQLite moves it to disk.
const SCRATCH_CACHE_KIB: i64 = 64 << 10;
/// How many users with two totals are named at most.
const TWICE_MAX: usize = 100;
/// Where a snapshot is read.
enum SnapshotSource {
    Sqlite(Reading),
    #[cfg(feature = "postgres")]
    Postgres(PostgresSnapshot),
}

impl SnapshotSource {
    /// The connection to an SQLite file; `None` for PostgreSQL.
    fn sqlite(&self) -> Option<&Connection> {
        match self {
            Self::Sqlite(database) => Some(database),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => None,
        }
    }
}

/// A database as of one moment, and the sums of the files that were recounted. In PostgreSQL, the rows of one
/// node.
pub struct Snapshot {
    path: PathBuf,
    database: SnapshotSource,
    /// The copy of the totals, and the corrections of the files' sums.
    scratch: Connection,
    /// The sums of the files, with every event; see [`Self::correct`].
    files: OnceCell<UserSums>,
    /// The rows of all segments, in key order.
    pub rows: Vec<SegmentRow>,
    /// The sum of the pruned segments.
    pub pruned: Pruned,
    /// The stored sum of the fully applied segments.
    pub applied_sum: AppliedSum,
    /// Some of the users with more than one total, which only a damaged database has.
    pub twice: Vec<String>,
    /// The sums over all users, computed from their rows; without a time.
    pub totals: Overall,
    /// The stored sums over all users.
    pub overall: Overall,
    /// The counts of the blocks of sequential ids.
    pub blocks: IdBlockCounts,
    /// The number of ids, stored and counted. In PostgreSQL 0 and 0.
    pub ids: IdCount,
    /// Nodes with segments whose duplicates may have to be counted, because a rebuild of another node released
    /// ids; each described.
    pub recounts: Vec<String>,
}

impl Snapshot {
    /// Copies rows and totals; `None` where there is no database, an empty one, or a PostgreSQL in which the
    /// data directory `directory` is not a node.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(unused_variables, reason = "SQLite does not need it")
    )]
    pub fn of(database: &Database, directory: Uuid) -> Result<Option<Self>, StoreError> {
        match database {
            Database::Sqlite(path) => Self::open(path),
            #[cfg(feature = "postgres")]
            Database::Postgres(target) => {
                let Some(source) = PostgresSnapshot::open(target, directory)? else {
                    return Ok(None);
                };
                let path = PathBuf::from(target.to_string());
                let mut snapshot = Self::empty(path, SnapshotSource::Postgres(source))?;
                snapshot.copy_node()?;
                Ok(Some(snapshot))
            }
        }
    }

    /// The same for an SQLite file.
    pub fn open(path: &Path) -> Result<Option<Self>, StoreError> {
        let Some(database) = open::open_reader(path)? else {
            return Ok(None);
        };
        match open::inspect(&database, path)? {
            Contents::Empty => return Ok(None),
            Contents::Ours => {}
            Contents::Upgradable(found) => return Err(StoreError::not_upgraded(path, found)),
        }
        let mut snapshot = Self::empty(path.to_owned(), SnapshotSource::Sqlite(database))?;
        snapshot
            .copy()
            .map_err(StoreError::sqlite(path, "copy its totals"))?;
        Ok(Some(snapshot))
    }

    fn empty(path: PathBuf, database: SnapshotSource) -> Result<Self, StoreError> {
        let scratch = open_scratch().map_err(StoreError::sqlite(
            &path,
            "open a temporary database to compare it with",
        ))?;
        Ok(Self {
            path,
            database,
            scratch,
            files: OnceCell::new(),
            rows: Vec::new(),
            pruned: Pruned::default(),
            applied_sum: AppliedSum::default(),
            twice: Vec::new(),
            totals: Overall::default(),
            overall: Overall::default(),
            blocks: IdBlockCounts::default(),
            ids: IdCount::default(),
            recounts: Vec::new(),
        })
    }

    #[cfg(feature = "postgres")]
    fn copy_node(&mut self) -> Result<(), StoreError> {
        let SnapshotSource::Postgres(source) = &self.database else {
            return Ok(());
        };
        self.rows = source.rows()?;
        self.pruned = source.pruned()?;
        self.applied_sum = source.applied_sum()?;
        self.recounts = source.recounts()?;
        self.overall = source.overall()?;
        let failed = |error| StoreError::sqlite(&self.path, "copy its totals")(error);
        let writing = self.scratch.unchecked_transaction().map_err(failed)?;
        {
            let mut insert = writing.prepare(INSERT_DATABASE_TOTAL).map_err(failed)?;
            source.each_total(&mut |user, micros, events| {
                insert
                    .execute(params![user, micros, events])
                    .map_err(failed)?;
                self.totals.add_user(micros, events);
                Ok::<(), StoreError>(())
            })?;
        }
        writing.commit().map_err(failed)?;
        let applied: HashMap<i64, u64> = self.applied_bytes();
        let mut counter = BlockCounter::new(&applied);
        source.each_block(&mut |row| counter.add(row, &|place| source.own(place)))?;
        self.blocks = counter.counts;
        Ok(())
    }

    fn applied_bytes(&self) -> HashMap<i64, u64> {
        self.rows
            .iter()
            .map(|row| (row.key, row.applied_bytes))
            .collect()
    }

    fn copy(&mut self) -> rusqlite::Result<()> {
        let Some(database) = self.database.sqlite() else {
            return Ok(());
        };
        let snapshot = database.unchecked_transaction()?;
        let writing = self.scratch.unchecked_transaction()?;
        self.rows = segments::all(&snapshot)?;
        self.pruned = segments::pruned(&snapshot)?;
        self.applied_sum = segments::applied_sum(&snapshot)?;
        self.overall = overall::read(&snapshot)?;
        {
            let mut select = snapshot.prepare(SELECT_USER_TOTALS)?;
            let mut insert = writing.prepare(INSERT_DATABASE_TOTAL)?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let (micros, events): (i64, u64) = (row.get(1)?, row.get(2)?);
                let user: String = row.get(0)?;
                if insert.execute(params![user, micros, events])? == 0
                    && self.twice.len() < TWICE_MAX
                {
                    self.twice.push(user);
                }
                self.totals.add_user(micros, events);
            }
        }
        let applied = self.rows.iter().map(|row| (row.key, row.applied_bytes));
        self.blocks = count_blocks(&snapshot, &applied.collect())?;
        self.ids = IdCount::read(&snapshot, self.blocks.ids())?;
        writing.commit()
    }

    /// The imported files that are the native segment with this label or a part of it: the name, and what is
    /// applied of the file.
    pub fn imports_of(&self, label: Label) -> Result<Vec<(String, Prefix)>, StoreError> {
        match &self.database {
            SnapshotSource::Sqlite(database) => import_contents::of_label(database, label)
                .map_err(StoreError::sqlite(&self.path, "read the imported files")),
            #[cfg(feature = "postgres")]
            SnapshotSource::Postgres(source) => source.imports_of(label),
        }
    }

    /// Offsets before `end` of the segment's lines that were rejected because they overflow a total.
    /// Only the first [`REJECTED_LINES_MAX`](crate::aggregate::REJECTED_LINES_MAX) are known.
    pub fn overflows(&self, id: &SegmentId, end: u64) -> Result<HashSet<u64>, StoreError> {
        let database = match &self.database {
            SnapshotSource::Sqlite(database) => database,
            #[cfg(feature = "postgres")]
            SnapshotSource::Postgres(source) => return source.overflows(id, end),
        };
        let read = || -> rusqlite::Result<HashSet<u64>> {
            database
                .prepare_cached(SELECT_OVERFLOWS)?
                .query_map(params![id.to_string(), end], |row| row.get(0))?
                .collect()
        };
        read().map_err(StoreError::sqlite(&self.path, "read the rejected lines"))
    }

    /// Calls `each` with the status of these events of the segment with this key.
    pub fn statuses<'e>(
        &self,
        key: i64,
        events: &'e IdEvents,
        each: &mut dyn FnMut(&IdEvent<'e>, IdStatus),
    ) -> Result<(), StoreError> {
        let database = match &self.database {
            SnapshotSource::Sqlite(database) => database,
            #[cfg(feature = "postgres")]
            SnapshotSource::Postgres(source) => return source.statuses(key, events, each),
        };
        ids::statuses(database, key, events, each)
            .map_err(StoreError::sqlite(&self.path, "look ids up"))
    }

    /// How many ids both tables hold for each segment, by its key, counting lines that were applied when
    /// the rows were copied. `None` collects the ids of segments without a row that were not pruned.
    pub fn ids_by_segment(&self) -> Result<HashMap<Option<i64>, u64>, StoreError> {
        let applied = self.applied_bytes();
        let pruned = i64::try_from(self.pruned.number).unwrap_or(i64::MAX);
        let highest = applied.keys().copied().max().unwrap_or(0).max(pruned);
        let lowest = applied.keys().copied().min().unwrap_or(0);
        let mut found: HashMap<Option<i64>, u64> = HashMap::new();
        let mut count = |key: i64, offset: u64| {
            let of = match applied.get(&key) {
                Some(applied) if offset < *applied => Some(key),
                // Applied since the rows were copied.
                Some(_) => return,
                None if key > highest || key < lowest => return,
                None if (1..=pruned).contains(&key) => return,
                None => None,
            };
            *found.entry(of).or_default() += 1;
        };
        match &self.database {
            SnapshotSource::Sqlite(database) => {
                let read = each_row(database, SELECT_ID_PLACES, &mut |row| {
                    count(row.get(0)?, row.get(1)?);
                    Ok(())
                });
                read.map_err(StoreError::sqlite(&self.path, "count its ids"))?;
            }
            #[cfg(feature = "postgres")]
            SnapshotSource::Postgres(source) => source.each_id_place(&mut count)?,
        }
        for (key, count) in &self.blocks.by_segment {
            let of = applied.contains_key(key).then_some(*key);
            // Counted together with the rows, so there is no newer segment.
            if of.is_some() || !(1..=pruned).contains(key) {
                *found.entry(of).or_default() += count;
            }
        }
        Ok(found)
    }

    /// The first faults that SQLite finds in the database file; empty if it is sound. Reads every page.
    /// PostgreSQL checks its pages itself.
    pub fn damages(&self) -> Result<Vec<String>, StoreError> {
        let Some(database) = self.database.sqlite() else {
            return Ok(Vec::new());
        };
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut check = database.prepare(QUICK_CHECK)?;
            let found = check.query_map([], |row| row.get(0))?;
            found.collect()
        };
        let mut found = read().map_err(StoreError::sqlite(&self.path, "check its pages"))?;
        found.retain(|fault| fault != "ok");
        Ok(found)
    }
}

/// For [`SqliteWriter::carry`](super::SqliteWriter::carry).
impl Snapshot {
    /// Calls `each` for every row of an id that was counted in a pruned segment.
    pub(super) fn ids_of_pruned(
        &self,
        each: &mut dyn FnMut(&Row<'_>) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        match &self.database {
            SnapshotSource::Sqlite(database) => each_row(database, SELECT_IDS_OF_PRUNED, each),
            #[cfg(feature = "postgres")]
            SnapshotSource::Postgres(_) => Ok(()),
        }
    }

    /// Calls `each` with every row of `id_block` and the decoded block.
    pub(super) fn id_blocks(
        &self,
        each: &mut dyn FnMut(&Row<'_>, &mut Block) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let Some(database) = self.database.sqlite() else {
            return Ok(());
        };
        let mut block = Block::default();
        each_row(database, SELECT_ID_BLOCKS, &mut |row| {
            id_blocks::read(row, &mut block)?;
            each(row, &mut block)
        })
    }
}

pub(super) fn each_row(
    connection: &Connection,
    sql: &str,
    each: &mut dyn FnMut(&Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut select = connection.prepare(sql)?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        each(row)?;
    }
    Ok(())
}

/// A database without a name: SQLite deletes it when it is closed.
#[expect(
    clippy::disallowed_methods,
    reason = "a temporary database without a file name"
)]
fn open_scratch() -> rusqlite::Result<Connection> {
    let scratch = Connection::open("")?;
    scratch.pragma_update(None, "cache_size", -SCRATCH_CACHE_KIB)?;
    scratch.pragma_update_and_check(None, "journal_mode", "OFF", |_| Ok(()))?;
    scratch.pragma_update(None, "synchronous", "OFF")?;
    scratch.execute_batch(SCRATCH)?;
    Ok(scratch)
}
