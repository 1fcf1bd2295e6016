//! The ids of several ranges, inserted and locked before the ranges are applied.

use std::collections::{BTreeSet, HashMap, HashSet};

use ::postgres::Client;
use ::postgres::types::Type;

use super::Node;
use super::ids::{self, BlockColumns};
use super::statement::{RowsError, TOGETHER, statement};
use crate::store::apply::ids::IdRow;
use crate::store::id_blocks::{BlockKey, Grouped};
use crate::store::{IdEvent, Range};

/// The ids of all ranges of a transaction, inserted and locked in advance.
///
/// An id that is in no row yet is inserted for its first event, and deleted again if that event turns out to be
/// rejected. A block that does not exist yet is inserted without a number; of these, the ones that stay so are
/// deleted at the end.
pub(super) struct ReservedIds<'e> {
    /// The row of each id; `None` if it was deleted again.
    ids: HashMap<&'e str, Option<IdRow>>,
    blocks: BTreeSet<BlockKey<'e>>,
}

impl<'e> ReservedIds<'e> {
    pub(super) fn is_needed(ranges: &[Range<'_>], suspects: &[HashSet<String>]) -> bool {
        let with_ids = ranges
            .iter()
            .filter(|range| !range.delta.with_id.is_empty())
            .count();
        with_ids > 1 || (with_ids == 1 && suspects.iter().any(|users| !users.is_empty()))
    }

    /// `keys` are those of the ranges' segments.
    pub(super) fn of(
        transaction: &mut Client,
        node: i32,
        ranges: &[Range<'e>],
        keys: &[i64],
    ) -> Result<Self, RowsError> {
        let mut events: Vec<(IdEvent<'e>, i64)> = Vec::new();
        let mut blocks = BTreeSet::new();
        for (range, &key) in ranges.iter().zip(keys) {
            let with_id = range.delta.with_id;
            let grouped = Grouped::of(with_id);
            let rows = grouped.rows.iter();
            events.extend(rows.filter_map(|row| Some((with_id.get(row.index())?, key))));
            blocks.extend(grouped.blocks().map(|spans| spans[0].key));
        }
        // Stable: equal ids stay in the order of the ranges, and of their offsets.
        events.sort_by(|(a, _), (b, _)| a.id.cmp(b.id));
        events.dedup_by(|(next, _), (first, _)| next.id == first.id);
        let now_s = ranges
            .first()
            .map_or(0, |range| range.now_ms.div_euclid(1000));
        let mut reserved = Self {
            ids: HashMap::with_capacity(events.len()),
            blocks,
        };
        for events in events.chunks(TOGETHER) {
            reserved.insert_ids(transaction, node, events, now_s)?;
        }
        let keys: Vec<BlockKey<'e>> = reserved.blocks.iter().copied().collect();
        for keys in keys.chunks(TOGETHER) {
            let columns = BlockColumns::of(keys.iter().copied());
            let no_numbers: Vec<&[u8]> = vec![&[]; keys.len()];
            ids::insert_blocks(transaction, now_s, &columns, &no_numbers)?;
        }
        Ok(reserved)
    }

    /// Inserts the ids that are in no row, and reads the rows of the others. They are sorted, and none is twice there.
    fn insert_ids(
        &mut self,
        transaction: &mut Client,
        node: i32,
        events: &[(IdEvent<'e>, i64)],
        now_s: i64,
    ) -> Result<(), RowsError> {
        let with_segments = events.iter().map(|(event, key)| (event, *key));
        let inserted = ids::insert_ids(transaction, node, now_s, with_segments)?;
        if inserted == events.len() {
            self.ids.extend(
                events.iter().map(|(event, key)| {
                    (event.id, Some(ids::row_of(event, Node::place(node, *key))))
                }),
            );
            return Ok(());
        }
        let ids: Vec<&str> = events.iter().map(|(event, _)| event.id).collect();
        // Another statement: the one above does not see a row of another node for which it waited.
        let rows =
            transaction.query_typed(statement!("select_event_ids"), &[(&ids, Type::TEXT_ARRAY)])?;
        let found = ids::id_rows(&rows)?;
        for id in ids {
            // Neither inserted nor found: another node expired it in between.
            let row = found.get(id).ok_or(RowsError::Gone("ids"))?;
            self.ids.insert(id, Some(*row));
        }
        Ok(())
    }

    /// The row of an id of the ranges.
    pub(super) fn row(&self, id: &str) -> Option<&IdRow> {
        self.ids.get(id)?.as_ref()
    }

    /// Notes that the row of an event's id was deleted, or inserted again.
    pub(super) fn set(&mut self, event: &IdEvent<'_>, row: Option<IdRow>) {
        if let Some(known) = self.ids.get_mut(event.id) {
            *known = row;
        }
    }

    /// Deletes the blocks of which no number was counted: their events were rejected.
    pub(super) fn delete_empty_blocks(self, transaction: &mut Client) -> Result<(), RowsError> {
        let keys: Vec<BlockKey<'_>> = self.blocks.into_iter().collect();
        for keys in keys.chunks(TOGETHER) {
            let columns = BlockColumns::of(keys.iter().copied());
            transaction.execute_typed(statement!("delete_empty_id_blocks"), &columns.params())?;
        }
        Ok(())
    }
}
