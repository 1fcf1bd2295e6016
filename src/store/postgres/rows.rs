//! The row operations of an attempt on PostgreSQL, by statements for sets of rows.
//!
//! The rows of a statement are arrays, which `unnest` turns into a table. They are sorted by key, so that two
//! nodes that have the same keys wait for each other in one direction only.

use std::collections::{HashMap, HashSet};

use ::postgres::types::Type;
use ::postgres::{Client, Row};

use super::Node;
use super::convert::{self, to_i64};
use super::ids::{self, BlockColumns};
use super::reserved_ids::ReservedIds;
use super::segments;
use super::statement::{Param, RowsError, TOGETHER, statement};
use crate::store::apply::id_blocks::{Change, Work};
use crate::store::apply::ids::IdLookup;
use crate::store::apply::totals::SAFE;
use crate::store::apply::{AddedCounts, Range, Rows};
use crate::store::id_blocks::{Block, BlockKey};
use crate::store::overall::{Added, Overall};
use crate::store::{IdEvent, Rejected, SegmentRow, SegmentState};

/// Rejected lines that are written together: at most 1 KiB each.
const REJECTED_TOGETHER: usize = 512;

/// The rows of one transaction of a node.
pub(super) struct PostgresRows<'r, 'e> {
    transaction: &'r mut Client,
    node: i32,
    now_ms: i64,
    /// The row of the range's segment, whose applied offset is changed already.
    claimed: std::vec::IntoIter<SegmentRow>,
    /// The ids of all ranges of the transaction, if they were locked in advance.
    reserved: Option<&'r mut ReservedIds<'e>>,
    /// Users whose first event at this node was written.
    new_users: u64,
    /// The segment and the rejected lines that are not written yet.
    rejected: (String, RejectedColumns),
}

#[derive(Default)]
struct RejectedColumns {
    offsets: Vec<i64>,
    codes: Vec<String>,
    reasons: Vec<Vec<u8>>,
    lines: Vec<Vec<u8>>,
}

impl<'r, 'e> PostgresRows<'r, 'e> {
    /// The rows of one range, or of several whose sums are added up, in the transaction that was begun on this
    /// connection. `claimed` are the rows of their segments.
    pub(super) fn new(
        transaction: &'r mut Client,
        node: i32,
        now_ms: i64,
        claimed: Vec<SegmentRow>,
        reserved: Option<&'r mut ReservedIds<'e>>,
    ) -> Self {
        Self {
            transaction,
            node,
            now_ms,
            claimed: claimed.into_iter(),
            reserved,
            new_users: 0,
            rejected: (String::new(), RejectedColumns::default()),
        }
    }

    fn now_s(&self) -> i64 {
        self.now_ms.div_euclid(1000)
    }

    fn query(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, RowsError> {
        Ok(self.transaction.query_typed(sql, params)?)
    }

    fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Result<usize, RowsError> {
        let changed = self.transaction.execute_typed(sql, params)?;
        Ok(usize::try_from(changed).unwrap_or(usize::MAX))
    }

    /// Inserts the blocks that are not in the table, and locks the others. Returns for each whether it was
    /// inserted.
    fn insert_blocks(&mut self, works: &[Work<'_>]) -> Result<Vec<bool>, RowsError> {
        let now_s = self.now_s();
        let columns = BlockColumns::of(works.iter().map(|work| work.key));
        let numbers: Vec<&[u8]> = works.iter().map(|work| &*work.bytes).collect();
        let rows = ids::insert_blocks(self.transaction, now_s, &columns, &numbers)?;
        if rows.len() == works.len() {
            return Ok(vec![true; works.len()]);
        }
        let mut inserted = HashSet::with_capacity(rows.len());
        for row in &rows {
            let (prefix, width, block): (&str, i16, i64) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            inserted.insert((prefix, width, block));
        }
        let is_inserted = |work: &Work<'_>| {
            let BlockKey {
                prefix,
                width,
                block,
            } = work.key;
            inserted.contains(&(prefix, i16::from(width), block))
        };
        Ok(works.iter().map(is_inserted).collect())
    }

    /// See [`ids::insert_ids`]. All events are of the segment.
    fn insert_id_rows(&mut self, place: i64, events: &[IdEvent<'_>]) -> Result<usize, RowsError> {
        let (node, segment) = Node::of_place(place);
        let events = events.iter().map(|event| (event, segment));
        ids::insert_ids(self.transaction, node, self.now_s(), events)
    }

    fn update_blocks(&mut self, changed: &[(&Work<'_>, Change)]) -> Result<(), RowsError> {
        if changed.is_empty() {
            return Ok(());
        }
        let now_s = self.now_s();
        let columns = BlockColumns::of(changed.iter().map(|(work, _)| work.key));
        let numbers: Vec<&[u8]> = changed.iter().map(|(work, _)| &*work.bytes).collect();
        let counted: Vec<bool> = changed
            .iter()
            .map(|(_, change)| *change == Change::Counted)
            .collect();
        let [prefixes, widths, blocks] = columns.params();
        let updated = self.execute(
            statement!("update_id_blocks"),
            &[
                (&now_s, Type::INT8),
                prefixes,
                widths,
                blocks,
                (&numbers, Type::BYTEA_ARRAY),
                (&counted, Type::BOOL_ARRAY),
            ],
        )?;
        if updated == changed.len() {
            Ok(())
        } else {
            Err(RowsError::Gone("blocks of ids"))
        }
    }

    fn write_rejected(&mut self) -> Result<(), RowsError> {
        let (segment, columns) = std::mem::take(&mut self.rejected);
        if columns.offsets.is_empty() {
            return Ok(());
        }
        let node = self.node;
        self.execute(
            statement!("insert_rejected_lines"),
            &[
                (&node, Type::INT4),
                (&segment, Type::TEXT),
                (&columns.offsets, Type::INT8_ARRAY),
                (&columns.codes, Type::TEXT_ARRAY),
                (&columns.reasons, Type::BYTEA_ARRAY),
                (&columns.lines, Type::BYTEA_ARRAY),
            ],
        )?;
        Ok(())
    }
}

impl Rows for PostgresRows<'_, '_> {
    type Error = RowsError;
    const TOGETHER: usize = TOGETHER;

    /// All ranges of the transaction are claimed before the first one is applied.
    fn claim(&mut self, _: &Range<'_>) -> Result<Option<SegmentRow>, RowsError> {
        Ok(self.claimed.next())
    }

    fn place(&self, key: i64) -> i64 {
        Node::place(self.node, key)
    }

    /// Insertion and look-up are separate statements: one statement would not see the row of another node that
    /// it waited for.
    fn insert_ids(
        &mut self,
        place: i64,
        events: &[IdEvent<'_>],
        seen: &mut Vec<IdLookup>,
    ) -> Result<(), RowsError> {
        if self.reserved.is_some() {
            for event in events {
                self.insert_id(place, event)?;
                seen.push(self.look_up_id(place, event)?);
            }
            return Ok(());
        }
        let ids: Vec<&str> = events.iter().map(|event| event.id).collect();
        let inserted = self.insert_id_rows(place, events)?;
        if inserted == events.len() {
            seen.extend(events.iter().map(|_| IdLookup::New));
            return Ok(());
        }
        let rows = self.query(statement!("select_event_ids"), &[(&ids, Type::TEXT_ARRAY)])?;
        let found = ids::id_rows(&rows)?;
        for event in events {
            // Neither inserted nor found: another node expired it in between.
            let row = found.get(event.id).ok_or(RowsError::Gone("ids"))?;
            seen.push(IdLookup::of(Some(row), place, event));
        }
        Ok(())
    }

    /// All ids were locked in advance.
    fn look_up_id(&mut self, place: i64, event: &IdEvent<'_>) -> Result<IdLookup, RowsError> {
        let row = self.reserved.as_ref();
        let row = row.and_then(|reserved| reserved.row(event.id));
        Ok(IdLookup::of(row, place, event))
    }

    fn insert_id(&mut self, place: i64, event: &IdEvent<'_>) -> Result<(), RowsError> {
        let Some(reserved) = &mut self.reserved else {
            return Err(RowsError::Gone("the look-up of an id"));
        };
        if reserved.row(event.id).is_some() {
            return Ok(());
        }
        // It was inserted for an event that was then rejected.
        reserved.set(event, Some(ids::row_of(event, place)));
        self.insert_id_rows(place, &[*event]).map(drop)
    }

    fn reject_id(&mut self, place: i64, event: &IdEvent<'_>) -> Result<(), RowsError> {
        let Some(reserved) = &mut self.reserved else {
            return Ok(());
        };
        if reserved.row(event.id).is_none() {
            return Ok(());
        }
        reserved.set(event, None);
        let (node, segment) = Node::of_place(place);
        self.execute(
            statement!("delete_event_id"),
            &[
                (&event.id, Type::TEXT),
                (&node, Type::INT4),
                (&segment, Type::INT8),
                (&to_i64(event.offset), Type::INT8),
            ],
        )
        .map(drop)
    }

    fn upsert_blocks(
        &mut self,
        works: &mut [Work<'_>],
        mut merge: impl FnMut(&mut Work<'_>) -> Change,
    ) -> Result<(), RowsError> {
        let inserted = match self.reserved {
            Some(_) => vec![false; works.len()],
            None => self.insert_blocks(works)?,
        };
        let mut present: Vec<&mut Work<'_>> = works
            .iter_mut()
            .zip(inserted)
            .filter_map(|(work, inserted)| (!inserted).then_some(work))
            .collect();
        if present.is_empty() {
            return Ok(());
        }
        let columns = BlockColumns::of(present.iter().map(|work| work.key));
        let rows = self.query(statement!("lock_id_blocks"), &columns.params())?;
        if rows.len() != present.len() {
            return Err(RowsError::Gone("blocks of ids"));
        }
        let mut found = vec![Change::Nothing; present.len()];
        for row in &rows {
            let at: i64 = row.try_get(0)?;
            let at = usize::try_from(at).unwrap_or(0).wrapping_sub(1);
            let (Some(work), Some(change)) = (present.get_mut(at), found.get_mut(at)) else {
                continue;
            };
            ids::decode(&mut work.block, row.try_get(1)?)?;
            *change = merge(work);
        }
        let changed: Vec<(&Work<'_>, Change)> = present
            .iter()
            .zip(found)
            .filter(|(_, change)| *change != Change::Nothing)
            .map(|(work, change)| (&**work, change))
            .collect();
        self.update_blocks(&changed)
    }

    fn load_block(&mut self, key: &BlockKey<'_>, block: &mut Block) -> Result<bool, RowsError> {
        let columns = BlockColumns::of(std::iter::once(*key));
        let rows = self.query(statement!("lock_id_blocks"), &columns.params())?;
        let Some(row) = rows.first() else {
            return Ok(false);
        };
        ids::decode(block, row.try_get(1)?)?;
        Ok(true)
    }

    fn insert_block(&mut self, work: &Work<'_>) -> Result<(), RowsError> {
        match self.insert_blocks(std::slice::from_ref(work))?[..] {
            [true] => Ok(()),
            // Another node inserted it since it was read.
            _ => Err(RowsError::Gone("the look-up of an id")),
        }
    }

    fn update_block(&mut self, work: &Work<'_>, change: Change) -> Result<(), RowsError> {
        self.update_blocks(&[(work, change)])
    }

    fn totals(&mut self, users: &HashSet<String>) -> Result<HashMap<String, i64>, RowsError> {
        let node = self.node;
        let mut users: Vec<&str> = users.iter().map(String::as_str).collect();
        users.sort_unstable();
        let mut totals = HashMap::with_capacity(users.len());
        for users in users.chunks(Self::TOGETHER) {
            let rows = self.query(
                statement!("select_totals_of"),
                &[(&node, Type::INT4), (&users, Type::TEXT_ARRAY)],
            )?;
            for row in rows {
                totals.insert(row.try_get(0)?, row.try_get(1)?);
            }
        }
        Ok(totals)
    }

    fn add_totals(
        &mut self,
        users: &[(&str, i64, i64)],
        suspects: &mut HashSet<String>,
    ) -> Result<(), RowsError> {
        let (node, now_ms) = (self.node, self.now_ms);
        let ids: Vec<&str> = users.iter().map(|&(user, ..)| user).collect();
        let micros: Vec<i64> = users.iter().map(|&(_, micros, _)| micros).collect();
        let events: Vec<i64> = users.iter().map(|&(.., events)| events).collect();
        let rows = self.query(
            statement!("upsert_user_totals"),
            &[
                (&node, Type::INT4),
                (&now_ms, Type::INT8),
                (&-SAFE, Type::INT8),
                (&SAFE, Type::INT8),
                (&ids, Type::TEXT_ARRAY),
                (&micros, Type::INT8_ARRAY),
                (&events, Type::INT8_ARRAY),
            ],
        )?;
        if let Some(row) = rows.first() {
            self.new_users += convert::get_u64(row, 1)?;
            if convert::get_u64(row, 0)? == users.len() as u64 {
                return Ok(());
            }
        }
        let rows = self.query(
            statement!("select_unsafe_totals"),
            &[
                (&node, Type::INT4),
                (&ids, Type::TEXT_ARRAY),
                (&-SAFE, Type::INT8),
                (&SAFE, Type::INT8),
            ],
        )?;
        if rows.is_empty() {
            // A row was skipped, and none has such a total.
            return Err(RowsError::Gone("totals"));
        }
        for row in rows {
            suspects.insert(row.try_get(0)?);
        }
        Ok(())
    }

    fn set_total(&mut self, user: &str, micros: i64, events: u64) -> Result<(), RowsError> {
        let (node, now_ms) = (self.node, self.now_ms);
        let rows = self.query(
            statement!("set_user_total"),
            &[
                (&user, Type::TEXT),
                (&node, Type::INT4),
                (&micros, Type::INT8),
                (&to_i64(events), Type::INT8),
                (&now_ms, Type::INT8),
            ],
        )?;
        if convert::one_count(&rows)? == events {
            self.new_users += 1;
        }
        Ok(())
    }

    fn add_overall(&mut self, added: &Added) -> Result<Overall, RowsError> {
        let (node, users) = (self.node, self.new_users);
        let rows = if added.events == 0 {
            self.query(statement!("select_node_overall"), &[(&node, Type::INT4)])?
        } else {
            add_overall(self.transaction, node, users, added, self.now_ms)?
        };
        Ok(convert::overall(rows.first())?)
    }

    fn rejected_lines(&mut self, segment: &str) -> Result<u64, RowsError> {
        let node = self.node;
        let rows = self.query(
            statement!("count_rejected_lines"),
            &[(&node, Type::INT4), (&segment, Type::TEXT)],
        )?;
        Ok(convert::one_count(&rows)?)
    }

    fn insert_rejected(&mut self, segment: &str, line: &Rejected) -> Result<(), RowsError> {
        let (of, columns) = &mut self.rejected;
        if columns.offsets.is_empty() {
            segment.clone_into(of);
        }
        columns.offsets.push(to_i64(line.offset));
        columns.codes.push(line.code.to_string());
        columns.reasons.push(line.reason.as_bytes().to_vec());
        columns.lines.push(line.line.as_bytes().to_vec());
        if columns.offsets.len() >= REJECTED_TOGETHER {
            self.write_rejected()?;
        }
        Ok(())
    }

    fn add_counts(&mut self, added: &AddedCounts, state: SegmentState) -> Result<(), RowsError> {
        self.write_rejected()?;
        let node = self.node;
        let counts = &added.counts;
        let changed = self.execute(
            statement!("add_segment_counts"),
            &[
                (&node, Type::INT4),
                (&added.key, Type::INT8),
                (&to_i64(counts.lines), Type::INT8),
                (&to_i64(counts.events), Type::INT8),
                (&to_i64(counts.duplicates), Type::INT8),
                (&to_i64(counts.rejected), Type::INT8),
                (&added.net_check, Type::INT8),
                (&to_i64(added.id_events), Type::INT8),
                (&added.id_net_check, Type::INT8),
            ],
        )?;
        if changed != 1 {
            return Err(RowsError::Gone("the segment"));
        }
        if state == SegmentState::Applied {
            segments::add_to_applied_sum(self.transaction, node, added.key)?;
        }
        Ok(())
    }
}

/// Adds to the sums over all users of the node, and returns their row.
pub(super) fn add_overall(
    transaction: &mut Client,
    node: i32,
    users: u64,
    added: &Added,
    now_ms: i64,
) -> Result<Vec<Row>, ::postgres::Error> {
    transaction.query_typed(
        statement!("add_overall"),
        &[
            (&node, Type::INT4),
            (&to_i64(users), Type::INT8),
            (&to_i64(added.events), Type::INT8),
            (&added.micros.to_string(), Type::TEXT),
            (&now_ms, Type::INT8),
        ],
    )
}
