//! The read snapshot behind `verify`: rows and totals as of one moment, the status of ids, and a
//! temporary table in which the totals of the files are compared with those of the database.
//!
//! Owned by the thread that verifies. Rows and totals are copied in one read transaction, so a running
//! server can continue to checkpoint its WAL. Ids and rejected lines are read afterwards: those of
//! events before the copied `applied_bytes` change only when segments are pruned or ids expire, and
//! both wait while `verify` runs. The blocks of sequential ids are counted in the read transaction,
//! because a run may continue past the copied `applied_bytes` and does not say how many of its numbers
//! lie before it. SQLite keeps the temporary database in memory while it is small, and beyond that on
//! disk (`SQLITE_TMPDIR`, else `/var/tmp`).

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::family::Reading;
use super::id_blocks::{self, Block, Grouped, NumberStatus, SELECT_ID_BLOCK, Span};
use super::open::{self, Contents};
use super::overall::{self, Overall};
use super::segments;
use super::{AppliedSum, IdEvent, IdEvents, Pruned, SegmentRow, StoreError};
use crate::data_dir::segment::SegmentId;

const SCRATCH: &str = include_str!("../../sql/verify/scratch.sql");
const INSERT_DATABASE_TOTAL: &str = include_str!("../../sql/verify/insert_database_total.sql");
const ADD_FILES_TOTAL: &str = include_str!("../../sql/verify/add_files_total.sql");
const SELECT_FILES_MICROS: &str = include_str!("../../sql/verify/select_files_micros.sql");
const SET_FILES_TOTAL: &str = include_str!("../../sql/verify/set_files_total.sql");
const SELECT_DIFFERENCES: &str = include_str!("../../sql/verify/select_differences.sql");
const SELECT_USER_TOTALS: &str = include_str!("../../sql/query/select_user_totals.sql");
const SELECT_EVENT_ID: &str = include_str!("../../sql/query/select_event_id.sql");
const SELECT_IDS_OF_PRUNED: &str = include_str!("../../sql/query/select_ids_of_pruned.sql");
const SELECT_ID_PLACES: &str = include_str!("../../sql/query/select_id_places.sql");
const SELECT_ID_BLOCKS: &str = include_str!("../../sql/query/select_id_blocks.sql");
const QUICK_CHECK: &str = include_str!("../../sql/verify/quick_check.sql");
const SELECT_OVERFLOWS: &str = include_str!("../../sql/query/select_overflows.sql");

/// Memory for the temporary table before SQLite moves it to disk.
const SCRATCH_CACHE_KIB: i64 = 64 << 10;
/// How many users with two totals are named at most.
const TWICE_MAX: usize = 100;
/// How many blocks with a fault are described at most.
const FAULTS_MAX: usize = 20;
/// Sums this far from the ends of 64 bits can be added in SQL.
const SAFE: i64 = 1 << 62;

/// The status of an event with an id, according to the tables of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdStatus {
    /// The event was counted.
    Counted,
    /// Another event with the same id and payload was counted.
    Duplicate,
    /// An event with the same id and another payload was counted.
    Contradicted,
    /// The id is not in the tables: it expired, or the event was not counted.
    Unknown,
}

/// A user's total, or the part of it that files account for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserSum {
    /// Added minus subtracted, modulo 2^64.
    pub micros: i64,
    /// Events; negative in a correction.
    pub events: i64,
}

/// A database as of one moment, and the totals that were recounted from the files.
pub struct Snapshot {
    path: PathBuf,
    database: Reading,
    scratch: Connection,
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
}

/// The counts of the blocks of sequential ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdBlockCounts {
    /// Numbers that were counted, by the key of the segment that their runs name.
    pub by_segment: HashMap<i64, u64>,
    /// Blocks that contradict themselves or the rows of the segments, each described; the first
    /// [`FAULTS_MAX`] of them.
    pub faults: Vec<String>,
    /// How many such blocks there are.
    pub fault_count: u64,
}

impl Snapshot {
    /// Copies rows and totals; `None` where there is no database, or an empty one.
    pub fn open(path: &Path) -> Result<Option<Self>, StoreError> {
        let Some(database) = open::open_reader(path)? else {
            return Ok(None);
        };
        if open::inspect(&database, path)? == Contents::Empty {
            return Ok(None);
        }
        let scratch = open_scratch().map_err(StoreError::sqlite(
            path,
            "open a temporary database to compare it with",
        ))?;
        let mut snapshot = Self {
            path: path.to_owned(),
            database,
            scratch,
            rows: Vec::new(),
            pruned: Pruned::default(),
            applied_sum: AppliedSum::default(),
            twice: Vec::new(),
            totals: Overall::default(),
            overall: Overall::default(),
            blocks: IdBlockCounts::default(),
        };
        snapshot
            .copy()
            .map_err(StoreError::sqlite(path, "copy its totals"))?;
        Ok(Some(snapshot))
    }

    fn copy(&mut self) -> rusqlite::Result<()> {
        let snapshot = self.database.unchecked_transaction()?;
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
        writing.commit()
    }

    /// Offsets before `end` of the segment's lines that were rejected because they overflow a total.
    /// Only the first [`REJECTED_LINES_MAX`](crate::aggregate::REJECTED_LINES_MAX) are known.
    pub fn overflows(&self, id: &SegmentId, end: u64) -> Result<HashSet<u64>, StoreError> {
        let read = || -> rusqlite::Result<HashSet<u64>> {
            self.database
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
        // Each table is read in the order of its key.
        let grouped = Grouped::of(events);
        let mut read = || -> rusqlite::Result<()> {
            let reading = self.database.unchecked_transaction()?;
            let mut select = reading.prepare_cached(SELECT_EVENT_ID)?;
            for event in grouped
                .rows
                .iter()
                .filter_map(|row| events.get(row.index()))
            {
                let row = select.query_row([event.id], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get(2)?))
                });
                let status = match row.optional()? {
                    None => IdStatus::Unknown,
                    Some((payload, ..)) if payload != event.payload() => IdStatus::Contradicted,
                    Some((_, segment, offset)) if (segment, offset) == (key, event.offset) => {
                        IdStatus::Counted
                    }
                    Some(_) => IdStatus::Duplicate,
                };
                each(&event, status);
            }
            let mut select = reading.prepare_cached(SELECT_ID_BLOCK)?;
            let mut block = Block::default();
            for spans in grouped.blocks() {
                let of = &spans[0].key;
                let mut rows = select.query(params![of.prefix, of.width, of.block])?;
                block.clear();
                if let Some(row) = rows.next()?
                    && block.decode(id_blocks::bytes(row)?).is_err()
                {
                    block.clear(); // Reported as a fault.
                }
                for index in spans.iter().flat_map(Span::indexes) {
                    if let Some(event) = events.get(index) {
                        let number = grouped.numbers[index];
                        each(&event, status_in(&block, number, key, &event));
                    }
                }
            }
            Ok(())
        };
        read().map_err(StoreError::sqlite(&self.path, "look ids up"))
    }

    /// How many ids both tables hold for each segment, by its key, counting lines that were applied when
    /// the rows were copied. `None` collects the ids of segments without a row that were not pruned.
    pub fn ids_by_segment(&self) -> Result<HashMap<Option<i64>, u64>, StoreError> {
        let applied: HashMap<i64, u64> = self
            .rows
            .iter()
            .map(|row| (row.key, row.applied_bytes))
            .collect();
        let pruned = i64::try_from(self.pruned.number).unwrap_or(i64::MAX);
        let highest = applied.keys().copied().max().unwrap_or(0).max(pruned);
        let lowest = applied.keys().copied().min().unwrap_or(0);
        let read = || -> rusqlite::Result<HashMap<Option<i64>, u64>> {
            let mut found = HashMap::new();
            let mut select = self.database.prepare(SELECT_ID_PLACES)?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let (key, offset): (i64, u64) = (row.get(0)?, row.get(1)?);
                let of = match applied.get(&key) {
                    Some(applied) if offset < *applied => Some(key),
                    // Applied since the rows were copied.
                    Some(_) => continue,
                    None if key > highest || key < lowest => continue,
                    None if (1..=pruned).contains(&key) => continue,
                    None => None,
                };
                *found.entry(of).or_default() += 1;
            }
            for (key, count) in &self.blocks.by_segment {
                let of = applied.contains_key(key).then_some(*key);
                // Counted together with the rows, so there is no newer segment.
                if of.is_some() || !(1..=pruned).contains(key) {
                    *found.entry(of).or_default() += count;
                }
            }
            Ok(found)
        };
        read().map_err(StoreError::sqlite(&self.path, "count its ids"))
    }

    /// Adds to the files' totals.
    pub fn add_users<'u>(
        &self,
        users: impl Iterator<Item = (&'u str, UserSum)>,
    ) -> Result<(), StoreError> {
        let write = || -> rusqlite::Result<()> {
            let writing = self.scratch.unchecked_transaction()?;
            {
                let mut add = writing.prepare_cached(ADD_FILES_TOTAL)?;
                for (user, UserSum { micros, events }) in users {
                    let safe = (-SAFE..=SAFE).contains(&micros);
                    if !safe || add.execute(params![user, micros, events, -SAFE, SAFE])? != 1 {
                        add_wrapping(&writing, user, micros, events)?;
                    }
                }
            }
            writing.commit()
        };
        write().map_err(StoreError::sqlite(&self.path, "add up a recount beside it"))
    }

    /// The first faults that SQLite finds in the database file; empty if it is sound. Reads every page.
    pub fn damages(&self) -> Result<Vec<String>, StoreError> {
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut check = self.database.prepare(QUICK_CHECK)?;
            let found = check.query_map([], |row| row.get(0))?;
            found.collect()
        };
        let mut found = read().map_err(StoreError::sqlite(&self.path, "check its pages"))?;
        found.retain(|fault| fault != "ok");
        Ok(found)
    }

    /// Calls `each` for every user whose totals differ, with the user, the database's total and the
    /// files' total.
    pub fn differences(
        &self,
        each: &mut dyn FnMut(&str, UserSum, UserSum),
    ) -> Result<(), StoreError> {
        let mut read = || -> rusqlite::Result<()> {
            let mut select = self.scratch.prepare(SELECT_DIFFERENCES)?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let user: String = row.get(0)?;
                let sum = |at| -> rusqlite::Result<UserSum> {
                    Ok(UserSum {
                        micros: row.get(at)?,
                        events: row.get(at + 1)?,
                    })
                };
                each(&user, sum(1)?, sum(3)?);
            }
            Ok(())
        };
        read().map_err(StoreError::sqlite(&self.path, "compare its totals"))
    }
}

impl Snapshot {
    /// Calls `each` for every row of an id that was counted in a pruned segment.
    pub(super) fn ids_of_pruned(
        &self,
        each: &mut dyn FnMut(&Row<'_>) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        each_row(&self.database, SELECT_IDS_OF_PRUNED, each)
    }

    /// Calls `each` with every row of `id_block` and the decoded block.
    pub(super) fn id_blocks(
        &self,
        each: &mut dyn FnMut(&Row<'_>, &mut Block) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let mut block = Block::default();
        each_row(&self.database, SELECT_ID_BLOCKS, &mut |row| {
            id_blocks::read(row, &mut block)?;
            each(row, &mut block)
        })
    }
}

fn each_row(
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

/// The status of an event according to its block.
fn status_in(block: &Block, number: u8, key: i64, event: &IdEvent<'_>) -> IdStatus {
    match block.status(number, event.payload_hash()) {
        NumberStatus::New => IdStatus::Unknown,
        NumberStatus::Conflict => IdStatus::Contradicted,
        NumberStatus::Duplicate => match block.run_of(number) {
            Some(run) if run.is_at(key, event.offset) => IdStatus::Counted,
            _ => IdStatus::Duplicate,
        },
    }
}

/// Counts all blocks of ids; `applied` has the applied bytes of each segment by its key.
fn count_blocks(
    connection: &Connection,
    applied: &HashMap<i64, u64>,
) -> rusqlite::Result<IdBlockCounts> {
    let mut counts = IdBlockCounts::default();
    let mut block = Block::default();
    each_row(connection, SELECT_ID_BLOCKS, &mut |row| {
        let fault = match id_blocks::bytes(row).map(|bytes| block.decode(bytes)) {
            Err(error) => Some(error.to_string()),
            Ok(Err(error)) => Some(error.to_string()),
            Ok(Ok(())) => {
                let past = block.runs().iter().find(|run| {
                    let end = applied.get(&run.segment);
                    end.is_some_and(|end| run.last_offset >= *end)
                });
                past.map(|run| {
                    format!(
                        "it names a line at offset {} of segment key {}, past what is applied",
                        run.last_offset, run.segment
                    )
                })
            }
        };
        let Some(fault) = fault else {
            for run in block.runs() {
                *counts.by_segment.entry(run.segment).or_default() += u64::from(run.count);
            }
            return Ok(());
        };
        counts.fault_count += 1;
        if counts.faults.len() < FAULTS_MAX {
            let (prefix, width, number): (String, i64, i64) =
                (row.get(1)?, row.get(2)?, row.get(3)?);
            counts.faults.push(format!(
                "block {number} of the ids {prefix:?} with {width} digits: {fault}"
            ));
        }
        Ok(())
    })?;
    Ok(counts)
}

fn add_wrapping(
    scratch: &Connection,
    user: &str,
    micros: i64,
    events: i64,
) -> rusqlite::Result<()> {
    let before: Option<i64> = scratch
        .prepare_cached(SELECT_FILES_MICROS)?
        .query_row([user], |row| row.get(0))
        .optional()?;
    let sum = before.unwrap_or(0).wrapping_add(micros);
    scratch
        .prepare_cached(SET_FILES_TOTAL)?
        .execute(params![user, sum, events])
        .map(|_| ())
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
