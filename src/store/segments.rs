//! The table `segment`: the applied offset and the state of each segment, and the sums over them.
//!
//! Each function runs on the connection that it is given. All of them only read, except those that maintain
//! the sum of applied segments inside the writer's transaction.

use std::collections::HashSet;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row};
use uuid::Uuid;

use super::{AppliedSegments, AppliedSum, Counts, Ledger, Pruned, SegmentRow, SegmentState};
use crate::data_dir::segment::{Numbers, SegmentId, Tag};

/// A statement that begins with the columns of a [`SegmentRow`].
macro_rules! of_segments {
    ($clauses:literal) => {
        concat!(
            include_str!("../../sql/query/segment_columns.sql"),
            include_str!(concat!("../../sql/query/", $clauses))
        )
    };
}

const SELECT_SEGMENT: &str = of_segments!("select_segment.sql");
const SELECT_SEGMENTS: &str = of_segments!("select_segments.sql");
const SELECT_UNFINISHED: &str = of_segments!("select_unfinished_segments.sql");
const SELECT_APPLIED_IMPORTS: &str = include_str!("../../sql/query/select_applied_imports.sql");
const SELECT_DIRECTORY: &str = include_str!("../../sql/query/select_directory.sql");
const SELECT_NUMBERS: &str = include_str!("../../sql/query/select_numbers.sql");
const SELECT_PRUNED: &str = include_str!("../../sql/query/select_pruned.sql");
const SELECT_LEDGER: &str = include_str!("../../sql/query/select_ledger.sql");
const SELECT_OLDEST_APPLIED: &str = of_segments!("select_oldest_applied_segment.sql");
const SELECT_HIGHEST_SEALED: &str = include_str!("../../sql/query/select_highest_sealed.sql");
const SELECT_APPLIED_SUM: &str = include_str!("../../sql/query/select_applied_sum.sql");
const CHANGE_APPLIED_SUM: &str = include_str!("../../sql/query/change_applied_sum.sql");
const COUNT_APPLIED: &str = include_str!("../../sql/query/count_applied_segments.sql");
const SELECT_NUMBER_BOUNDS: &str = include_str!("../../sql/query/select_number_bounds.sql");
const LIST_NEWEST: &str = of_segments!("list_newest_segments.sql");
const COUNT_BY_STATE: &str = include_str!("../../sql/query/count_segments_by_state.sql");

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

/// The number of segments in each state; states without a segment are left out.
pub(super) fn count_by_state(
    connection: &Connection,
) -> rusqlite::Result<Vec<(SegmentState, u64)>> {
    connection
        .prepare_cached(COUNT_BY_STATE)?
        .query_map([], |row| Ok((state(row, 0)?, row.get(1)?)))?
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

/// The numbers of native segments if they have no gap, without reading their rows.
fn contiguous_numbers(
    snapshot: &Connection,
) -> rusqlite::Result<Option<std::ops::RangeInclusive<u64>>> {
    let read = |row: &Row<'_>| -> rusqlite::Result<(u64, u64, u64)> {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    };
    let mut bounds = snapshot.prepare_cached(SELECT_NUMBER_BOUNDS)?;
    let (first, last, count) = bounds.query_row([], read)?;
    Ok((count > 0 && last - first + 1 == count).then_some(first..=last))
}

/// The stored number of fully applied segments and that of their rows, if there are fewer. The rows of
/// native segments are counted only if there are gaps between their numbers: files are applied by
/// number, so a row that is missing between two others is not applied again.
pub(super) fn missing_rows(connection: &Connection) -> rusqlite::Result<Option<(u64, u64)>> {
    let snapshot = connection.unchecked_transaction()?;
    let count = |first: i64, last: i64| {
        let mut count = snapshot.prepare_cached(COUNT_APPLIED)?;
        count.query_row([first, last], |row| row.get::<_, u64>(0))
    };
    let sum = applied_sum(&snapshot)?;
    let native = match contiguous_numbers(&snapshot)? {
        Some(_) => sum.native,
        None => count(1, i64::MAX)?,
    };
    let found = native + count(i64::MIN, 0)?;
    Ok((found < sum.segments).then_some((sum.segments, found)))
}

/// The same, in the caller's transaction. Reads all keys only if there are gaps between them.
pub(super) fn numbers_in(snapshot: &Connection) -> rusqlite::Result<Numbers> {
    let mut numbers = Numbers::default();
    if let Some(range) = contiguous_numbers(snapshot)? {
        numbers.insert_range(range);
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
            counts: counts(row, 2)?,
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

pub(super) fn read_applied_sum(row: &Row<'_>) -> rusqlite::Result<AppliedSum> {
    Ok(AppliedSum {
        segments: row.get(0)?,
        native: row.get(1)?,
        counts: counts(row, 2)?,
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

fn malformed(column: usize, text: String) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnType(column, text, Type::Text)
}

fn state(row: &Row<'_>, column: usize) -> rusqlite::Result<SegmentState> {
    let name: String = row.get(column)?;
    SegmentState::of_name(&name).ok_or_else(|| malformed(column, name))
}

fn tag(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Tag>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| text.parse().map_err(|_| malformed(column, text)))
        .transpose()
}

/// The counts in four columns from this one on.
fn counts(row: &Row<'_>, first: usize) -> rusqlite::Result<Counts> {
    Ok(Counts {
        lines: row.get(first)?,
        events: row.get(first + 1)?,
        duplicates: row.get(first + 2)?,
        rejected: row.get(first + 3)?,
    })
}

/// Reads a row with the columns of `segment_columns.sql`, in their order.
fn read_row(row: &Row<'_>) -> rusqlite::Result<SegmentRow> {
    let key: i64 = row.get(0)?;
    let id = match u64::try_from(key) {
        Ok(number) => SegmentId::Native(number),
        Err(_) => SegmentId::Imported(row.get(1)?),
    };
    Ok(SegmentRow {
        id,
        key,
        file_name: row.get(2)?,
        state: state(row, 3)?,
        applied_bytes: row.get(4)?,
        checksum: row.get(5)?,
        counts: counts(row, 6)?,
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
