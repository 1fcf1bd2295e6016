//! The rows of `segment`: how far each is applied, and in what state it is.

use std::collections::HashSet;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::family::Family;
use super::open::{self, Contents};
use super::{Ledger, StoreError};
use crate::data_dir::segment::{Numbers, Position, SegmentId, Tag};
use uuid::Uuid;

const SELECT_SEGMENT: &str = include_str!("../../sql/query/select_segment.sql");
const SELECT_SEGMENTS: &str = include_str!("../../sql/query/select_segments.sql");
const SELECT_UNFINISHED: &str = include_str!("../../sql/query/select_unfinished_segments.sql");
const SELECT_APPLIED_IMPORTS: &str = include_str!("../../sql/query/select_applied_imports.sql");
const SELECT_DIRECTORY: &str = include_str!("../../sql/query/select_directory.sql");
const SELECT_NUMBERS: &str = include_str!("../../sql/query/select_numbers.sql");
const SELECT_PRUNED: &str = include_str!("../../sql/query/select_pruned.sql");
const SELECT_LEDGER: &str = include_str!("../../sql/query/select_ledger.sql");
const SELECT_OLDEST_WHOLE: &str = include_str!("../../sql/query/select_oldest_applied_segment.sql");
const SELECT_HIGHEST_SEALED: &str = include_str!("../../sql/query/select_highest_sealed.sql");
const SELECT_SEGMENT_CHECKS: &str = include_str!("../../sql/query/select_segment_checks.sql");
const SELECT_TOTAL_CHECKS: &str = include_str!("../../sql/query/select_total_checks.sql");
const SELECT_APPLIED_SUM: &str = include_str!("../../sql/query/select_applied_sum.sql");
const CHANGE_APPLIED_SUM: &str = include_str!("../../sql/query/change_applied_sum.sql");
const ADD_UP_APPLIED: &str = include_str!("../../sql/query/add_up_applied.sql");
const COUNT_SEGMENTS_WITH_OTHER_IDS: &str =
    include_str!("../../sql/query/count_segments_with_other_ids.sql");
const SELECT_NUMBER_BOUNDS: &str = include_str!("../../sql/query/select_number_bounds.sql");
const LIST_NEWEST: &str = include_str!("../../sql/query/list_newest_segments.sql");
const LIST_NEWEST_REJECTED: &str = include_str!("../../sql/query/list_newest_rejected_lines.sql");
const COUNT_BY_STATE: &str = include_str!("../../sql/query/count_segments_by_state.sql");

/// What is to be done with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// Still appended to.
    Active,
    /// No longer appended to; not wholly applied yet.
    Sealed,
    /// Wholly applied.
    Applied,
    /// Its file changed after it was applied from; no more of it is applied.
    Corrupt,
    /// Its file is gone before it was wholly applied.
    Missing,
}

impl SegmentState {
    const ALL: [Self; 5] = [
        Self::Active,
        Self::Sealed,
        Self::Applied,
        Self::Corrupt,
        Self::Missing,
    ];

    /// As the database has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Sealed => "sealed",
            Self::Applied => "applied",
            Self::Corrupt => "corrupt",
            Self::Missing => "missing",
        }
    }
}

/// A line that was not counted, as the database keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedLine {
    /// The identity of its segment.
    pub segment: String,
    /// Bytes from the start of the file to the start of the line.
    pub offset: u64,
    /// Why, for programs, such as `negative` or `id_conflict`.
    pub code: String,
    /// Why, for people.
    pub reason: String,
    /// Its first 1024 bytes; what is not UTF-8 is shown as U+FFFD.
    pub line: String,
}

/// Which rejected lines to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RejectedFilter {
    /// Only of our segments, at this position or after it.
    pub since: Option<Position>,
    /// Only of events whose id begins with this.
    pub id_prefix: Option<String>,
}

/// What became of lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them but empty ones: the sum of the other three.
    pub lines: u64,
    /// Counted events.
    pub events: u64,
    /// Not counted: their id was counted before.
    pub duplicates: u64,
    /// Not counted: no event, a contradicted id, an overflow.
    pub rejected: u64,
}

impl Counts {
    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.lines += other.lines;
        self.events += other.events;
        self.duplicates += other.duplicates;
        self.rejected += other.rejected;
    }
}

/// One row of `segment`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRow {
    /// Whose row.
    pub id: SegmentId,
    /// Its primary key.
    pub key: i64,
    /// Which native segment of that number; `None` for an imported file.
    pub tag: Option<Tag>,
    /// What the file was called when last seen.
    pub file_name: String,
    /// What is to be done with it.
    pub state: SegmentState,
    /// Bytes from the start that are applied.
    pub applied_bytes: u64,
    /// CRC-32 of those bytes.
    pub checksum: u32,
    /// What became of the lines in those bytes.
    pub counts: Counts,
    /// Sum of the counted events' micros modulo 2^64.
    pub net_check: i64,
    /// Of the counted events, those with an id.
    pub id_events: u64,
    /// Of the check figure, the part of events with an id.
    pub id_net_check: i64,
    /// Ids of this segment that are no longer kept.
    pub ids_expired: u64,
    /// Bytes not applied because the file is corrupt.
    pub corrupt_bytes: u64,
    /// Lines in those bytes.
    pub corrupt_lines: u64,
    /// Why it is corrupt or lost.
    pub reason: Option<String>,
    /// When the last byte was applied, milliseconds since 1970 UTC.
    pub completed_at_ms: Option<i64>,
}

/// The sum of what retention let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The highest segment number let go; 0 if none.
    pub number: u64,
    /// How many segments.
    pub segments: u64,
    /// Their lines.
    pub counts: Counts,
    /// Their check figures, added modulo 2^64.
    pub net_check: i64,
    /// Length of the file of segment `number`, which may be there still.
    pub file_bytes: u64,
    /// CRC-32 of that file.
    pub file_checksum: u32,
}

/// What the rows of whole segments come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppliedSum {
    /// How many segments.
    pub segments: u64,
    /// How many of these are ours.
    pub native: u64,
    /// Their lines.
    pub counts: Counts,
    /// Their lines that were not applied.
    pub corrupt_lines: u64,
}

impl AppliedSum {
    /// The sum of the whole ones among all rows.
    pub fn of<'r>(rows: impl IntoIterator<Item = &'r SegmentRow>) -> Self {
        let mut sum = Self::default();
        for row in rows {
            if row.state == SegmentState::Applied {
                sum.segments += 1;
                sum.native += u64::from(row.key > 0);
                sum.counts.add(&row.counts);
                sum.corrupt_lines += row.corrupt_lines;
            }
        }
        sum
    }
}

/// The segments of which every byte is applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedSegments {
    /// The numbers of native segments.
    pub native: Numbers,
    /// The names of imported files.
    pub imported: HashSet<String>,
}

impl AppliedSegments {
    /// Whether it is one of them.
    pub fn contains(&self, id: &SegmentId) -> bool {
        match id {
            SegmentId::Native(number) => self.native.contains(*number),
            SegmentId::Imported(name) => self.imported.contains(name),
        }
    }
}

/// Sums that must agree, as of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Events and check figure of the segments and what was pruned.
    pub segments: (u64, i64),
    /// Those of the users' totals.
    pub totals: (u64, i64),
    /// The kept sum of whole segments.
    pub applied_sum: AppliedSum,
    /// What their rows come to.
    pub applied_rows: AppliedSum,
}

/// The rows of all segments, in key order, from a database that may be missing, empty or in use:
/// for recovery, before a writer is open. Waits half a second for a lock at most. A `-wal` that an
/// unclean stop left stays: that it is there tells the writer to check the sums.
pub fn read_segments(path: &Path) -> Result<Vec<SegmentRow>, StoreError> {
    Ok(read_kept(path)?.0)
}

/// The same, and what retention let go.
pub fn read_kept(path: &Path) -> Result<(Vec<SegmentRow>, Pruned), StoreError> {
    let nothing = || Ok((Vec::new(), Pruned::default()));
    let Some(connection) = open::open_reader(path)? else {
        return nothing();
    };
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(StoreError::sqlite(path, "prepare a reading connection"))?;
    if open::inspect(&connection, path)? == Contents::Empty {
        return nothing();
    }
    let read = || -> rusqlite::Result<(Vec<SegmentRow>, Pruned)> {
        let snapshot = connection.unchecked_transaction()?;
        Ok((all(&snapshot)?, pruned(&snapshot)?))
    };
    read().map_err(StoreError::sqlite(path, "read its segments"))
}

/// What recovery asks of the rows of native segments.
#[derive(Debug, Default)]
pub struct RecoveryRows {
    /// The rows of segments that are not fully applied, and of the numbers asked for.
    pub rows: Vec<SegmentRow>,
    /// The numbers of all other rows: fully applied segments.
    pub applied: Numbers,
    /// The sum of what retention pruned.
    pub pruned: Pruned,
}

/// Like [`read_kept`], without the rows of fully applied segments, but for those of `numbers`.
pub fn read_for_recovery(path: &Path, numbers: &[u64]) -> Result<RecoveryRows, StoreError> {
    let Some(connection) = open::open_reader(path)? else {
        return Ok(RecoveryRows::default());
    };
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(StoreError::sqlite(path, "prepare a reading connection"))?;
    if open::inspect(&connection, path)? == Contents::Empty {
        return Ok(RecoveryRows::default());
    }
    let read = || -> rusqlite::Result<RecoveryRows> {
        let snapshot = connection.unchecked_transaction()?;
        let mut rows = unfinished(&snapshot)?;
        for &number in numbers {
            if rows.iter().all(|row| row.id.number() != Some(number)) {
                rows.extend(one(&snapshot, &SegmentId::Native(number))?);
            }
        }
        let mut applied = numbers_in(&snapshot)?;
        for number in rows.iter().filter_map(|row| row.id.number()) {
            applied.remove(number);
        }
        Ok(RecoveryRows {
            rows,
            applied,
            pruned: pruned(&snapshot)?,
        })
    };
    read().map_err(StoreError::sqlite(path, "read its segments"))
}

/// The UUID of the data directory that a database belongs to; `None` where there is no database, or
/// that is not noted.
pub fn read_directory(path: &Path) -> Result<Option<Uuid>, StoreError> {
    let Some(connection) = open::open_reader(path)? else {
        return Ok(None);
    };
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(StoreError::sqlite(path, "prepare a reading connection"))?;
    if open::inspect(&connection, path)? == Contents::Empty {
        return Ok(None);
    }
    directory(&connection).map_err(StoreError::sqlite(
        path,
        "read which directory it belongs to",
    ))
}

/// The sums that must agree, read over a connection of its own; `None` where there is no database.
/// They do unless the file was tampered with or put together from two.
pub fn read_checks(path: &Path) -> Result<Option<Checks>, StoreError> {
    let Some(connection) = open::open_reader(path)? else {
        return Ok(None);
    };
    checks(&connection)
        .map(Some)
        .map_err(StoreError::sqlite(path, "add up all totals"))
}

/// Whether the database is one whole: its pages fit together, its sums agree, and each segment has the
/// ids that its row says. Read over a connection of its own, all of it; nothing is checkpointed.
pub fn is_consistent(path: &Path) -> Result<bool, StoreError> {
    let Some(connection) = open::open_reader(path)? else {
        return Ok(false);
    };
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(StoreError::sqlite(path, "prepare a reading connection"))?;
    let read = || -> rusqlite::Result<bool> {
        let one = |sql, ok: &dyn Fn(&Row<'_>) -> rusqlite::Result<bool>| {
            connection.query_row(sql, [], |row| ok(row))
        };
        let sound = one("PRAGMA integrity_check(1)", &|row| {
            Ok(row.get::<_, String>(0)? == "ok")
        })?;
        if !sound {
            return Ok(false);
        }
        let sums = checks(&connection)?;
        let ids = one(COUNT_SEGMENTS_WITH_OTHER_IDS, &|row| {
            Ok(row.get::<_, i64>(0)? == 0)
        })?;
        Ok(ids && sums.segments == sums.totals && sums.applied_sum == sums.applied_rows)
    };
    read().map_err(StoreError::sqlite(path, "check it"))
}

/// Discards the `-wal` of a database whose file another program wrote over in place: it belongs to
/// what the file was. All connections of this process are retired.
pub fn discard_wal(path: &Path) {
    Family::of(path).discard_wal();
}

pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<SegmentRow>> {
    connection
        .prepare(SELECT_SEGMENTS)?
        .query_map([], read_row)?
        .collect()
}

/// The active one, then at most `limit` in all by when they were first seen, newest first.
pub(super) fn newest(connection: &Connection, limit: u32) -> rusqlite::Result<Vec<SegmentRow>> {
    connection
        .prepare_cached(LIST_NEWEST)?
        .query_map([limit], read_row)?
        .collect()
}

/// At most `limit` rejected lines, those of the segment last applied to first, from its end.
pub(super) fn newest_rejected(
    connection: &Connection,
    limit: u32,
    filter: &RejectedFilter,
) -> rusqlite::Result<Vec<RejectedLine>> {
    let opened = filter.id_prefix.as_deref().map(|prefix| {
        let mut opened = format!("{{\"id\":{}", serde_json::Value::from(prefix));
        opened.pop(); // the quote that closes it
        opened
    });
    connection
        .prepare_cached(LIST_NEWEST_REJECTED)?
        .query_map(
            params![
                limit,
                filter.since.map(|position| position.segment),
                filter.id_prefix,
                opened,
                filter.since.map(|position| position.offset),
            ],
            |row| {
                Ok(RejectedLine {
                    segment: row.get(0)?,
                    offset: row.get(1)?,
                    code: row.get(2)?,
                    reason: row.get(3)?,
                    line: row.get(4)?,
                })
            },
        )?
        .collect()
}

/// How many segments there are of each state there is one of.
pub(super) fn count_by_state(
    connection: &Connection,
) -> rusqlite::Result<Vec<(SegmentState, u64)>> {
    connection
        .prepare_cached(COUNT_BY_STATE)?
        .query_map([], |row| Ok((state(row.get(0)?, 0)?, row.get(1)?)))?
        .collect()
}

/// All but the whole ones.
pub(super) fn unfinished(connection: &Connection) -> rusqlite::Result<Vec<SegmentRow>> {
    connection
        .prepare_cached(SELECT_UNFINISHED)?
        .query_map([], read_row)?
        .collect()
}

pub(super) fn one(connection: &Connection, id: &SegmentId) -> rusqlite::Result<Option<SegmentRow>> {
    connection
        .prepare_cached(SELECT_SEGMENT)?
        .query_row([id.to_string()], read_row)
        .optional()
}

/// The fully applied ones; `unfinished` are the rows of the others, of the same snapshot.
pub(super) fn applied(
    snapshot: &Connection,
    unfinished: &[SegmentRow],
) -> rusqlite::Result<AppliedSegments> {
    let mut native = numbers_in(snapshot)?;
    for number in unfinished.iter().filter_map(|row| row.id.number()) {
        native.remove(number);
    }
    Ok(AppliedSegments {
        native,
        imported: applied_imports(snapshot)?,
    })
}

/// The names of the imported files that are fully applied.
pub(super) fn applied_imports(connection: &Connection) -> rusqlite::Result<HashSet<String>> {
    connection
        .prepare_cached(SELECT_APPLIED_IMPORTS)?
        .query_map([], |row| row.get(0))?
        .collect()
}

/// The UUID of the data directory that the database belongs to, once that is noted.
pub(super) fn directory(connection: &Connection) -> rusqlite::Result<Option<Uuid>> {
    let text: Option<String> = connection.query_row(SELECT_DIRECTORY, [], |row| row.get(0))?;
    Ok(text.and_then(|text| text.parse().ok()))
}

/// The numbers of native segments that have a row.
pub(super) fn numbers(connection: &Connection) -> rusqlite::Result<Numbers> {
    numbers_in(&*connection.unchecked_transaction()?)
}

/// The same, in a transaction. Reads the keys only where there are gaps between them.
fn numbers_in(snapshot: &Connection) -> rusqlite::Result<Numbers> {
    let (first, last, count) =
        snapshot
            .prepare_cached(SELECT_NUMBER_BOUNDS)?
            .query_row([], |row| {
                Ok((
                    row.get::<_, u64>(0)?,
                    row.get::<_, u64>(1)?,
                    row.get::<_, u64>(2)?,
                ))
            })?;
    let mut numbers = Numbers::default();
    if count > 0 && last - first + 1 == count {
        numbers.insert_range(first..=last);
        return Ok(numbers);
    }
    let mut statement = snapshot.prepare_cached(SELECT_NUMBERS)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        numbers.insert(row.get(0)?);
    }
    Ok(numbers)
}

/// The whole one of ours with the lowest number.
pub(super) fn oldest_applied(connection: &Connection) -> rusqlite::Result<Option<SegmentRow>> {
    connection
        .prepare_cached(SELECT_OLDEST_WHOLE)?
        .query_row([], read_row)
        .optional()
}

/// The highest number of ours that is no longer appended to; 0 if there is none.
pub(super) fn highest_sealed(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached(SELECT_HIGHEST_SEALED)?
        .query_row([], |row| row.get(0))
}

pub(super) fn pruned(connection: &Connection) -> rusqlite::Result<Pruned> {
    connection.query_row(SELECT_PRUNED, [], |row| {
        Ok(Pruned {
            number: row.get(0)?,
            segments: row.get(1)?,
            counts: Counts {
                lines: row.get(2)?,
                events: row.get(3)?,
                duplicates: row.get(4)?,
                rejected: row.get(5)?,
            },
            net_check: row.get(6)?,
            file_bytes: row.get(7)?,
            file_checksum: row.get(8)?,
        })
    })
}

/// The kept sum of whole segments.
pub(super) fn applied_sum(connection: &Connection) -> rusqlite::Result<AppliedSum> {
    connection
        .prepare_cached(SELECT_APPLIED_SUM)?
        .query_row([], read_applied_sum)
}

fn read_applied_sum(row: &Row<'_>) -> rusqlite::Result<AppliedSum> {
    Ok(AppliedSum {
        segments: row.get(0)?,
        native: row.get(1)?,
        counts: Counts {
            lines: row.get(2)?,
            events: row.get(3)?,
            duplicates: row.get(4)?,
            rejected: row.get(5)?,
        },
        corrupt_lines: row.get(6)?,
    })
}

/// Adds a segment that became whole in this transaction to the kept sum.
pub(super) fn add_to_applied_sum(connection: &Connection, key: i64) -> rusqlite::Result<()> {
    change_applied_sum(connection, key, 1)
}

/// Takes a whole segment off the kept sum, before its row is deleted in this transaction.
pub(super) fn take_off_applied_sum(connection: &Connection, key: i64) -> rusqlite::Result<()> {
    change_applied_sum(connection, key, -1)
}

fn change_applied_sum(connection: &Connection, key: i64, sign: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(CHANGE_APPLIED_SUM)?
        .execute([key, sign])
        .map(|_| ())
}

/// Every line the database knows of; nothing is pending in it.
pub(super) fn ledger(connection: &Connection) -> rusqlite::Result<Ledger> {
    connection.query_row(SELECT_LEDGER, [], |row| {
        Ok(Ledger {
            lines: row.get(0)?,
            applied: row.get(1)?,
            duplicates: row.get(2)?,
            rejected: row.get(3)?,
            pending: 0,
            corrupt: row.get(4)?,
            unaccounted: 0,
        })
    })
}

fn checks(connection: &Connection) -> rusqlite::Result<Checks> {
    let snapshot = connection.unchecked_transaction()?;
    let add = |sql: &str| -> rusqlite::Result<(u64, i64)> {
        let mut statement = snapshot.prepare(sql)?;
        let mut rows = statement.query([])?;
        let mut sum = (0u64, 0i64);
        while let Some(row) = rows.next()? {
            sum.0 += row.get::<_, u64>(0)?;
            sum.1 = sum.1.wrapping_add(row.get(1)?);
        }
        Ok(sum)
    };
    let mut segments = add(SELECT_SEGMENT_CHECKS)?;
    let pruned = pruned(&snapshot)?;
    segments.0 += pruned.counts.events;
    segments.1 = segments.1.wrapping_add(pruned.net_check);
    Ok(Checks {
        segments,
        totals: add(SELECT_TOTAL_CHECKS)?,
        applied_sum: applied_sum(&snapshot)?,
        applied_rows: snapshot.query_row(ADD_UP_APPLIED, [], read_applied_sum)?,
    })
}

fn id(key: i64, name: impl FnOnce() -> rusqlite::Result<String>) -> rusqlite::Result<SegmentId> {
    Ok(match u64::try_from(key) {
        Ok(number) => SegmentId::Native(number),
        Err(_) => SegmentId::Imported(name()?),
    })
}

fn tag(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Tag>> {
    let text: Option<String> = row.get(column)?;
    let malformed =
        |text| rusqlite::Error::InvalidColumnType(column, text, rusqlite::types::Type::Text);
    text.map(|text| text.parse().map_err(|_| malformed(text)))
        .transpose()
}

fn state(name: String, column: usize) -> rusqlite::Result<SegmentState> {
    SegmentState::ALL
        .into_iter()
        .find(|known| known.name() == name)
        .ok_or(rusqlite::Error::InvalidColumnType(
            column,
            name,
            rusqlite::types::Type::Text,
        ))
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<SegmentRow> {
    let key: i64 = row.get(0)?;
    Ok(SegmentRow {
        id: id(key, || row.get(1))?,
        key,
        file_name: row.get(2)?,
        state: state(row.get(3)?, 3)?,
        applied_bytes: row.get(4)?,
        checksum: row.get(5)?,
        counts: Counts {
            lines: row.get(6)?,
            events: row.get(7)?,
            duplicates: row.get(8)?,
            rejected: row.get(9)?,
        },
        net_check: row.get(10)?,
        id_events: row.get(11)?,
        id_net_check: row.get(12)?,
        ids_expired: row.get(13)?,
        corrupt_bytes: row.get(14)?,
        corrupt_lines: row.get(15)?,
        reason: row.get(16)?,
        completed_at_ms: row.get(17)?,
        tag: tag(row, 18)?,
    })
}
