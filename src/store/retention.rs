//! Retention: pruning the rows of segments, and the trusted time. Ids expire in [`expiry`](super::expiry).
//!
//! The methods belong to the [`SqliteWriter`] and run on its thread. Totals never change: the sums of a
//! pruned segment move to the `pruned` row in the transaction that deletes the segment's row, so the
//! rows plus `pruned` always equal the totals.

use rusqlite::{Connection, TransactionBehavior, params};

use super::{Pruned, SegmentRow, SqliteWriter, StoreError, segments};

const SELECT_CLOCK: &str = include_str!("../../sql/query/select_clock.sql");
const SET_CLOCK: &str = include_str!("../../sql/query/set_clock.sql");
const RESTAMP_SEGMENTS: &str = include_str!("../../sql/query/restamp_segments.sql");
const DELETE_APPLIED_SEGMENT: &str = include_str!("../../sql/query/delete_applied_segment.sql");
const DELETE_REJECTED: &str = include_str!("../../sql/query/delete_rejected_lines.sql");
const SET_PRUNED: &str = include_str!("../../sql/query/set_pruned.sql");

/// The plausible range of stored times, and the time that replaces others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    /// Now, milliseconds since 1970 UTC.
    pub now_ms: i64,
    /// The earliest plausible time, milliseconds since 1970 UTC.
    pub earliest_ms: i64,
    /// The latest plausible time, milliseconds since 1970 UTC.
    pub latest_ms: i64,
}

impl Stamps {
    /// Whether the time is plausible.
    pub fn can_be(&self, at_ms: i64) -> bool {
        (self.earliest_ms..=self.latest_ms).contains(&at_ms)
    }
}

impl SqliteWriter {
    /// The last trusted time, milliseconds since 1970 UTC; `None` if none was stored.
    pub fn clock(&self) -> Result<Option<i64>, StoreError> {
        self.connection
            .query_row(SELECT_CLOCK, [], |row| row.get(0))
            .map_err(self.reading())
    }

    /// Stores a trusted time.
    pub fn set_clock(&mut self, at_ms: i64) -> Result<(), StoreError> {
        self.connection
            .execute(SET_CLOCK, [at_ms])
            .map(|_| ())
            .map_err(StoreError::sqlite(&self.path, "store the time"))
    }

    /// Replaces implausible times of fully applied segments by the current time.
    pub fn restamp_segments(&mut self, stamps: &Stamps) -> Result<(), StoreError> {
        let Stamps {
            now_ms,
            earliest_ms,
            latest_ms,
        } = stamps;
        self.connection
            .execute(RESTAMP_SEGMENTS, [earliest_ms, latest_ms, now_ms])
            .map(|_| ())
            .map_err(StoreError::sqlite(
                &self.path,
                "replace implausible times of segments",
            ))
    }

    /// The fully applied native segment with the lowest number.
    pub fn oldest_applied(&self) -> Result<Option<SegmentRow>, StoreError> {
        segments::oldest_applied(&self.connection).map_err(self.reading())
    }

    /// The highest number of a sealed native segment; 0 if there is none.
    pub fn highest_sealed(&self) -> Result<u64, StoreError> {
        segments::highest_sealed(&self.connection).map_err(self.reading())
    }

    /// Adds a fully applied segment's sums to the `pruned` row and deletes the segment's row, in one
    /// transaction. Returns false, and changes nothing, if the row is no longer `row`. The caller
    /// deletes the file afterwards.
    pub fn prune(&mut self, row: &SegmentRow, now_ms: i64) -> Result<bool, StoreError> {
        let doing = StoreError::sqlite(&self.path, "prune a segment");
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&doing)?;
        let sql = |transaction: &Connection| -> rusqlite::Result<bool> {
            segments::take_off_applied_sum(transaction, row.key)?;
            let deleted = transaction
                .prepare_cached(DELETE_APPLIED_SEGMENT)?
                .execute(params![row.key, row.applied_bytes, row.checksum])?;
            if deleted != 1 {
                return Ok(false);
            }
            transaction
                .prepare_cached(DELETE_REJECTED)?
                .execute([row.id.to_string()])?;
            let mut pruned = segments::pruned(transaction)?;
            pruned.add(row);
            set_pruned(transaction, &pruned, now_ms)?;
            Ok(true)
        };
        let pruned = sql(&transaction).map_err(&doing)?;
        if pruned {
            transaction.commit().map_err(&doing)?;
        } else {
            transaction.rollback().map_err(&doing)?;
        }
        Ok(pruned)
    }
}

/// Stores the sums of the pruned segments.
pub(super) fn set_pruned(
    connection: &Connection,
    pruned: &Pruned,
    now_ms: i64,
) -> rusqlite::Result<()> {
    let counts = &pruned.counts;
    connection
        .prepare_cached(SET_PRUNED)?
        .execute(params![
            pruned.number,
            pruned.segments,
            counts.lines,
            counts.events,
            counts.duplicates,
            counts.rejected,
            pruned.net_check,
            pruned.file_bytes,
            pruned.file_checksum,
            now_ms,
        ])
        .map(|_| ())
}
