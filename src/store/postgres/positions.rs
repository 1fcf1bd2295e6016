//! How far the positions of nodes are applied.

use ::postgres::Row;
use ::postgres::types::Type;
use uuid::Uuid;

use super::PostgresReaders;
use super::convert::{self, Malformed, to_i64};
use super::statement::statement;
use crate::data_dir::segment::Position;
use crate::store::{NodeProgress, SegmentState, StoreError};

impl PostgresReaders {
    /// See [`Readers::progress_of`](crate::store::Readers::progress_of).
    pub fn progress_of(
        &self,
        positions: &[(Uuid, Position)],
    ) -> Result<Vec<NodeProgress>, StoreError> {
        let nodes: Vec<Uuid> = positions.iter().map(|&(node, _)| node).collect();
        let segments: Vec<i64> = positions
            .iter()
            .map(|(_, position)| to_i64(position.segment))
            .collect();
        let sql = statement!("select_node_positions");
        let found = self.read("read the progress of other nodes", |client| {
            let rows = client.query_typed(
                sql,
                &[(&nodes, Type::UUID_ARRAY), (&segments, Type::INT8_ARRAY)],
            )?;
            let found = rows.iter().zip(positions);
            let found = found.map(|(row, (_, position))| Ok(progress(row, position.offset)?));
            found.collect::<Result<Vec<_>, _>>()
        })?;
        if found.len() == positions.len() {
            return Ok(found);
        }
        // The database has no tables.
        Ok(vec![NodeProgress::Unknown; positions.len()])
    }
}

fn progress(row: &Row, offset: u64) -> Result<NodeProgress, Malformed> {
    let Some(node) = convert::get::<Option<&str>>(row, 0)? else {
        return Ok(NodeProgress::Unknown);
    };
    let later = match node {
        "removed" => NodeProgress::Gone,
        _ => NodeProgress::Pending,
    };
    let state = convert::get::<Option<&str>>(row, 2)?;
    let (Some(state), Some(applied)) = (state, convert::get_opt_u64(row, 3)?) else {
        let is_pruned = convert::get(row, 1)?;
        return Ok(if is_pruned {
            NodeProgress::Applied
        } else {
            later
        });
    };
    if offset <= applied {
        let is_behind = convert::get(row, 4)?;
        return Ok(if is_behind {
            later
        } else {
            NodeProgress::Applied
        });
    }
    Ok(match convert::state(state, 2)? {
        SegmentState::Applied => NodeProgress::PastEnd,
        SegmentState::Corrupt | SegmentState::Missing => NodeProgress::Gone,
        SegmentState::Active | SegmentState::Sealed => later,
    })
}
