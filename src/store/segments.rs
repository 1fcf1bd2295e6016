//! The table `segment`: the applied offset and the state of each segment, and the sums over them.
//!
//! The functions with a path open a connection of their own, for recovery and checks while no [`Readers`]
//! pool exists. The others run on the connection that they are given. All of them only read, except
//! those that maintain the sum of applied segments inside the writer's transaction.
//!
//! [`Readers`]: super::Readers

use std::collections::HashSet;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::family::Family;
use super::open::{self, Contents};
use super::overall::{self, Overall};
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
const SELECT_OLDEST_APPLIED: &str =
    include_str!("../../sql/query/select_oldest_applied_segment.sql");
const SELECT_HIGHEST_SEALED: &str = include_str!("../../sql/query/select_highest_sealed.sql");
const SELECT_SEGMENT_CHECKS: &str = include_str!("../../sql/query/select_segment_checks.sql");
const SELECT_APPLIED_SUM: &str = include_str!("../../sql/query/select_applied_sum.sql");
const CHANGE_APPLIED_SUM: &str = include_str!("../../sql/query/change_applied_sum.sql");
const ADD_UP_APPLIED: &str = include_str!("../../sql/query/add_up_applied.sql");
const COUNT_SEGMENTS_WITH_OTHER_IDS: &str =
    include_str!("../../sql/query/count_segments_with_other_ids.sql");
const SELECT_NUMBER_BOUNDS: &str = include_str!("../../sql/query/select_number_bounds.sql");
const LIST_NEWEST: &str = include_str!("../../sql/query/list_newest_segments.sql");
const LIST_NEWEST_REJECTED: &str = include_str!("../../sql/query/list_newest_rejected_lines.sql");
const COUNT_BY_STATE: &str = include_str!("../../sql/query/count_segments_by_state.sql");

/// The state of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// The server appends to it.
    Active,
    /// Nothing is appended any more; it is not fully applied yet.
    Sealed,
    /// Every byte is applied.
    Applied,
    /// The file was changed after a part of it was applied; the rest is not applied.
    Corrupt,
    /// The file disappeared before it was fully applied.
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

    /// The value of `segment.state` in the database.
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

/// A row of `rejected_line`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedLine {
    /// The identity of its segment, as in `segment.name`.
    pub segment: String,
    /// Bytes from the start of the file to the start of the line.
    pub offset: u64,
    /// The stable reason code, such as `negative` or `id_conflict`.
    pub code: String,
    /// The reason as text.
    pub reason: String,
    /// The first 1024 bytes of the line; invalid UTF-8 is replaced by U+FFFD.
    pub line: String,
}

/// Selects rejected lines. The default selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RejectedFilter {
    /// Only lines of native segments, at or after this position.
    pub since: Option<Position>,
    /// Only events whose id begins with this text.
    pub id_prefix: Option<String>,
}

/// The number of lines in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All lines except empty ones: the sum of the other three.
    pub lines: u64,
    /// Counted events.
    pub events: u64,
    /// Events with an id that was counted before.
    pub duplicates: u64,
    /// Invalid lines, id conflicts, and events that would overflow a total.
    pub rejected: u64,
}

impl Counts {
    /// Adds the counts of other lines.
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
    /// The identity of the segment.
    pub id: SegmentId,
    /// The primary key: the number of a native segment, negative for an imported file.
    pub key: i64,
    /// The tag of a native segment; `None` for an imported file.
    pub tag: Option<Tag>,
    /// The name of the file when it was last applied from or marked.
    pub file_name: String,
    /// The state of the segment.
    pub state: SegmentState,
    /// The applied offset: all bytes before it are applied.
    pub applied_bytes: u64,
    /// CRC-32 of the applied bytes.
    pub checksum: u32,
    /// The lines in the applied bytes.
    pub counts: Counts,
    /// The sum of the counted events' micros, modulo 2^64.
    pub net_check: i64,
    /// The number of counted events with an id.
    pub id_events: u64,
    /// The part of `net_check` that belongs to events with an id.
    pub id_net_check: i64,
    /// The number of ids of this segment that have expired.
    pub ids_expired: u64,
    /// Bytes that are not applied because the file is corrupt.
    pub corrupt_bytes: u64,
    /// The number of lines in `corrupt_bytes`.
    pub corrupt_lines: u64,
    /// Why the segment was marked as corrupt or missing; `None` if it never was.
    pub reason: Option<String>,
    /// When the segment was fully applied, in milliseconds since 1970 UTC; `None` if it is not.
    pub completed_at_ms: Option<i64>,
}

/// The sum over all pruned segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The highest pruned segment number; 0 if none.
    pub number: u64,
    /// The number of pruned segments.
    pub segments: u64,
    /// The sum of their counts.
    pub counts: Counts,
    /// The sum of their `net_check`, modulo 2^64.
    pub net_check: i64,
    /// The length of the file of segment `number` in bytes. The file may still exist.
    pub file_bytes: u64,
    /// CRC-32 of that file.
    pub file_checksum: u32,
}

/// The sum over the rows of fully applied segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppliedSum {
    /// The number of segments.
    pub segments: u64,
    /// The number of native segments among them.
    pub native: u64,
    /// The sum of their counts.
    pub counts: Counts,
    /// The sum of their `corrupt_lines`.
    pub corrupt_lines: u64,
}

impl AppliedSum {
    /// The sum over the fully applied segments among `rows`.
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

/// The fully applied segments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedSegments {
    /// The numbers of native segments.
    pub native: Numbers,
    /// The names of imported files.
    pub imported: HashSet<String>,
}

impl AppliedSegments {
    /// Whether the segment is fully applied.
    pub fn contains(&self, id: &SegmentId) -> bool {
        match id {
            SegmentId::Native(number) => self.native.contains(*number),
            SegmentId::Imported(name) => self.imported.contains(name),
        }
    }
}

/// Sums that must agree, read in one snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// The events and `net_check` of all segments, including pruned ones.
    pub segments: (u64, i64),
    /// The events and the net micros, modulo 2^64, of all users.
    pub totals: (u64, i64),
    /// The stored sums over all users.
    pub overall: Overall,
    /// The same sums, computed from the rows; without a time.
    pub overall_rows: Overall,
    /// The stored sum of applied segments.
    pub applied_sum: AppliedSum,
    /// The same sum, computed from the rows.
    pub applied_rows: AppliedSum,
}

impl Checks {
    /// Whether all sums agree.
    pub fn agree(&self) -> bool {
        self.segments == self.totals
            && self.overall.has_sums_of(&self.overall_rows)
            && self.applied_sum == self.applied_rows
    }
}

/// The rows of all segments; see [`read_kept`].
#[cfg(any(test, feature = "testing"))]
pub fn read_segments(path: &Path) -> Result<Vec<SegmentRow>, StoreError> {
    Ok(read_kept(path)?.0)
}

/// The rows of all segments, in key order, and the sum of the pruned ones. The database may be missing,
/// empty or in use. Waits at most half a second for a lock. A `-wal` left by an unclean shutdown is
/// kept: because of it, the next writer checks the sums.
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

/// The rows that recovery needs.
#[derive(Debug, Default)]
pub struct RecoveryRows {
    /// The rows of segments that are not fully applied, and those of the requested numbers.
    pub rows: Vec<SegmentRow>,
    /// The numbers of all other rows: fully applied segments.
    pub applied: Numbers,
    /// The sum of what retention pruned.
    pub pruned: Pruned,
}

/// Like [`read_kept`], but of the fully applied segments only the rows of `numbers` are returned.
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

/// The UUID of the data directory that a database belongs to; `None` if there is no database, or if it
/// has no UUID yet.
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
        "read the UUID of its data directory",
    ))
}

/// Reads the sums that must agree; `None` if there is no database. They differ if another program
/// changed the file, or if it is mixed from two copies.
pub fn read_checks(path: &Path) -> Result<Option<Checks>, StoreError> {
    let Some(connection) = open::open_reader(path)? else {
        return Ok(None);
    };
    checks(&connection)
        .map(Some)
        .map_err(StoreError::sqlite(path, "add up all totals"))
}

/// Whether the database is consistent: SQLite's integrity check passes, the sums agree, and each
/// segment has as many ids as its row says. Reads the whole database; nothing is checkpointed.
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
        Ok(ids && sums.agree())
    };
    read().map_err(StoreError::sqlite(path, "check it"))
}

/// Discards the `-wal` of a database whose file another program overwrote in place, because the `-wal`
/// belongs to the previous content. Retires all connections of this process.
pub fn discard_wal(path: &Path) {
    Family::of(path).discard_wal();
}

pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<SegmentRow>> {
    connection
        .prepare(SELECT_SEGMENTS)?
        .query_map([], read_row)?
        .collect()
}

/// At most `limit` segments: the active one, then the others by when they were first seen, newest first.
pub(super) fn newest(connection: &Connection, limit: u32) -> rusqlite::Result<Vec<SegmentRow>> {
    connection
        .prepare_cached(LIST_NEWEST)?
        .query_map([limit], read_row)?
        .collect()
}

/// At most `limit` rejected lines, newest first: those of the most recently applied segment, from its
/// end, then those of the one before.
pub(super) fn newest_rejected(
    connection: &Connection,
    limit: u32,
    filter: &RejectedFilter,
) -> rusqlite::Result<Vec<RejectedLine>> {
    let opened = filter.id_prefix.as_deref().map(|prefix| {
        let mut opened = format!("{{\"id\":{}", serde_json::Value::from(prefix));
        opened.pop(); // the closing quote
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

/// The number of segments in each state; states without a segment are left out.
pub(super) fn count_by_state(
    connection: &Connection,
) -> rusqlite::Result<Vec<(SegmentState, u64)>> {
    connection
        .prepare_cached(COUNT_BY_STATE)?
        .query_map([], |row| Ok((state(row.get(0)?, 0)?, row.get(1)?)))?
        .collect()
}

/// The rows of segments that are not fully applied.
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

/// The fully applied segments; `unfinished` are the other rows of the same snapshot.
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

/// The UUID of the data directory that the database belongs to; `None` if it has none yet.
pub(super) fn directory(connection: &Connection) -> rusqlite::Result<Option<Uuid>> {
    let text: Option<String> = connection.query_row(SELECT_DIRECTORY, [], |row| row.get(0))?;
    Ok(text.and_then(|text| text.parse().ok()))
}

/// The numbers of native segments that have a row.
pub(super) fn numbers(connection: &Connection) -> rusqlite::Result<Numbers> {
    numbers_in(&*connection.unchecked_transaction()?)
}

/// The same, in the caller's transaction. Reads all keys only if there are gaps between them.
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

/// The fully applied native segment with the lowest number.
pub(super) fn oldest_applied(connection: &Connection) -> rusqlite::Result<Option<SegmentRow>> {
    connection
        .prepare_cached(SELECT_OLDEST_APPLIED)?
        .query_row([], read_row)
        .optional()
}

/// The highest number of a native segment that is not active; 0 if there is none.
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

/// The stored sum of applied segments.
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

/// Adds a segment that became fully applied in this transaction to the stored sum.
pub(super) fn add_to_applied_sum(connection: &Connection, key: i64) -> rusqlite::Result<()> {
    change_applied_sum(connection, key, 1)
}

/// Subtracts a fully applied segment from the stored sum, before its row is deleted in this transaction.
pub(super) fn take_off_applied_sum(connection: &Connection, key: i64) -> rusqlite::Result<()> {
    change_applied_sum(connection, key, -1)
}

fn change_applied_sum(connection: &Connection, key: i64, sign: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(CHANGE_APPLIED_SUM)?
        .execute([key, sign])
        .map(|_| ())
}

/// The lines recorded in the database; the fields `pending` and `unaccounted` are 0.
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
    let mut segments = (0u64, 0i64);
    {
        let mut statement = snapshot.prepare(SELECT_SEGMENT_CHECKS)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            segments.0 += row.get::<_, u64>(0)?;
            segments.1 = segments.1.wrapping_add(row.get(1)?);
        }
    }
    let pruned = pruned(&snapshot)?;
    segments.0 += pruned.counts.events;
    segments.1 = segments.1.wrapping_add(pruned.net_check);
    let overall_rows = overall::of_rows(&snapshot)?;
    Ok(Checks {
        segments,
        totals: (overall_rows.events, overall_rows.net_check()),
        overall: overall::read(&snapshot)?,
        overall_rows,
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
