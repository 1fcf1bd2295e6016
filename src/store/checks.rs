//! Sums that must agree in a database that no other program changed.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::Connection;

use super::open;
use super::overall::{self, IdCount, Overall};
use super::recovery::open_without_checkpoint;
use super::segments::{applied_sum, pruned, read_applied_sum};
use super::snapshot::{count_blocks, each_row};
use super::{AppliedSum, StoreError};

const SELECT_SEGMENT_CHECKS: &str = include_str!("../../sql/query/select_segment_checks.sql");
const ADD_UP_APPLIED: &str = include_str!("../../sql/query/add_up_applied.sql");
const COUNT_EVENT_IDS: &str = include_str!("../../sql/query/count_event_ids.sql");
const SELECT_ID_COUNTS: &str = include_str!("../../sql/query/select_id_counts.sql");

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
    /// The number of ids. In PostgreSQL 0 and 0: its files are not copied one by one.
    pub ids: IdCount,
}

impl Checks {
    /// Whether all sums agree.
    pub fn agree(&self) -> bool {
        self.segments == self.totals
            && self.overall.has_sums_of(&self.overall_rows)
            && self.applied_sum == self.applied_rows
            && self.ids.agrees()
    }
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
    let Some(connection) = open_without_checkpoint(path)? else {
        return Ok(false);
    };
    let read = || -> rusqlite::Result<bool> {
        let fault: String =
            connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        Ok(fault == "ok" && checks(&connection)?.agree() && ids_agree(&connection)?)
    };
    read().map_err(StoreError::sqlite(path, "check it"))
}

/// Whether both tables of ids hold as many ids of each segment as its row says.
fn ids_agree(connection: &Connection) -> rusqlite::Result<bool> {
    let (mut applied, mut expected) = (HashMap::new(), HashMap::new());
    each_row(connection, SELECT_ID_COUNTS, &mut |row| {
        let key: i64 = row.get(0)?;
        applied.insert(key, row.get(1)?);
        expected.insert(key, row.get::<_, u64>(2)?);
        Ok(())
    })?;
    let blocks = count_blocks(connection, &applied)?;
    let mut found = blocks.by_segment;
    each_row(connection, COUNT_EVENT_IDS, &mut |row| {
        *found.entry(row.get(0)?).or_default() += row.get::<_, u64>(1)?;
        Ok(())
    })?;
    let agree = |(key, ids): (&i64, &u64)| found.get(key).copied().unwrap_or_default() == *ids;
    Ok(blocks.fault_count == 0 && expected.iter().all(agree))
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
    let blocks = count_blocks(&snapshot, &HashMap::new())?;
    Ok(Checks {
        segments,
        totals: (overall_rows.events, overall_rows.net_check()),
        overall: overall::read(&snapshot)?,
        overall_rows,
        applied_sum: applied_sum(&snapshot)?,
        applied_rows: snapshot.query_row(ADD_UP_APPLIED, [], read_applied_sum)?,
        ids: IdCount::read(&snapshot, blocks.ids())?,
    })
}
