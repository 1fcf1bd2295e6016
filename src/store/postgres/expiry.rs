//! Expiry of ids on PostgreSQL.
//!
//! Ids belong to the cluster, so the longest deduplication window of all nodes applies, measured by the clock
//! of the database. A node expires the ids of its own segments, those of nodes that were removed, and blocks of
//! any node: a block may have runs of several.

use std::collections::{BTreeMap, BTreeSet};

use ::postgres::Client;
use ::postgres::types::Type;

use super::convert::{self, Malformed};
use super::statement::statement;
use super::{Node, PostgresWriter};
use crate::store::StoreError;
use crate::store::apply::End;
use crate::store::expiry::{After, IdsWalk, OwnedKey};
use crate::store::id_blocks::Block;
use crate::store::retention::Stamps;

/// Which ids expire.
struct Expiry {
    /// Those that were applied before this time, in seconds since 1970 UTC.
    before_s: i64,
    /// The nodes whose ids this node may expire.
    nodes: Vec<i32>,
}

/// Rows to expire and rows with an implausible time.
struct Examined<K, V> {
    /// The key of the last row; `None` at the end of the table.
    last: Option<K>,
    old: Vec<(K, V)>,
    undated: Vec<K>,
}

/// The bytes of a block and how many ids each segment has in it, by node and `segment.key`.
struct OldBlock {
    bytes: Vec<u8>,
    counts: Vec<((i32, i64), i64)>,
}

/// Counts by node and `segment.key`.
type BySegment = BTreeMap<(i32, i64), i64>;

impl PostgresWriter {
    /// See [`Writer::expire_ids`](crate::store::Writer::expire_ids).
    pub fn expire_ids(
        &mut self,
        walk: &IdsWalk,
        stamps: &Stamps,
        count: u32,
    ) -> Result<IdsWalk, StoreError> {
        let Some(expiry) = self.expiry()? else {
            return Ok(IdsWalk::default());
        };
        match &walk.after {
            After::Id(id) => {
                let examined = self.ids_after(id, &expiry, stamps, count)?;
                let first_block = || After::Block((String::new(), 0, 0));
                let after = examined.last.clone().map_or_else(first_block, After::Id);
                let expired = self.expire_rows(&examined, &expiry, stamps)?;
                Ok(IdsWalk { after, expired })
            }
            After::Block(key) => {
                let examined = self.blocks_after(key, &expiry, stamps, count)?;
                let after = examined
                    .last
                    .clone()
                    .map_or_else(After::default, After::Block);
                let expired = self.expire_blocks(&examined, &expiry, stamps)?;
                Ok(IdsWalk { after, expired })
            }
        }
    }

    /// `None` if a node keeps its ids for ever.
    fn expiry(&self) -> Result<Option<Expiry>, StoreError> {
        let doing = "read the deduplication windows of all nodes";
        let rows = self.query(doing, statement!("select_expiry"), &[])?;
        let read = || -> Result<Option<Expiry>, Malformed> {
            let Some(row) = rows.first() else {
                return Ok(None);
            };
            let (keep_ms, now_ms): (Option<i64>, i64) =
                (convert::get(row, 0)?, convert::get(row, 1)?);
            let mut nodes: Vec<i32> = convert::get(row, 2)?;
            nodes.push(self.node.number);
            Ok(keep_ms.map(|keep_ms| Expiry {
                before_s: now_ms.saturating_sub(keep_ms).div_euclid(1000),
                nodes,
            }))
        };
        read().map_err(|error| self.malformed(doing, &error))
    }

    fn ids_after(
        &self,
        after: &str,
        expiry: &Expiry,
        stamps: &Stamps,
        count: u32,
    ) -> Result<Examined<String, (i32, i64)>, StoreError> {
        let doing = "read the ids";
        let rows = self.query(
            doing,
            statement!("select_ids_after"),
            &[(&after, Type::TEXT), (&i64::from(count), Type::INT8)],
        )?;
        let read = || -> Result<Examined<String, (i32, i64)>, Malformed> {
            let mut examined = Examined {
                last: None,
                old: Vec::new(),
                undated: Vec::new(),
            };
            for row in &rows {
                let (id, applied_at_s): (String, i64) =
                    (convert::get(row, 0)?, convert::get(row, 1)?);
                let segment: (i32, i64) = (convert::get(row, 2)?, convert::get(row, 3)?);
                if expiry.nodes.contains(&segment.0) {
                    if !stamps.can_be(applied_at_s.saturating_mul(1000)) {
                        examined.undated.push(id.clone());
                    } else if applied_at_s < expiry.before_s {
                        examined.old.push((id.clone(), segment));
                    }
                }
                examined.last = Some(id);
            }
            examined.last = examined.last.filter(|_| rows.len() == count as usize);
            Ok(examined)
        };
        read().map_err(|error| self.malformed(doing, &error))
    }

    fn blocks_after(
        &self,
        (prefix, width, number): &OwnedKey,
        expiry: &Expiry,
        stamps: &Stamps,
        count: u32,
    ) -> Result<Examined<OwnedKey, OldBlock>, StoreError> {
        let doing = "read the blocks of ids";
        let width = i16::try_from(*width).unwrap_or_default();
        let rows = self.query(
            doing,
            statement!("select_id_blocks_after"),
            &[
                (prefix, Type::TEXT),
                (&width, Type::INT2),
                (number, Type::INT8),
                (&i64::from(count), Type::INT8),
            ],
        )?;
        let read = || -> Result<Examined<OwnedKey, OldBlock>, Malformed> {
            let mut examined = Examined {
                last: None,
                old: Vec::new(),
                undated: Vec::new(),
            };
            let mut block = Block::default();
            for row in &rows {
                let width: i16 = convert::get(row, 2)?;
                let key = (
                    convert::get(row, 1)?,
                    i64::from(width),
                    convert::get(row, 3)?,
                );
                let applied_at_s: i64 = convert::get(row, 4)?;
                if !stamps.can_be(applied_at_s.saturating_mul(1000)) {
                    examined.undated.push(key.clone());
                } else if applied_at_s < expiry.before_s {
                    let bytes: Vec<u8> = convert::get(row, 0)?;
                    block.decode(&bytes)?;
                    let counts = block
                        .runs()
                        .iter()
                        .map(|run| (Node::of_place(run.segment), i64::from(run.count)))
                        .collect();
                    examined.old.push((key.clone(), OldBlock { bytes, counts }));
                }
                examined.last = Some(key);
            }
            examined.last = examined.last.filter(|_| rows.len() == count as usize);
            Ok(examined)
        };
        read().map_err(|error| self.malformed(doing, &error))
    }

    /// Deletes the old rows of ids, unless they have changed, and returns how many.
    fn expire_rows(
        &mut self,
        examined: &Examined<String, (i32, i64)>,
        expiry: &Expiry,
        stamps: &Stamps,
    ) -> Result<u64, StoreError> {
        if examined.old.is_empty() && examined.undated.is_empty() {
            return Ok(0);
        }
        let now_s = stamps.now_ms.div_euclid(1000);
        let old: Vec<&str> = examined.old.iter().map(|(id, _)| id.as_str()).collect();
        let (nodes, segments): (Vec<i32>, Vec<i64>) =
            examined.old.iter().map(|(_, segment)| *segment).unzip();
        let undated = examined.undated.iter().map(String::as_str);
        let all: Vec<&str> = undated.chain(old.iter().copied()).collect();
        self.write("expire ids", |transaction| {
            lock_segments(
                transaction,
                examined.old.iter().map(|(_, segment)| *segment),
            )?;
            transaction.query_typed(statement!("lock_event_ids"), &[(&all, Type::TEXT_ARRAY)])?;
            transaction.execute_typed(
                statement!("restamp_event_ids"),
                &[(&examined.undated, Type::TEXT_ARRAY), (&now_s, Type::INT8)],
            )?;
            let rows = transaction.query_typed(
                statement!("delete_event_ids"),
                &[
                    (&old, Type::TEXT_ARRAY),
                    (&nodes, Type::INT4_ARRAY),
                    (&segments, Type::INT8_ARRAY),
                    (&expiry.before_s, Type::INT8),
                ],
            )?;
            let mut counts = BySegment::new();
            for row in &rows {
                let segment = (row.try_get(0)?, row.try_get(1)?);
                *counts.entry(segment).or_default() += 1;
            }
            add_expired(transaction, &counts)?;
            Ok(End::Commit(rows.len() as u64))
        })
    }

    /// Deletes the old blocks, unless they have changed, and returns how many ids they had.
    fn expire_blocks(
        &mut self,
        examined: &Examined<OwnedKey, OldBlock>,
        expiry: &Expiry,
        stamps: &Stamps,
    ) -> Result<u64, StoreError> {
        if examined.old.is_empty() && examined.undated.is_empty() {
            return Ok(0);
        }
        let now_s = stamps.now_ms.div_euclid(1000);
        let undated = Columns::of(examined.undated.iter());
        let old = Columns::of(examined.old.iter().map(|(key, _)| key));
        let bytes: Vec<&[u8]> = examined.old.iter().map(|(_, old)| &*old.bytes).collect();
        let keys = examined.old.iter().map(|(key, _)| key);
        let all = Columns::of(examined.undated.iter().chain(keys));
        let counts = examined.old.iter().flat_map(|(_, old)| &old.counts);
        let segments: Vec<(i32, i64)> = counts.map(|&(segment, _)| segment).collect();
        self.write("expire ids", |transaction| {
            lock_segments(transaction, segments.iter().copied())?;
            transaction.query_typed(
                statement!("lock_id_blocks"),
                &[
                    (&all.prefixes, Type::TEXT_ARRAY),
                    (&all.widths, Type::INT2_ARRAY),
                    (&all.blocks, Type::INT8_ARRAY),
                ],
            )?;
            transaction.execute_typed(
                statement!("restamp_id_blocks"),
                &[
                    (&undated.prefixes, Type::TEXT_ARRAY),
                    (&undated.widths, Type::INT2_ARRAY),
                    (&undated.blocks, Type::INT8_ARRAY),
                    (&now_s, Type::INT8),
                ],
            )?;
            let rows = transaction.query_typed(
                statement!("delete_id_blocks"),
                &[
                    (&old.prefixes, Type::TEXT_ARRAY),
                    (&old.widths, Type::INT2_ARRAY),
                    (&old.blocks, Type::INT8_ARRAY),
                    (&bytes, Type::BYTEA_ARRAY),
                    (&expiry.before_s, Type::INT8),
                ],
            )?;
            let mut counts = BySegment::new();
            for row in &rows {
                let at: i64 = row.try_get(0)?;
                let old = usize::try_from(at - 1).ok();
                let old = old.and_then(|at| examined.old.get(at));
                for (segment, count) in old.iter().flat_map(|(_, old)| &old.counts) {
                    *counts.entry(*segment).or_default() += count;
                }
            }
            add_expired(transaction, &counts)?;
            let expired: i64 = counts.values().sum();
            Ok(End::Commit(u64::try_from(expired).unwrap_or_default()))
        })
    }
}

/// The columns of the keys of blocks.
struct Columns<'k> {
    prefixes: Vec<&'k str>,
    widths: Vec<i16>,
    blocks: Vec<i64>,
}

impl<'k> Columns<'k> {
    fn of(keys: impl Iterator<Item = &'k OwnedKey>) -> Self {
        let mut columns = Self {
            prefixes: Vec::new(),
            widths: Vec::new(),
            blocks: Vec::new(),
        };
        for (prefix, width, block) in keys {
            columns.prefixes.push(prefix);
            columns
                .widths
                .push(i16::try_from(*width).unwrap_or_default());
            columns.blocks.push(*block);
        }
        columns
    }
}

/// Locks the rows of segments, whose numbers of expired ids change after their ids are locked.
fn lock_segments(
    transaction: &mut Client,
    segments: impl Iterator<Item = (i32, i64)>,
) -> Result<(), ::postgres::Error> {
    let segments: BTreeSet<(i32, i64)> = segments.collect();
    let (nodes, keys): (Vec<i32>, Vec<i64>) = segments.into_iter().unzip();
    transaction
        .query_typed(
            statement!("lock_segments"),
            &[(&nodes, Type::INT4_ARRAY), (&keys, Type::INT8_ARRAY)],
        )
        .map(drop)
}

/// Adds expired ids to the rows of their segments. A pruned segment has no row.
fn add_expired(transaction: &mut Client, counts: &BySegment) -> Result<(), ::postgres::Error> {
    let nodes: Vec<i32> = counts.keys().map(|&(node, _)| node).collect();
    let keys: Vec<i64> = counts.keys().map(|&(_, key)| key).collect();
    let ids: Vec<i64> = counts.values().copied().collect();
    transaction
        .execute_typed(
            statement!("add_ids_expired"),
            &[
                (&nodes, Type::INT4_ARRAY),
                (&keys, Type::INT8_ARRAY),
                (&ids, Type::INT8_ARRAY),
            ],
        )
        .map(|_| ())
}
