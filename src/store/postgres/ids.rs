//! Rows of ids and of blocks of ids, in a transaction of the node.

use std::collections::HashMap;

use ::postgres::types::Type;
use ::postgres::{Client, Row};

use super::Node;
use super::convert::{self, Malformed, to_i64};
use super::statement::{Param, RowsError, statement};
use crate::store::IdEvent;
use crate::store::apply::ids::IdRow;
use crate::store::id_blocks::{Block, BlockKey};

/// The columns of blocks.
#[derive(Default)]
pub(super) struct BlockColumns<'w> {
    prefixes: Vec<&'w str>,
    widths: Vec<i16>,
    blocks: Vec<i64>,
}

impl<'w> BlockColumns<'w> {
    pub(super) fn of(keys: impl Iterator<Item = BlockKey<'w>>) -> Self {
        let mut columns = Self::default();
        for key in keys {
            columns.prefixes.push(key.prefix);
            columns.widths.push(i16::from(key.width));
            columns.blocks.push(key.block);
        }
        columns
    }

    pub(super) fn params(&self) -> [Param<'_>; 3] {
        [
            (&self.prefixes, Type::TEXT_ARRAY),
            (&self.widths, Type::INT2_ARRAY),
            (&self.blocks, Type::INT8_ARRAY),
        ]
    }
}

/// Inserts the ids that are in no row, and returns how many these are. The events are sorted by id; each has the
/// key of its segment.
pub(super) fn insert_ids<'a>(
    transaction: &mut Client,
    node: i32,
    now_s: i64,
    events: impl Iterator<Item = (&'a IdEvent<'a>, i64)>,
) -> Result<usize, RowsError> {
    let (mut ids, mut payloads) = (Vec::new(), Vec::new());
    let (mut segments, mut offsets) = (Vec::new(), Vec::new());
    for (event, segment) in events {
        ids.push(event.id);
        payloads.push(event.payload());
        segments.push(segment);
        offsets.push(to_i64(event.offset));
    }
    let inserted = transaction.execute_typed(
        statement!("insert_event_ids"),
        &[
            (&node, Type::INT4),
            (&now_s, Type::INT8),
            (&ids, Type::TEXT_ARRAY),
            (&payloads, Type::INT8_ARRAY),
            (&segments, Type::INT8_ARRAY),
            (&offsets, Type::INT8_ARRAY),
        ],
    )?;
    Ok(usize::try_from(inserted).unwrap_or(usize::MAX))
}

/// Inserts the blocks that are not in the table, with these numbers, and locks the others. Returns the keys of
/// those that were inserted.
pub(super) fn insert_blocks(
    transaction: &mut Client,
    now_s: i64,
    columns: &BlockColumns<'_>,
    numbers: &[&[u8]],
) -> Result<Vec<Row>, RowsError> {
    let [prefixes, widths, blocks] = columns.params();
    let rows = transaction.query_typed(
        statement!("insert_id_blocks"),
        &[
            (&now_s, Type::INT8),
            prefixes,
            widths,
            blocks,
            (&numbers, Type::BYTEA_ARRAY),
        ],
    )?;
    Ok(rows)
}

/// Reads a block that may have been inserted in advance, without a number.
pub(super) fn decode(block: &mut Block, bytes: &[u8]) -> Result<(), Malformed> {
    if bytes.is_empty() {
        block.clear();
        return Ok(());
    }
    Ok(block.decode(bytes)?)
}

pub(super) fn id_rows(rows: &[Row]) -> Result<HashMap<&str, IdRow>, RowsError> {
    let mut found = HashMap::with_capacity(rows.len());
    for row in rows {
        let id_row = IdRow {
            payload: row.try_get(1)?,
            place: Node::place(row.try_get(2)?, row.try_get(3)?),
            offset: convert::get_u64(row, 4)?,
        };
        found.insert(row.try_get(0)?, id_row);
    }
    Ok(found)
}

/// The row of the id of a counted event.
pub(super) fn row_of(event: &IdEvent<'_>, place: i64) -> IdRow {
    IdRow {
        payload: event.payload(),
        place,
        offset: event.offset,
    }
}
