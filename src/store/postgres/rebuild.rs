//! Rebuild of a node: its rows are deleted and its files applied again, in one transaction.
//!
//! Other nodes never see an id that is free in between: they wait for the transaction before they count, because it
//! has locked the tables of segments and ids.
//! What is kept: the sums of pruned segments, the part of each total that belongs to them, and the ids that were
//! counted in them.
//!
//! An id that cannot be claimed again, because its file is missing or was changed, may have been a duplicate at
//! another node. All segments of other nodes that have duplicates are then marked for a recount, which `verify`
//! of these nodes reports until they are rebuilt, too.

use std::collections::{HashMap, HashSet};

use ::postgres::Client;
use ::postgres::error::SqlState;
use ::postgres::types::Type;

use super::convert::{self, to_i64};
use super::rows;
use super::segments::segment_rows;
use super::statement::{Param, RowsError, TOGETHER, of_segments, statement};
use super::writer::Nesting;
use super::{Node, PostgresWriter};
use crate::store::apply::End;
use crate::store::id_blocks::Block;
use crate::store::overall::Added;
use crate::store::{SegmentRow, SegmentState, Snapshot, StoreError};

impl PostgresWriter {
    /// Begins the transaction, and deletes the rows of the node except those of pruned segments. `carried` has
    /// the totals that the kept files do not account for. All later writes belong to the transaction.
    pub fn begin_rebuild(
        &mut self,
        carried: Option<&Snapshot>,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let doing = "begin a rebuild";
        let begin = Nesting::Transaction.begin();
        let failed = self.target.failed(doing);
        let client = self.client.get_mut();
        client.batch_execute(&begin).map_err(&failed)?;
        client
            .batch_execute(statement!("set_rebuild_limits"))
            .map_err(failed)?;
        self.nesting = Nesting::Savepoint;
        let mut totals = Vec::new();
        if let Some(carried) = carried {
            carried.differences(&mut |user, database, files| {
                let micros = database.micros.wrapping_sub(files.micros);
                totals.push((user.to_owned(), micros, database.events - files.events));
            })?;
        }
        let node = self.node.number;
        self.write(doing, |client| {
            lock_tables(client)?;
            free_blocks(client, node)?;
            for sql in [
                statement!("delete_ids_of_node"),
                statement!("delete_rejected_lines_of_node"),
                statement!("delete_totals_of_node"),
                statement!("delete_overall_of_node"),
                statement!("delete_applied_sum_of_node"),
                statement!("delete_segments_of_node"),
            ] {
                client.execute_typed(sql, &[(&node, Type::INT4)])?;
            }
            for totals in totals.chunks(TOGETHER) {
                let users: Vec<&str> = totals.iter().map(|(user, ..)| user.as_str()).collect();
                let micros: Vec<i64> = totals.iter().map(|&(_, micros, _)| micros).collect();
                let events: Vec<i64> = totals.iter().map(|&(.., events)| events).collect();
                client.execute_typed(
                    statement!("insert_carried_totals"),
                    &[
                        (&node, Type::INT4),
                        (&now_ms, Type::INT8),
                        (&users, Type::TEXT_ARRAY),
                        (&micros, Type::INT8_ARRAY),
                        (&events, Type::INT8_ARRAY),
                    ],
                )?;
            }
            let mut added = Added::default();
            for &(_, micros, events) in &totals {
                added.user(micros, events);
            }
            rows::add_overall(client, node, totals.len() as u64, &added, now_ms)?;
            Ok(End::Commit(()))
        })
    }

    /// Commits the transaction. `before` are the rows before it. Returns how many ids were released because
    /// their events are no longer in the files; other nodes are then marked for a recount.
    pub fn commit_rebuild(&mut self, before: &[SegmentRow]) -> Result<u64, StoreError> {
        let sql = of_segments!("select_segments");
        let rows = self.read(sql, &[], segment_rows)?;
        let after: HashMap<_, _> = rows.iter().map(|row| (&row.id, row.id_events)).collect();
        let released = before.iter().map(|row| {
            let held = row.id_events.saturating_sub(row.ids_expired);
            match after.get(&row.id) {
                // The ids of another content are others.
                Some(_) if row.state == SegmentState::Corrupt => held,
                Some(events) => held.saturating_sub(*events),
                None => held,
            }
        });
        let released = released.sum();
        let node = self.node.number;
        if released > 0 {
            self.write("mark segments of other nodes for a recount", |client| {
                client.execute_typed(statement!("mark_for_recount"), &[(&node, Type::INT4)])?;
                Ok(End::Commit(()))
            })?;
        }
        let failed = self.target.failed("commit a rebuild");
        let client = self.client.get_mut();
        client
            .batch_execute(Nesting::Transaction.commit())
            .map_err(failed)?;
        self.nesting = Nesting::Transaction;
        Ok(released)
    }
}

/// Locks the tables whose rows of other nodes a rebuild may need. Not every compatible engine has such locks; without
/// them, a deadlock is repeated.
fn lock_tables(client: &mut Client) -> Result<(), RowsError> {
    client.batch_execute("SAVEPOINT tables")?;
    let locked = client.batch_execute(statement!("lock_tables_for_rebuild"));
    let unsupported = [SqlState::SYNTAX_ERROR, SqlState::FEATURE_NOT_SUPPORTED];
    match locked {
        Err(error) if error.code().is_some_and(|code| unsupported.contains(code)) => {
            client.batch_execute("ROLLBACK TO SAVEPOINT tables")?;
        }
        locked => locked?,
    }
    Ok(client.batch_execute("RELEASE SAVEPOINT tables")?)
}

/// Removes the runs of the node's segments from the blocks, except those of pruned segments.
fn free_blocks(client: &mut Client, node: i32) -> Result<(), RowsError> {
    let rows = client.query_typed(of_segments!("select_segments"), &[(&node, Type::INT4)])?;
    let mut kept = HashSet::new();
    for row in &rows {
        kept.insert(Node::place(node, convert::segment_row(row)?.key));
    }
    let mut after: (String, i16, i64) = (String::new(), 0, 0);
    let mut block = Block::default();
    loop {
        let rows = client.query_typed(
            statement!("lock_id_blocks_after"),
            &[
                (&after.0, Type::TEXT),
                (&after.1, Type::INT2),
                (&after.2, Type::INT8),
                (&to_i64(TOGETHER as u64), Type::INT8),
            ],
        )?;
        let (mut prefixes, mut widths, mut blocks, mut numbers) = (
            Vec::<&str>::new(),
            Vec::<i16>::new(),
            Vec::<i64>::new(),
            Vec::new(),
        );
        for row in &rows {
            block
                .decode(row.try_get(0)?)
                .map_err(convert::Malformed::from)?;
            let runs = block.runs().len();
            block.retain(|run| !kept.contains(&run.segment));
            if block.runs().len() == runs {
                continue;
            }
            let mut bytes = Vec::new();
            if !block.is_empty() {
                block.encode(&mut bytes);
            }
            prefixes.push(row.try_get(1)?);
            widths.push(row.try_get(2)?);
            blocks.push(row.try_get(3)?);
            numbers.push(bytes);
        }
        let params: [Param<'_>; 4] = [
            (&prefixes, Type::TEXT_ARRAY),
            (&widths, Type::INT2_ARRAY),
            (&blocks, Type::INT8_ARRAY),
            (&numbers, Type::BYTEA_ARRAY),
        ];
        client.execute_typed(statement!("set_id_blocks"), &params)?;
        client.execute_typed(statement!("delete_empty_id_blocks"), &params[..3])?;
        let Some(last) = rows.last() else {
            return Ok(());
        };
        after = (last.try_get(1)?, last.try_get(2)?, last.try_get(3)?);
    }
}
