//! Letting go: the rows of pruned segments, ids past their time, and what a new database is given
//! of an old one. Parts of the one writer.
//!
//! What is let go stays in the totals: the sums of a pruned segment move to the `pruned` row in the
//! transaction that deletes its own, so that rows and `pruned` always add up to the totals.

use std::collections::BTreeMap;

use rusqlite::{Connection, TransactionBehavior, params};

use super::segments::{self, SegmentRow};
use super::{Proof, Pruned, StoreError, Writer};

const DELETE_WHOLE_SEGMENT: &str = include_str!("../../sql/query/delete_whole_segment.sql");
const DELETE_REJECTED: &str = include_str!("../../sql/query/delete_rejected_lines.sql");
const SET_PRUNED: &str = include_str!("../../sql/query/set_pruned.sql");
const SELECT_IDS_AFTER: &str = include_str!("../../sql/query/select_ids_after.sql");
const DELETE_EVENT_ID: &str = include_str!("../../sql/query/delete_event_id.sql");
const ADD_IDS_LET_GO: &str = include_str!("../../sql/query/add_ids_let_go.sql");
const INSERT_EVENT_ID: &str = include_str!("../../sql/query/insert_event_id.sql");
const INSERT_CARRIED_TOTAL: &str = include_str!("../../sql/query/insert_carried_total.sql");

/// How far a walk over the table of ids has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdsWalk {
    /// The walk goes on after this id; empty: at the beginning.
    pub after: String,
    /// Ids let go by the last step.
    pub let_go: u64,
}

impl Writer {
    /// The whole segment of ours with the lowest number.
    pub fn oldest_whole(&self) -> Result<Option<SegmentRow>, StoreError> {
        segments::oldest_whole(&self.connection).map_err(self.reading())
    }

    /// The highest number of ours that is no longer appended to; 0 if there is none.
    pub fn highest_sealed(&self) -> Result<u64, StoreError> {
        segments::highest_sealed(&self.connection).map_err(self.reading())
    }

    /// Moves a whole segment's sums to the `pruned` row and deletes its own, in one transaction;
    /// whether the row still was what was seen. The file is the caller's to remove afterwards.
    pub fn prune(&mut self, row: &SegmentRow, now_ms: i64) -> Result<bool, StoreError> {
        let doing = StoreError::sqlite(&self.path, "let a segment go");
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&doing)?;
        let sql = |transaction: &Connection| -> rusqlite::Result<bool> {
            let deleted = transaction
                .prepare_cached(DELETE_WHOLE_SEGMENT)?
                .execute(params![row.key, row.applied_bytes, row.checksum])?;
            if deleted != 1 {
                return Ok(false);
            }
            transaction
                .prepare_cached(DELETE_REJECTED)?
                .execute([row.id.to_string()])?;
            let mut pruned = segments::pruned(transaction)?;
            pruned.number = row.id.number().unwrap_or_default().max(pruned.number);
            pruned.segments += 1;
            pruned.counts.add(&row.counts);
            pruned.net_check = pruned.net_check.wrapping_add(row.net_check);
            pruned.file_bytes = row.applied_bytes;
            pruned.file_checksum = row.checksum;
            set_pruned(transaction, &pruned, now_ms)?;
            Ok(true)
        };
        let pruned = sql(&transaction).map_err(&doing)?;
        transaction.commit().map_err(&doing)?;
        Ok(pruned)
    }

    /// One step of a walk over all ids: looks at up to `count` of them and lets go those applied
    /// before `before_s` (seconds since 1970 UTC). At the end the walk starts over. Only a step
    /// that finds some is a transaction.
    pub fn let_ids_go(
        &mut self,
        walk: &IdsWalk,
        before_s: i64,
        count: u32,
    ) -> Result<IdsWalk, StoreError> {
        let doing = StoreError::sqlite(&self.path, "let ids go");
        let (seen, old) =
            ids_after(&self.connection, &walk.after, before_s, count).map_err(&doing)?;
        let after = seen.unwrap_or_default();
        if old.is_empty() {
            return Ok(IdsWalk { after, let_go: 0 });
        }
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&doing)?;
        let let_go = delete_ids(&transaction, &old).map_err(&doing)?;
        transaction.commit().map_err(&doing)?;
        Ok(IdsWalk { after, let_go })
    }

    /// Gives a new database what a proof says of segments that retention let go: their sums, of
    /// each user's total what the kept files don't come to, and the ids that counted in them, which
    /// go on guarding. The database must have no totals yet.
    pub fn carry(&mut self, proof: &Proof, now_ms: i64) -> Result<(), StoreError> {
        let doing = StoreError::sqlite(&self.path, "carry the sums of pruned segments over");
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&doing)?;
        let mut inserted = Ok(0);
        proof.differences(&mut |user, database, files| {
            let micros = database.micros.wrapping_sub(files.micros);
            let events = database.events - files.events;
            if inserted.is_ok() {
                inserted = transaction
                    .prepare_cached(INSERT_CARRIED_TOTAL)
                    .and_then(|mut insert| insert.execute(params![user, micros, events, now_ms]));
            }
        })?;
        inserted
            .and_then(|_| carry_ids(&transaction, proof))
            .and_then(|()| set_pruned(&transaction, &proof.pruned, now_ms))
            .map_err(&doing)?;
        transaction.commit().map_err(&doing)
    }
}

fn carry_ids(connection: &Connection, proof: &Proof) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(INSERT_EVENT_ID)?;
    proof.ids_of_pruned(&mut |row| {
        let segment: i64 = row.get(0)?;
        let applied_at_s: i64 = row.get(1)?;
        let id: String = row.get(2)?;
        let (payload, offset): (i64, i64) = (row.get(3)?, row.get(4)?);
        let row = params![segment, applied_at_s, id, payload, offset];
        insert.execute(row).map(|_| ())
    })
}

fn set_pruned(connection: &Connection, pruned: &Pruned, now_ms: i64) -> rusqlite::Result<()> {
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

/// The last id looked at, unless that was the end of the table, and (id, segment key) of old ones.
type Looked = (Option<String>, Vec<(String, i64)>);

fn ids_after(
    connection: &Connection,
    after: &str,
    before_s: i64,
    count: u32,
) -> rusqlite::Result<Looked> {
    let mut select = connection.prepare_cached(SELECT_IDS_AFTER)?;
    let mut rows = select.query(params![after, count])?;
    let (mut last, mut seen, mut old) = (None, 0, Vec::new());
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        if row.get::<_, i64>(2)? < before_s {
            old.push((id.clone(), row.get(1)?));
        }
        last = Some(id);
        seen += 1;
    }
    Ok((last.filter(|_| seen == count), old))
}

fn delete_ids(connection: &Connection, ids: &[(String, i64)]) -> rusqlite::Result<u64> {
    let mut delete = connection.prepare_cached(DELETE_EVENT_ID)?;
    let mut by_segment = BTreeMap::<i64, u64>::new();
    for (id, segment) in ids {
        delete.execute([id])?;
        *by_segment.entry(*segment).or_default() += 1;
    }
    let mut note = connection.prepare_cached(ADD_IDS_LET_GO)?;
    for (segment, count) in by_segment {
        // A pruned segment has no row to note it in.
        note.execute(params![segment, count])?;
    }
    Ok(ids.len() as u64)
}
