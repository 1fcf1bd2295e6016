//! Applies ranges of a node's segments in one transaction.
//!
//! Two transactions cannot deadlock, because all of them lock rows in one order: the row of the node, segments by
//! node and name, ids by id, blocks of ids by key. Everything after that belongs to one node. The statements of one
//! range have this order. Two cases have not, and lock the ids of all ranges in advance ([`Reserved`]): several
//! ranges with ids, and an overflow replay, which goes line by line.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use ::postgres::Client;
use ::postgres::types::Type;

use super::Node;
use super::PostgresWriter;
use super::ids::{self, BlockColumns};
use super::rows::PostgresRows;
use super::segments;
use super::statement::{RowsError, statement};
use crate::store::apply::End;
use crate::store::apply::ids::IdRow;
use crate::store::apply::{self, Attempt, FoldAttempt, Rows as _};
use crate::store::id_blocks::{BlockKey, Grouped};
use crate::store::{
    IdEvent, Outcome, OutcomeOfAll, OutcomeOfFold, Range, SegmentRow, Source, StoreError, UserSums,
};

/// The outcome of one transaction.
enum Tried {
    Done(OutcomeOfAll),
    /// Totals of these users of a range might overflow.
    Again(usize, HashSet<String>),
}

impl PostgresWriter {
    /// See [`Writer::apply`](crate::store::Writer::apply).
    pub fn apply(
        &mut self,
        range: &Range<'_>,
        source: &mut dyn Source,
    ) -> Result<Outcome, StoreError> {
        match self.apply_together(&mut [(*range, source)])? {
            OutcomeOfAll::Applied(applied) => match applied[..] {
                [applied] => Ok(Outcome::Applied(applied)),
                _ => Ok(Outcome::Raced),
            },
            OutcomeOfAll::Raced(_) => Ok(Outcome::Raced),
        }
    }

    /// See [`Writer::apply_together`](crate::store::Writer::apply_together).
    pub fn apply_together(
        &mut self,
        ranges: &mut [(Range<'_>, &mut dyn Source)],
    ) -> Result<OutcomeOfAll, StoreError> {
        let mut suspects: Vec<HashSet<String>> = vec![HashSet::new(); ranges.len()];
        let node = self.node.number;
        loop {
            let mut last = None;
            let outcome = self.write("apply a range", |transaction| {
                let plain: Vec<Range<'_>> = ranges.iter().map(|(range, _)| *range).collect();
                let claimed = match claim(transaction, node, &plain)? {
                    Claimed::All(rows) => rows,
                    Claimed::Raced(at) => {
                        return Ok(End::RollBack(Tried::Done(OutcomeOfAll::Raced(at))));
                    }
                };
                let keys: Vec<i64> = claimed.iter().map(|row| row.key).collect();
                last = keys.last().copied().zip(plain.last().map(|range| range.to));
                let mut reserved = None;
                if Reserved::is_needed(&plain, &suspects) {
                    reserved = Some(Reserved::of(transaction, node, &plain, &keys)?);
                }
                let mut all = Vec::with_capacity(ranges.len());
                for (at, ((range, source), row)) in ranges.iter_mut().zip(claimed).enumerate() {
                    let mut rows = PostgresRows::new(
                        transaction,
                        node,
                        range.now_ms,
                        vec![row],
                        reserved.as_mut(),
                    );
                    match apply::attempt(&mut rows, range, &suspects[at], *source)? {
                        Attempt::Ready(applied) => all.push(applied),
                        Attempt::Raced => {
                            return Ok(End::RollBack(Tried::Done(OutcomeOfAll::Raced(at))));
                        }
                        Attempt::Suspects(more) => {
                            return Ok(End::RollBack(Tried::Again(at, more)));
                        }
                    }
                }
                if let Some(reserved) = reserved {
                    reserved.delete_empty_blocks(transaction)?;
                }
                Ok(End::Commit(Tried::Done(OutcomeOfAll::Applied(all))))
            })?;
            match outcome {
                Tried::Again(at, more) => suspects[at].extend(more),
                Tried::Done(done) => {
                    if matches!(done, OutcomeOfAll::Applied(_)) {
                        self.last = last;
                    }
                    return Ok(done);
                }
            }
        }
    }

    /// See [`Writer::apply_folded`](crate::store::Writer::apply_folded).
    pub fn apply_folded(
        &mut self,
        users: &UserSums,
        ranges: &mut [(Range<'_>, &mut dyn Source)],
    ) -> Result<OutcomeOfFold, StoreError> {
        let node = self.node.number;
        let now_ms = ranges.first().map_or(0, |(range, _)| range.now_ms);
        let mut last = None;
        let outcome = self.write("apply ranges", |transaction| {
            let plain: Vec<Range<'_>> = ranges.iter().map(|(range, _)| *range).collect();
            let claimed = match claim(transaction, node, &plain)? {
                Claimed::All(rows) => rows,
                Claimed::Raced(at) => return Ok(End::RollBack(OutcomeOfFold::Raced(at))),
            };
            let keys: Vec<i64> = claimed.iter().map(|row| row.key).collect();
            last = keys.last().copied().zip(plain.last().map(|range| range.to));
            let mut reserved = None;
            if Reserved::is_needed(&plain, &[]) {
                reserved = Some(Reserved::of(transaction, node, &plain, &keys)?);
            }
            let mut rows = PostgresRows::new(transaction, node, now_ms, claimed, reserved.as_mut());
            let all = match apply::attempt_folded(&mut rows, users, ranges)? {
                FoldAttempt::Ready(all) => all,
                FoldAttempt::Raced(at) => return Ok(End::RollBack(OutcomeOfFold::Raced(at))),
                FoldAttempt::MayOverflow => return Ok(End::RollBack(OutcomeOfFold::Separately)),
            };
            if let Some(reserved) = reserved {
                reserved.delete_empty_blocks(transaction)?;
            }
            Ok(End::Commit(OutcomeOfFold::Applied(all)))
        })?;
        if matches!(outcome, OutcomeOfFold::Applied(_)) {
            self.last = last;
        }
        Ok(outcome)
    }
}

/// The outcome of changing the applied offsets of the segments of all ranges.
enum Claimed {
    /// The rows, in the order of the ranges.
    All(Vec<SegmentRow>),
    /// The applied offset of this range's segment was another one.
    Raced(usize),
}

/// Step 3 of all ranges. No two of them are of one segment.
fn claim(transaction: &mut Client, node: i32, ranges: &[Range<'_>]) -> Result<Claimed, RowsError> {
    let names = ranges.iter().map(|range| range.segment.to_string());
    let by_name: BTreeMap<String, usize> = names.zip(0..).collect();
    let mut claimed = BTreeMap::new();
    for at in by_name.into_values() {
        match segments::claim_segment(transaction, node, &ranges[at])? {
            Some(row) => claimed.insert(at, row),
            None => return Ok(Claimed::Raced(at)),
        };
    }
    Ok(Claimed::All(claimed.into_values().collect()))
}

/// The ids of all ranges of a transaction, inserted and locked in advance.
///
/// An id that is in no row yet is inserted for its first event, and deleted again if that event turns out to be
/// rejected. A block that does not exist yet is inserted without a number; of these, the ones that stay so are
/// deleted at the end.
pub(super) struct Reserved<'e> {
    /// The row of each id; `None` if it was deleted again.
    ids: HashMap<&'e str, Option<IdRow>>,
    blocks: BTreeSet<BlockKey<'e>>,
}

impl<'e> Reserved<'e> {
    fn is_needed(ranges: &[Range<'_>], suspects: &[HashSet<String>]) -> bool {
        let with_ids = ranges
            .iter()
            .filter(|range| !range.delta.with_id.is_empty())
            .count();
        with_ids > 1 || (with_ids == 1 && suspects.iter().any(|users| !users.is_empty()))
    }

    /// `keys` are those of the ranges' segments.
    fn of(
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
        for events in events.chunks(PostgresRows::TOGETHER) {
            reserved.insert_ids(transaction, node, events, now_s)?;
        }
        let keys: Vec<BlockKey<'e>> = reserved.blocks.iter().copied().collect();
        for keys in keys.chunks(PostgresRows::TOGETHER) {
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
                events
                    .iter()
                    .map(|(event, key)| (event.id, Some(row_of(event, Node::place(node, *key))))),
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
    fn delete_empty_blocks(self, transaction: &mut Client) -> Result<(), RowsError> {
        let keys: Vec<BlockKey<'_>> = self.blocks.into_iter().collect();
        for keys in keys.chunks(PostgresRows::TOGETHER) {
            let columns = BlockColumns::of(keys.iter().copied());
            transaction.execute_typed(statement!("delete_empty_id_blocks"), &columns.params())?;
        }
        Ok(())
    }
}

/// The row of the id of a counted event.
pub(super) fn row_of(event: &IdEvent<'_>, place: i64) -> IdRow {
    IdRow {
        payload: event.payload(),
        place,
        offset: event.offset,
    }
}
