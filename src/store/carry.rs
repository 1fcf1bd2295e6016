//! Carries the effect of pruned segments over to a database that is built again.

use std::collections::HashSet;

use rusqlite::{Connection, TransactionBehavior, params};

use super::expiry::key_of;
use super::id_blocks::INSERT_ID_BLOCK;
use super::overall;
use super::retention::set_pruned;
use super::{Snapshot, SqliteWriter, StoreError};

const INSERT_EVENT_ID: &str = include_str!("../../sql/query/insert_event_id.sql");
const INSERT_CARRIED_TOTAL: &str = include_str!("../../sql/query/insert_carried_total.sql");

impl SqliteWriter {
    /// Carries the effect of pruned segments over to a new database: their sums, the part of each
    /// user's total that the kept files do not account for, and the ids counted in them. The new
    /// database must have no totals yet.
    pub fn carry(&mut self, snapshot: &Snapshot, now_ms: i64) -> Result<(), StoreError> {
        let doing = StoreError::sqlite(&self.path, "carry the sums of pruned segments over");
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&doing)?;
        let mut inserted = Ok(0);
        let mut carried = overall::Added::default();
        let mut users = 0;
        snapshot.differences(&mut |user, database, files| {
            let micros = database.micros.wrapping_sub(files.micros);
            let events = database.events - files.events;
            if inserted.is_ok() {
                carried.user(micros, events);
                users += 1;
                inserted = transaction
                    .prepare_cached(INSERT_CARRIED_TOTAL)
                    .and_then(|mut insert| insert.execute(params![user, micros, events, now_ms]));
            }
        })?;
        inserted
            .and_then(|_| carry_ids(&transaction, snapshot, &mut carried.ids))
            .and_then(|()| carry_blocks(&transaction, snapshot, &mut carried.ids))
            .and_then(|()| overall::add(&transaction, users, &carried, now_ms))
            .and_then(|_| set_pruned(&transaction, &snapshot.pruned, now_ms))
            .map_err(&doing)?;
        transaction.commit().map_err(&doing)
    }
}

/// Carries the rows of pruned segments, and adds their number to `carried`.
fn carry_ids(
    connection: &Connection,
    snapshot: &Snapshot,
    carried: &mut u64,
) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(INSERT_EVENT_ID)?;
    snapshot.ids_of_pruned(&mut |row| {
        let segment: i64 = row.get(0)?;
        let applied_at_s: i64 = row.get(1)?;
        let id: String = row.get(2)?;
        let (payload, offset): (i64, i64) = (row.get(3)?, row.get(4)?);
        let row = params![segment, applied_at_s, id, payload, offset];
        *carried += 1;
        insert.execute(row).map(|_| ())
    })
}

/// Carries the runs of pruned segments, and adds the number of their ids to `carried`; those of kept segments
/// are counted again from the files.
fn carry_blocks(
    connection: &Connection,
    snapshot: &Snapshot,
    carried: &mut u64,
) -> rusqlite::Result<()> {
    let kept: HashSet<i64> = snapshot.rows.iter().map(|row| row.key).collect();
    let mut insert = connection.prepare_cached(INSERT_ID_BLOCK)?;
    let mut bytes = Vec::new();
    snapshot.id_blocks(&mut |row, block| {
        block.retain(|run| !kept.contains(&run.segment));
        if block.is_empty() {
            return Ok(());
        }
        let ids = block.runs().iter().map(|run| u64::from(run.count));
        *carried += ids.sum::<u64>();
        bytes.clear();
        block.encode(&mut bytes);
        let (prefix, width, number) = key_of(row)?;
        let applied_at_s: i64 = row.get(4)?;
        let row = params![applied_at_s, prefix, width, number, bytes];
        insert.execute(row).map(|_| ())
    })
}
