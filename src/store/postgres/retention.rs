//! Retention on PostgreSQL: pruning the rows of segments.

use ::postgres::Client;
use ::postgres::types::Type;

use super::PostgresWriter;
use super::convert::{self, to_i64};
use super::statement::{RowsError, statement};
use crate::store::apply::End;
use crate::store::retention::Stamps;
use crate::store::{Pruned, SegmentRow, StoreError};

impl PostgresWriter {
    /// See [`Writer::restamp_segments`](crate::store::Writer::restamp_segments).
    pub fn restamp_segments(&mut self, stamps: &Stamps) -> Result<(), StoreError> {
        let node = self.node.number;
        self.write("replace implausible times of segments", |transaction| {
            transaction.execute_typed(
                statement!("restamp_segments"),
                &[
                    (&node, Type::INT4),
                    (&stamps.earliest_ms, Type::INT8),
                    (&stamps.latest_ms, Type::INT8),
                    (&stamps.now_ms, Type::INT8),
                ],
            )?;
            Ok(End::Commit(()))
        })
    }

    /// See [`Writer::prune`](crate::store::Writer::prune).
    pub fn prune(&mut self, row: &SegmentRow, now_ms: i64) -> Result<bool, StoreError> {
        let node = self.node.number;
        self.write("prune a segment", |transaction| {
            transaction.execute_typed(
                statement!("subtract_applied_segment"),
                &[(&node, Type::INT4), (&row.key, Type::INT8)],
            )?;
            let deleted = transaction.execute_typed(
                statement!("delete_applied_segment"),
                &[
                    (&node, Type::INT4),
                    (&row.key, Type::INT8),
                    (&to_i64(row.applied_bytes), Type::INT8),
                    (&i64::from(row.checksum), Type::INT8),
                ],
            )?;
            if deleted != 1 {
                return Ok(End::RollBack(false));
            }
            transaction.execute_typed(
                statement!("delete_rejected_lines"),
                &[(&node, Type::INT4), (&row.id.to_string(), Type::TEXT)],
            )?;
            let found =
                transaction.query_typed_opt(statement!("select_pruned"), &[(&node, Type::INT4)])?;
            let mut pruned = convert::pruned(found.as_ref()).map_err(RowsError::from)?;
            pruned.add(row);
            set_pruned(transaction, node, &pruned, now_ms)?;
            Ok(End::Commit(true))
        })
    }
}

fn set_pruned(
    transaction: &mut Client,
    node: i32,
    pruned: &Pruned,
    now_ms: i64,
) -> Result<(), ::postgres::Error> {
    let counts = &pruned.counts;
    transaction
        .execute_typed(
            statement!("set_pruned"),
            &[
                (&node, Type::INT4),
                (&to_i64(pruned.number), Type::INT8),
                (&to_i64(pruned.segments), Type::INT8),
                (&to_i64(counts.lines), Type::INT8),
                (&to_i64(counts.events), Type::INT8),
                (&to_i64(counts.duplicates), Type::INT8),
                (&to_i64(counts.rejected), Type::INT8),
                (&pruned.net_check, Type::INT8),
                (&to_i64(pruned.file_bytes), Type::INT8),
                (&i64::from(pruned.file_checksum), Type::INT8),
                (&now_ms, Type::INT8),
            ],
        )
        .map(|_| ())
}
