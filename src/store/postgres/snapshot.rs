//! The read snapshot of a node behind `verify`, in PostgreSQL.
//!
//! All of it is read in one REPEATABLE READ transaction, ids included: other nodes may expire ids meanwhile.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use ::postgres::fallible_iterator::FallibleIterator as _;
use ::postgres::types::Type;
use ::postgres::{Client, Row};
use uuid::Uuid;

use super::convert::{self, Malformed, get, get_u64, to_i64};
use super::segments::segment_rows;
use super::statement::{Param, TOGETHER, of_segments, statement};
use super::{Node, Target, schema};
use crate::data_dir::segment::{Label, Prefix, SegmentId};
use crate::event::Micros;
use crate::store::id_blocks::{Block, Grouped, Span};
use crate::store::snapshot::{BlockRow, status_in};
use crate::store::{
    AppliedSum, IdEvent, IdEvents, IdStatus, Overall, Pruned, SegmentRow, StoreError,
};

/// One transaction that reads the rows of a node.
pub(in crate::store) struct PostgresSnapshot {
    target: Target,
    client: RefCell<Client>,
    node: i32,
}

impl PostgresSnapshot {
    /// `None` if the database has no tables, or the data directory is not a node of it.
    pub(in crate::store) fn open(
        target: &Target,
        directory: Uuid,
    ) -> Result<Option<Self>, StoreError> {
        let failed = target.failed("begin to read it");
        let mut client = target.connect()?;
        if !schema::is_current(&mut client, target)? {
            return Ok(None);
        }
        client
            .batch_execute(statement!("begin_snapshot"))
            .map_err(&failed)?;
        let Some(node) = Node::number_of(&mut client, directory).map_err(&failed)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            target: target.clone(),
            client: RefCell::new(client),
            node,
        }))
    }

    pub(in crate::store) fn rows(&self) -> Result<Vec<SegmentRow>, StoreError> {
        self.read(
            "read its segments",
            of_segments!("select_segments"),
            &[],
            segment_rows,
        )
    }

    pub(in crate::store) fn pruned(&self) -> Result<Pruned, StoreError> {
        let sql = statement!("select_pruned");
        self.read("read its segments", sql, &[], |rows| {
            convert::pruned(rows.first())
        })
    }

    pub(in crate::store) fn applied_sum(&self) -> Result<AppliedSum, StoreError> {
        let sql = statement!("select_applied_sum");
        self.read("read its segments", sql, &[], |rows| {
            convert::applied_sum(rows.first())
        })
    }

    pub(in crate::store) fn recounts(&self) -> Result<Vec<String>, StoreError> {
        let sql = statement!("select_recounts");
        self.read_all("read its segments", sql, &[], |rows| {
            rows.iter()
                .map(|row| {
                    let (name, id): (&str, &str) = (get(row, 0)?, get(row, 1)?);
                    let segments = get_u64(row, 2)?;
                    Ok(format!("node {name} ({id}): {segments} segments"))
                })
                .collect()
        })
    }

    /// The events and net micros of all segments, modulo 2^64.
    pub(in crate::store) fn segment_sums(&self) -> Result<(u64, i64), StoreError> {
        let sql = statement!("select_segment_checks");
        self.read("add up all totals", sql, &[], |rows| {
            let Some(row) = rows.first() else {
                return Ok((0, 0));
            };
            let events = u64::try_from(convert::get_i128(row, 0)?).unwrap_or(u64::MAX);
            Ok((events, convert::get_wrapped(row, 1)?))
        })
    }

    /// The stored sums over all users of the node.
    pub(in crate::store) fn overall(&self) -> Result<Overall, StoreError> {
        let sql = statement!("select_node_overall");
        self.read("read the sums over all users", sql, &[], |rows| {
            convert::overall(rows.first())
        })
    }

    /// The same sums, computed from the rows; without a time.
    pub(in crate::store) fn overall_rows(&self) -> Result<Overall, StoreError> {
        let sql = statement!("select_total_checks");
        self.read("add up all totals", sql, &[], |rows| {
            let Some(row) = rows.first() else {
                return Ok(Overall::default());
            };
            Ok(Overall {
                users: get_u64(row, 0)?,
                events: get_u64(row, 1)?,
                revenue: Micros(convert::get_i128(row, 2)?),
                updated_at_ms: None,
            })
        })
    }

    /// The sum of the rows of fully applied segments.
    pub(in crate::store) fn applied_rows(&self) -> Result<AppliedSum, StoreError> {
        let sql = statement!("add_up_applied");
        self.read("add up all totals", sql, &[], |rows| {
            convert::applied_sum(rows.first())
        })
    }

    /// Calls `each` with every total of the node: user, micros and events.
    pub(in crate::store) fn each_total<E: From<StoreError>>(
        &self,
        each: &mut dyn FnMut(String, i64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let node = self.node;
        let sql = statement!("select_user_totals");
        self.stream(
            "copy its totals",
            sql,
            &[(&node, Type::INT4)],
            &mut |row| Ok((get(row, 0)?, get(row, 1)?, get_u64(row, 2)?)),
            &mut |(user, micros, events)| each(user, micros, events),
        )
    }

    /// Calls `each` with the segment and the offset of every id that has a row of its own.
    pub(in crate::store) fn each_id_place(
        &self,
        each: &mut dyn FnMut(i64, u64),
    ) -> Result<(), StoreError> {
        let node = self.node;
        let sql = statement!("select_id_places");
        self.stream(
            "count its ids",
            sql,
            &[(&node, Type::INT4)],
            &mut |row| Ok((get(row, 0)?, get_u64(row, 1)?)),
            &mut |(segment, offset)| {
                each(segment, offset);
                Ok(())
            },
        )
    }

    /// Calls `each` with every block of the cluster.
    pub(in crate::store) fn each_block(
        &self,
        each: &mut dyn FnMut(&BlockRow),
    ) -> Result<(), StoreError> {
        let sql = statement!("select_id_blocks");
        self.stream(
            "count its ids",
            sql,
            &[],
            &mut |row| {
                Ok(BlockRow {
                    numbers: get(row, 0)?,
                    prefix: get(row, 1)?,
                    width: i64::from(get::<i16>(row, 2)?),
                    block: get(row, 3)?,
                })
            },
            &mut |block| {
                each(&block);
                Ok(())
            },
        )
    }

    /// The `segment.key` of a place, if it is one of this node.
    pub(in crate::store) fn own(&self, place: i64) -> Option<i64> {
        let (node, key) = Node::of_place(place);
        (node == self.node).then_some(key)
    }

    /// See [`Snapshot::imports_of`](crate::store::Snapshot::imports_of).
    pub(in crate::store) fn imports_of(
        &self,
        label: Label,
    ) -> Result<Vec<(String, Prefix)>, StoreError> {
        let (sql, label) = (statement!("select_imports_of"), label.to_string());
        self.read(
            "read the imported files",
            sql,
            &[(&label, Type::TEXT)],
            |rows| rows.iter().map(convert::import_of).collect(),
        )
    }

    pub(in crate::store) fn overflows(
        &self,
        id: &SegmentId,
        end: u64,
    ) -> Result<HashSet<u64>, StoreError> {
        let (sql, name) = (statement!("select_overflows"), id.to_string());
        self.read(
            "read the rejected lines",
            sql,
            &[(&name, Type::TEXT), (&to_i64(end), Type::INT8)],
            |rows| rows.iter().map(|row| get_u64(row, 0)).collect(),
        )
    }

    /// See [`Snapshot::statuses`](crate::store::Snapshot::statuses).
    pub(in crate::store) fn statuses<'e>(
        &self,
        key: i64,
        events: &'e IdEvents,
        each: &mut dyn FnMut(&IdEvent<'e>, IdStatus),
    ) -> Result<(), StoreError> {
        let grouped = Grouped::of(events);
        for chunk in grouped.rows.chunks(TOGETHER) {
            let ids: Vec<&str> = chunk.iter().map(|row| row.id).collect();
            let found = self.ids(&ids)?;
            for event in chunk.iter().filter_map(|row| events.get(row.index())) {
                let status = match found.get(event.id) {
                    None => IdStatus::Unknown,
                    Some(row) if row.payload != event.payload() => IdStatus::Contradicted,
                    Some(row)
                        if (row.node, row.segment, row.offset)
                            == (self.node, key, event.offset) =>
                    {
                        IdStatus::Counted
                    }
                    Some(_) => IdStatus::Duplicate,
                };
                each(&event, status);
            }
        }
        let place = Node::place(self.node, key);
        let blocks: Vec<&[Span<'_>]> = grouped.blocks().collect();
        for chunk in blocks.chunks(TOGETHER) {
            let found = self.blocks(chunk)?;
            let mut block = Block::default();
            for (spans, bytes) in chunk.iter().zip(found) {
                block.clear();
                if let Some(bytes) = bytes
                    && block.decode(&bytes).is_err()
                {
                    block.clear(); // Reported as a fault.
                }
                for index in spans.iter().flat_map(Span::indexes) {
                    if let Some(event) = events.get(index) {
                        let number = grouped.numbers[index];
                        each(&event, status_in(&block, number, place, &event));
                    }
                }
            }
        }
        Ok(())
    }

    fn ids(&self, ids: &[&str]) -> Result<HashMap<String, FoundId>, StoreError> {
        let sql = statement!("select_event_ids");
        self.read_all("look ids up", sql, &[(&ids, Type::TEXT_ARRAY)], |rows| {
            rows.iter()
                .map(|row| {
                    let found = FoundId {
                        payload: get(row, 1)?,
                        node: get(row, 2)?,
                        segment: get(row, 3)?,
                        offset: get_u64(row, 4)?,
                    };
                    Ok((get(row, 0)?, found))
                })
                .collect()
        })
    }

    /// The bytes of each of these blocks.
    fn blocks(&self, of: &[&[Span<'_>]]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let keys = || of.iter().map(|spans| spans[0].key);
        let prefixes: Vec<&str> = keys().map(|key| key.prefix).collect();
        let widths: Vec<i16> = keys().map(|key| i16::from(key.width)).collect();
        let blocks: Vec<i64> = keys().map(|key| key.block).collect();
        let params: [Param<'_>; 3] = [
            (&prefixes, Type::TEXT_ARRAY),
            (&widths, Type::INT2_ARRAY),
            (&blocks, Type::INT8_ARRAY),
        ];
        self.read_all(
            "look ids up",
            statement!("select_id_blocks_of"),
            &params,
            |rows| {
                let mut found = vec![None; of.len()];
                for row in rows {
                    let at: i64 = get(row, 0)?;
                    let at = usize::try_from(at - 1).unwrap_or(usize::MAX);
                    if let Some(found) = found.get_mut(at) {
                        *found = Some(get(row, 1)?);
                    }
                }
                Ok(found)
            },
        )
    }

    /// Rows of this node, whose number is the first parameter.
    fn read<T>(
        &self,
        doing: &'static str,
        sql: &str,
        params: &[Param<'_>],
        convert: impl FnOnce(&[Row]) -> Result<T, Malformed>,
    ) -> Result<T, StoreError> {
        let node = self.node;
        let mut all: Vec<Param<'_>> = vec![(&node, Type::INT4)];
        all.extend(params.iter().cloned());
        self.read_all(doing, sql, &all, convert)
    }

    fn read_all<T>(
        &self,
        doing: &'static str,
        sql: &str,
        params: &[Param<'_>],
        convert: impl FnOnce(&[Row]) -> Result<T, Malformed>,
    ) -> Result<T, StoreError> {
        let rows = self.client.borrow_mut().query_typed(sql, params);
        let rows = rows.map_err(self.target.failed(doing))?;
        convert(&rows).map_err(|error| error.of(&self.target, doing))
    }

    /// Calls `each` with every row, without collecting them.
    fn stream<T, E: From<StoreError>>(
        &self,
        doing: &'static str,
        sql: &str,
        params: &[Param<'_>],
        convert: &mut dyn FnMut(&Row) -> Result<T, Malformed>,
        each: &mut dyn FnMut(T) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = self.target.failed(doing);
        let mut client = self.client.borrow_mut();
        let params = params.iter().map(|(value, of)| (*value, of.clone()));
        let mut rows = client.query_typed_raw(sql, params).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            each(convert(&row).map_err(|error| error.of(&self.target, doing))?)?;
        }
        Ok(())
    }
}

/// A row of `event_id`.
struct FoundId {
    payload: i64,
    node: i32,
    segment: i64,
    offset: u64,
}
