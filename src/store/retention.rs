//! Retention: pruning the rows of segments, expiring ids, and carrying both over to a rebuilt database.
//!
//! The methods belong to the [`SqliteWriter`] and run on its thread. Totals never change: the sums of a
//! pruned segment move to the `pruned` row in the transaction that deletes the segment's row, so the
//! rows plus `pruned` always equal the totals.

use std::collections::{BTreeMap, HashSet};

use rusqlite::{Connection, Row, TransactionBehavior, params};

use super::id_blocks::{self, Block, INSERT_ID_BLOCK};
use super::overall;
use super::{Pruned, Snapshot, SqliteWriter, StoreError};
use super::{SegmentRow, segments};

const SELECT_CLOCK: &str = include_str!("../../sql/query/select_clock.sql");
const SET_CLOCK: &str = include_str!("../../sql/query/set_clock.sql");
const RESTAMP_SEGMENTS: &str = include_str!("../../sql/query/restamp_segments.sql");
const RESTAMP_EVENT_ID: &str = include_str!("../../sql/query/restamp_event_id.sql");
const DELETE_APPLIED_SEGMENT: &str = include_str!("../../sql/query/delete_applied_segment.sql");
const DELETE_REJECTED: &str = include_str!("../../sql/query/delete_rejected_lines.sql");
const SET_PRUNED: &str = include_str!("../../sql/query/set_pruned.sql");
const SELECT_IDS_AFTER: &str = include_str!("../../sql/query/select_ids_after.sql");
const DELETE_EVENT_ID: &str = include_str!("../../sql/query/delete_event_id.sql");
const ADD_IDS_EXPIRED: &str = include_str!("../../sql/query/add_ids_expired.sql");
const INSERT_EVENT_ID: &str = include_str!("../../sql/query/insert_event_id.sql");
const SELECT_ID_BLOCKS_AFTER: &str = include_str!("../../sql/query/select_id_blocks_after.sql");
const DELETE_ID_BLOCK: &str = include_str!("../../sql/query/delete_id_block.sql");
const RESTAMP_ID_BLOCK: &str = include_str!("../../sql/query/restamp_id_block.sql");
const INSERT_CARRIED_TOTAL: &str = include_str!("../../sql/query/insert_carried_total.sql");

/// The state of a walk over the two tables of ids, which proceeds in steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdsWalk {
    pub(super) after: After,
    /// Ids that the last step expired.
    pub expired: u64,
}

/// The last row that was examined: first in `event_id`, then in `id_block`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum After {
    Id(String),
    Block(OwnedKey),
}

/// Prefix, width and block of a row of `id_block`.
pub(super) type OwnedKey = (String, i64, i64);

impl Default for After {
    fn default() -> Self {
        Self::Id(String::new())
    }
}

impl IdsWalk {
    /// Whether the next step begins at the first row.
    pub fn is_at_start(&self) -> bool {
        self.after == After::default()
    }
}

/// The plausible range of stored times, and the time that replaces others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    /// Now, milliseconds since 1970 UTC.
    pub now_ms: i64,
    /// The earliest plausible time, milliseconds since 1970 UTC.
    pub earliest_ms: i64,
    /// The latest plausible time, milliseconds since 1970 UTC.
    pub latest_ms: i64,
}

impl Stamps {
    /// Whether the time is plausible.
    pub fn can_be(&self, at_ms: i64) -> bool {
        (self.earliest_ms..=self.latest_ms).contains(&at_ms)
    }
}

impl SqliteWriter {
    /// The last trusted time, milliseconds since 1970 UTC; `None` if none was stored.
    pub fn clock(&self) -> Result<Option<i64>, StoreError> {
        self.connection
            .query_row(SELECT_CLOCK, [], |row| row.get(0))
            .map_err(self.reading())
    }

    /// Stores a trusted time.
    pub fn set_clock(&mut self, at_ms: i64) -> Result<(), StoreError> {
        self.connection
            .execute(SET_CLOCK, [at_ms])
            .map(|_| ())
            .map_err(StoreError::sqlite(&self.path, "store the time"))
    }

    /// Replaces implausible times of fully applied segments by the current time.
    pub fn restamp_segments(&mut self, stamps: &Stamps) -> Result<(), StoreError> {
        let Stamps {
            now_ms,
            earliest_ms,
            latest_ms,
        } = stamps;
        self.connection
            .execute(RESTAMP_SEGMENTS, [earliest_ms, latest_ms, now_ms])
            .map(|_| ())
            .map_err(StoreError::sqlite(
                &self.path,
                "replace implausible times of segments",
            ))
    }

    /// The fully applied native segment with the lowest number.
    pub fn oldest_applied(&self) -> Result<Option<SegmentRow>, StoreError> {
        segments::oldest_applied(&self.connection).map_err(self.reading())
    }

    /// The highest number of a sealed native segment; 0 if there is none.
    pub fn highest_sealed(&self) -> Result<u64, StoreError> {
        segments::highest_sealed(&self.connection).map_err(self.reading())
    }

    /// Adds a fully applied segment's sums to the `pruned` row and deletes the segment's row, in one
    /// transaction. Returns false, and changes nothing, if the row is no longer `row`. The caller
    /// deletes the file afterwards.
    pub fn prune(&mut self, row: &SegmentRow, now_ms: i64) -> Result<bool, StoreError> {
        let doing = StoreError::sqlite(&self.path, "prune a segment");
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&doing)?;
        let sql = |transaction: &Connection| -> rusqlite::Result<bool> {
            segments::take_off_applied_sum(transaction, row.key)?;
            let deleted = transaction
                .prepare_cached(DELETE_APPLIED_SEGMENT)?
                .execute(params![row.key, row.applied_bytes, row.checksum])?;
            if deleted != 1 {
                return Ok(false);
            }
            transaction
                .prepare_cached(DELETE_REJECTED)?
                .execute([row.id.to_string()])?;
            let mut pruned = segments::pruned(transaction)?;
            pruned.add(row);
            set_pruned(transaction, &pruned, now_ms)?;
            Ok(true)
        };
        let pruned = sql(&transaction).map_err(&doing)?;
        if pruned {
            transaction.commit().map_err(&doing)?;
        } else {
            transaction.rollback().map_err(&doing)?;
        }
        Ok(pruned)
    }

    /// One step of a walk over all ids: examines up to `count` rows and expires those applied before
    /// `before_s` (seconds since 1970 UTC). Implausible times are replaced by the current time. A block
    /// of sequential ids expires as a whole, by its newest time. After the last row the walk starts
    /// again at the first. A step that finds nothing to change opens no transaction.
    pub fn expire_ids(
        &mut self,
        walk: &IdsWalk,
        before_s: i64,
        stamps: &Stamps,
        count: u32,
    ) -> Result<IdsWalk, StoreError> {
        let doing = StoreError::sqlite(&self.path, "expire ids");
        let (after, found) = match &walk.after {
            After::Id(id) => {
                let examined =
                    ids_after(&self.connection, id, before_s, stamps, count).map_err(&doing)?;
                let first_block = || After::Block((String::new(), 0, 0));
                let after = examined.last.clone().map_or_else(first_block, After::Id);
                (after, Found::Ids(examined))
            }
            After::Block(key) => {
                let examined =
                    blocks_after(&self.connection, key, before_s, stamps, count).map_err(&doing)?;
                let after = examined
                    .last
                    .clone()
                    .map_or_else(After::default, After::Block);
                (after, Found::Blocks(examined))
            }
        };
        if !found.has_work() {
            return Ok(IdsWalk { after, expired: 0 });
        }
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&doing)?;
        let expired = match found {
            Found::Ids(examined) => restamp_ids(&transaction, &examined.undated, stamps)
                .and_then(|()| delete_ids(&transaction, &examined.old)),
            Found::Blocks(examined) => restamp_blocks(&transaction, &examined.undated, stamps)
                .and_then(|()| delete_blocks(&transaction, &examined.old)),
        }
        .map_err(&doing)?;
        transaction.commit().map_err(&doing)?;
        Ok(IdsWalk { after, expired })
    }

    /// Carries the effect of pruned segments over to a new database: their sums, the part of each
    /// user's total that the kept files do not account for, and the ids counted in them. The new
    /// database must have no totals yet.
    pub fn carry(&mut self, snapshot: &Snapshot, now_ms: i64) -> Result<(), StoreError> {
        let doing = StoreError::sqlite(&self.path, "carry the sums of pruned segments over");
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&doing)?;
        let mut inserted = Ok(0);
        let mut carried = overall::Added::default();
        let mut users = 0;
        snapshot.differences(&mut |user, database, files| {
            let micros = database.micros.wrapping_sub(files.micros);
            let events = database.events - files.events;
            if inserted.is_ok() {
                carried.user(micros, events);
                users += 1;
                inserted = transaction
                    .prepare_cached(INSERT_CARRIED_TOTAL)
                    .and_then(|mut insert| insert.execute(params![user, micros, events, now_ms]));
            }
        })?;
        inserted
            .and_then(|_| carry_ids(&transaction, snapshot))
            .and_then(|()| carry_blocks(&transaction, snapshot))
            .and_then(|()| overall::add(&transaction, users, &carried, now_ms))
            .and_then(|_| set_pruned(&transaction, &snapshot.pruned, now_ms))
            .map_err(&doing)?;
        transaction.commit().map_err(&doing)
    }
}

fn carry_ids(connection: &Connection, snapshot: &Snapshot) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(INSERT_EVENT_ID)?;
    snapshot.ids_of_pruned(&mut |row| {
        let segment: i64 = row.get(0)?;
        let applied_at_s: i64 = row.get(1)?;
        let id: String = row.get(2)?;
        let (payload, offset): (i64, i64) = (row.get(3)?, row.get(4)?);
        let row = params![segment, applied_at_s, id, payload, offset];
        insert.execute(row).map(|_| ())
    })
}

/// Carries the runs of pruned segments; those of kept segments are counted again from the files.
fn carry_blocks(connection: &Connection, snapshot: &Snapshot) -> rusqlite::Result<()> {
    let kept: HashSet<i64> = snapshot.rows.iter().map(|row| row.key).collect();
    let mut insert = connection.prepare_cached(INSERT_ID_BLOCK)?;
    let mut bytes = Vec::new();
    snapshot.id_blocks(&mut |row, block| {
        block.retain(|run| !kept.contains(&run.segment));
        if block.is_empty() {
            return Ok(());
        }
        bytes.clear();
        block.encode(&mut bytes);
        let (prefix, width, number) = key_of(row)?;
        let applied_at_s: i64 = row.get(4)?;
        let row = params![applied_at_s, prefix, width, number, bytes];
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

/// The rows of one table that a step examined.
struct Examined<K, V> {
    /// The key of the last row; `None` at the end of the table.
    last: Option<K>,
    /// Rows to expire: key, and the segments of their ids.
    old: Vec<(K, V)>,
    /// Rows with an implausible time.
    undated: Vec<K>,
}

enum Found {
    /// An id each, with the key of its segment.
    Ids(Examined<String, i64>),
    /// A block each, with the key and the count of ids of each of its segments.
    Blocks(Examined<OwnedKey, Vec<(i64, u64)>>),
}

impl Found {
    fn has_work(&self) -> bool {
        match self {
            Self::Ids(examined) => !(examined.old.is_empty() && examined.undated.is_empty()),
            Self::Blocks(examined) => !(examined.old.is_empty() && examined.undated.is_empty()),
        }
    }
}

fn key_of(row: &Row<'_>) -> rusqlite::Result<OwnedKey> {
    Ok((row.get(1)?, row.get(2)?, row.get(3)?))
}

fn ids_after(
    connection: &Connection,
    after: &str,
    before_s: i64,
    stamps: &Stamps,
    count: u32,
) -> rusqlite::Result<Examined<String, i64>> {
    let mut select = connection.prepare_cached(SELECT_IDS_AFTER)?;
    let mut rows = select.query(params![after, count])?;
    let mut examined = Examined {
        last: None,
        old: Vec::new(),
        undated: Vec::new(),
    };
    let mut seen = 0;
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        let applied_at_s = row.get::<_, i64>(2)?;
        if !stamps.can_be(applied_at_s.saturating_mul(1000)) {
            examined.undated.push(id.clone());
        } else if applied_at_s < before_s {
            examined.old.push((id.clone(), row.get(1)?));
        }
        examined.last = Some(id);
        seen += 1;
    }
    examined.last = examined.last.filter(|_| seen == count);
    Ok(examined)
}

fn blocks_after(
    connection: &Connection,
    (prefix, width, number): &OwnedKey,
    before_s: i64,
    stamps: &Stamps,
    count: u32,
) -> rusqlite::Result<Examined<OwnedKey, Vec<(i64, u64)>>> {
    let mut select = connection.prepare_cached(SELECT_ID_BLOCKS_AFTER)?;
    let mut rows = select.query(params![prefix, width, number, count])?;
    let mut examined = Examined {
        last: None,
        old: Vec::new(),
        undated: Vec::new(),
    };
    let mut block = Block::default();
    let mut seen = 0;
    while let Some(row) = rows.next()? {
        let key = key_of(row)?;
        let applied_at_s = row.get::<_, i64>(4)?;
        if !stamps.can_be(applied_at_s.saturating_mul(1000)) {
            examined.undated.push(key.clone());
        } else if applied_at_s < before_s {
            id_blocks::read(row, &mut block)?;
            let runs = block.runs().iter();
            let counts = runs.map(|run| (run.segment, u64::from(run.count)));
            examined.old.push((key.clone(), counts.collect()));
        }
        examined.last = Some(key);
        seen += 1;
    }
    examined.last = examined.last.filter(|_| seen == count);
    Ok(examined)
}

fn restamp_ids(connection: &Connection, ids: &[String], stamps: &Stamps) -> rusqlite::Result<()> {
    let mut restamp = connection.prepare_cached(RESTAMP_EVENT_ID)?;
    for id in ids {
        restamp.execute(params![id, stamps.now_ms.div_euclid(1000)])?;
    }
    Ok(())
}

fn restamp_blocks(
    connection: &Connection,
    blocks: &[OwnedKey],
    stamps: &Stamps,
) -> rusqlite::Result<()> {
    let mut restamp = connection.prepare_cached(RESTAMP_ID_BLOCK)?;
    for (prefix, width, number) in blocks {
        restamp.execute(params![
            prefix,
            width,
            number,
            stamps.now_ms.div_euclid(1000)
        ])?;
    }
    Ok(())
}

fn delete_ids(connection: &Connection, ids: &[(String, i64)]) -> rusqlite::Result<u64> {
    let mut delete = connection.prepare_cached(DELETE_EVENT_ID)?;
    for (id, _) in ids {
        delete.execute([id])?;
    }
    note_expired(connection, ids.iter().map(|&(_, segment)| (segment, 1)))
}

fn delete_blocks(
    connection: &Connection,
    blocks: &[(OwnedKey, Vec<(i64, u64)>)],
) -> rusqlite::Result<u64> {
    let mut delete = connection.prepare_cached(DELETE_ID_BLOCK)?;
    for ((prefix, width, number), _) in blocks {
        delete.execute(params![prefix, width, number])?;
    }
    let counts = blocks.iter().flat_map(|(_, counts)| counts);
    note_expired(connection, counts.copied())
}

/// Adds the expired ids to the rows of their segments and returns how many they are in all.
fn note_expired(
    connection: &Connection,
    counts: impl Iterator<Item = (i64, u64)>,
) -> rusqlite::Result<u64> {
    let mut by_segment = BTreeMap::<i64, u64>::new();
    for (segment, count) in counts {
        *by_segment.entry(segment).or_default() += count;
    }
    let mut note = connection.prepare_cached(ADD_IDS_EXPIRED)?;
    for (segment, count) in &by_segment {
        // A pruned segment has no row.
        note.execute(params![segment, count])?;
    }
    Ok(by_segment.values().sum())
}
