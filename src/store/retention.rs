//! Letting go: the rows of pruned segments, ids past their time, and what a new database is given
//! of an old one. Parts of the one writer.
//!
//! What is let go stays in the totals: the sums of a pruned segment move to the `pruned` row in the
//! transaction that deletes its own, so that rows and `pruned` always add up to the totals.

use std::collections::{BTreeMap, HashSet};

use rusqlite::{Connection, Row, TransactionBehavior, params};

use super::id_blocks::{self, Block, INSERT_ID_BLOCK};
use super::segments::{self, SegmentRow};
use super::{Pruned, Snapshot, StoreError, Writer};

const SELECT_CLOCK: &str = include_str!("../../sql/query/select_clock.sql");
const SET_CLOCK: &str = include_str!("../../sql/query/set_clock.sql");
const RESTAMP_SEGMENTS: &str = include_str!("../../sql/query/restamp_segments.sql");
const RESTAMP_EVENT_ID: &str = include_str!("../../sql/query/restamp_event_id.sql");
const DELETE_WHOLE_SEGMENT: &str = include_str!("../../sql/query/delete_applied_segment.sql");
const DELETE_REJECTED: &str = include_str!("../../sql/query/delete_rejected_lines.sql");
const SET_PRUNED: &str = include_str!("../../sql/query/set_pruned.sql");
const SELECT_IDS_AFTER: &str = include_str!("../../sql/query/select_ids_after.sql");
const DELETE_EVENT_ID: &str = include_str!("../../sql/query/delete_event_id.sql");
const ADD_IDS_LET_GO: &str = include_str!("../../sql/query/add_ids_expired.sql");
const INSERT_EVENT_ID: &str = include_str!("../../sql/query/insert_event_id.sql");
const SELECT_ID_BLOCKS_AFTER: &str = include_str!("../../sql/query/select_id_blocks_after.sql");
const DELETE_ID_BLOCK: &str = include_str!("../../sql/query/delete_id_block.sql");
const RESTAMP_ID_BLOCK: &str = include_str!("../../sql/query/restamp_id_block.sql");
const INSERT_CARRIED_TOTAL: &str = include_str!("../../sql/query/insert_carried_total.sql");

/// How far a walk over the two tables of ids has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdsWalk {
    after: After,
    /// Ids let go by the last step.
    pub expired: u64,
}

/// The walk goes on after this row: first `event_id`, then `id_block`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum After {
    Id(String),
    Block(OwnedKey),
}

/// Prefix, width and block of a row of `id_block`.
type OwnedKey = (String, i64, i64);

impl Default for After {
    fn default() -> Self {
        Self::Id(String::new())
    }
}

impl IdsWalk {
    /// Whether the walk has come to the end, and starts over.
    pub fn is_at_start(&self) -> bool {
        self.after == After::default()
    }
}

/// Dates of records: what can be, and the time that stands for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    /// Now, milliseconds since 1970 UTC.
    pub now_ms: i64,
    /// Before it no clock was set.
    pub earliest_ms: i64,
    /// After it is a time to come.
    pub latest_ms: i64,
}

impl Stamps {
    /// Whether a record may bear this date.
    pub fn can_be(&self, at_ms: i64) -> bool {
        (self.earliest_ms..=self.latest_ms).contains(&at_ms)
    }
}

impl Writer {
    /// The last time of day that was believed, milliseconds since 1970 UTC; `None` if none was stored.
    pub fn clock(&self) -> Result<Option<i64>, StoreError> {
        self.connection
            .query_row(SELECT_CLOCK, [], |row| row.get(0))
            .map_err(self.reading())
    }

    /// Stores a time of day that is believed.
    pub fn set_clock(&mut self, at_ms: i64) -> Result<(), StoreError> {
        self.connection
            .execute(SET_CLOCK, [at_ms])
            .map(|_| ())
            .map_err(StoreError::sqlite(&self.path, "store the time"))
    }

    /// Dates all whole segments anew whose date cannot be.
    pub fn restamp_segments(&mut self, stamps: &Stamps) -> Result<(), StoreError> {
        let Stamps {
            now_ms,
            earliest_ms,
            latest_ms,
        } = stamps;
        self.connection
            .execute(RESTAMP_SEGMENTS, [earliest_ms, latest_ms, now_ms])
            .map(|_| ())
            .map_err(StoreError::sqlite(&self.path, "date segments anew"))
    }

    /// The whole segment of ours with the lowest number.
    pub fn oldest_applied(&self) -> Result<Option<SegmentRow>, StoreError> {
        segments::oldest_applied(&self.connection).map_err(self.reading())
    }

    /// The highest number of ours that is no longer appended to; 0 if there is none.
    pub fn highest_sealed(&self) -> Result<u64, StoreError> {
        segments::highest_sealed(&self.connection).map_err(self.reading())
    }

    /// Moves a whole segment's sums to the `pruned` row and deletes its own, in one transaction;
    /// whether the row still was what was seen. The file is the caller's to remove afterwards.
    pub fn prune(&mut self, row: &SegmentRow, now_ms: i64) -> Result<bool, StoreError> {
        let doing = StoreError::sqlite(&self.path, "let a segment go");
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&doing)?;
        let sql = |transaction: &Connection| -> rusqlite::Result<bool> {
            segments::take_off_applied_sum(transaction, row.key)?;
            let deleted = transaction
                .prepare_cached(DELETE_WHOLE_SEGMENT)?
                .execute(params![row.key, row.applied_bytes, row.checksum])?;
            if deleted != 1 {
                return Ok(false);
            }
            transaction
                .prepare_cached(DELETE_REJECTED)?
                .execute([row.id.to_string()])?;
            let mut pruned = segments::pruned(transaction)?;
            pruned.number = row.id.number().unwrap_or_default().max(pruned.number);
            pruned.segments += 1;
            pruned.counts.add(&row.counts);
            pruned.net_check = pruned.net_check.wrapping_add(row.net_check);
            pruned.file_bytes = row.applied_bytes;
            pruned.file_checksum = row.checksum;
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

    /// One step of a walk over all ids: looks at up to `count` rows and expires those applied before
    /// `before_s` (seconds since 1970 UTC); those whose date cannot be are dated anew. A block of
    /// sequential ids expires as a whole, by its newest time. At the end the walk starts over. Only a step
    /// that finds some is a transaction.
    pub fn expire_ids(
        &mut self,
        walk: &IdsWalk,
        before_s: i64,
        stamps: &Stamps,
        count: u32,
    ) -> Result<IdsWalk, StoreError> {
        let doing = StoreError::sqlite(&self.path, "let ids go");
        let (after, found) = match &walk.after {
            After::Id(id) => {
                let looked =
                    ids_after(&self.connection, id, before_s, stamps, count).map_err(&doing)?;
                let first_block = || After::Block((String::new(), 0, 0));
                let after = looked.last.clone().map_or_else(first_block, After::Id);
                (after, Found::Ids(looked))
            }
            After::Block(key) => {
                let looked =
                    blocks_after(&self.connection, key, before_s, stamps, count).map_err(&doing)?;
                let after = looked
                    .last
                    .clone()
                    .map_or_else(After::default, After::Block);
                (after, Found::Blocks(looked))
            }
        };
        if !found.is_anything() {
            return Ok(IdsWalk { after, expired: 0 });
        }
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&doing)?;
        let expired = match found {
            Found::Ids(looked) => restamp_ids(&transaction, &looked.undated, stamps)
                .and_then(|()| delete_ids(&transaction, &looked.old)),
            Found::Blocks(looked) => restamp_blocks(&transaction, &looked.undated, stamps)
                .and_then(|()| delete_blocks(&transaction, &looked.old)),
        }
        .map_err(&doing)?;
        transaction.commit().map_err(&doing)?;
        Ok(IdsWalk { after, expired })
    }

    /// Gives a new database what a proof says of segments that retention let go: their sums, of
    /// each user's total what the kept files don't come to, and the ids that counted in them, which
    /// go on guarding. The database must have no totals yet.
    pub fn carry(&mut self, proof: &Snapshot, now_ms: i64) -> Result<(), StoreError> {
        let doing = StoreError::sqlite(&self.path, "carry the sums of pruned segments over");
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&doing)?;
        let mut inserted = Ok(0);
        proof.differences(&mut |user, database, files| {
            let micros = database.micros.wrapping_sub(files.micros);
            let events = database.events - files.events;
            if inserted.is_ok() {
                inserted = transaction
                    .prepare_cached(INSERT_CARRIED_TOTAL)
                    .and_then(|mut insert| insert.execute(params![user, micros, events, now_ms]));
            }
        })?;
        inserted
            .and_then(|_| carry_ids(&transaction, proof))
            .and_then(|()| carry_blocks(&transaction, proof))
            .and_then(|()| set_pruned(&transaction, &proof.pruned, now_ms))
            .map_err(&doing)?;
        transaction.commit().map_err(&doing)
    }
}

fn carry_ids(connection: &Connection, proof: &Snapshot) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(INSERT_EVENT_ID)?;
    proof.ids_of_pruned(&mut |row| {
        let segment: i64 = row.get(0)?;
        let applied_at_s: i64 = row.get(1)?;
        let id: String = row.get(2)?;
        let (payload, offset): (i64, i64) = (row.get(3)?, row.get(4)?);
        let row = params![segment, applied_at_s, id, payload, offset];
        insert.execute(row).map(|_| ())
    })
}

/// Of each block the runs of pruned segments: those of kept ones are counted again from the files.
fn carry_blocks(connection: &Connection, proof: &Snapshot) -> rusqlite::Result<()> {
    let kept: HashSet<i64> = proof.rows.iter().map(|row| row.key).collect();
    let mut insert = connection.prepare_cached(INSERT_ID_BLOCK)?;
    let mut bytes = Vec::new();
    proof.id_blocks(&mut |row, block| {
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

/// What a step of the walk saw of a table.
struct Looked<K, V> {
    /// The last key, unless that was the end of the table.
    last: Option<K>,
    /// Old rows: key, and which segments they are of.
    old: Vec<(K, V)>,
    /// Rows whose date cannot be.
    undated: Vec<K>,
}

enum Found {
    /// Each of one segment, by its key.
    Ids(Looked<String, i64>),
    /// How many numbers of each segment.
    Blocks(Looked<OwnedKey, Vec<(i64, u64)>>),
}

impl Found {
    fn is_anything(&self) -> bool {
        match self {
            Self::Ids(looked) => !(looked.old.is_empty() && looked.undated.is_empty()),
            Self::Blocks(looked) => !(looked.old.is_empty() && looked.undated.is_empty()),
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
) -> rusqlite::Result<Looked<String, i64>> {
    let mut select = connection.prepare_cached(SELECT_IDS_AFTER)?;
    let mut rows = select.query(params![after, count])?;
    let mut looked = Looked {
        last: None,
        old: Vec::new(),
        undated: Vec::new(),
    };
    let mut seen = 0;
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        let applied_at_s = row.get::<_, i64>(2)?;
        if !stamps.can_be(applied_at_s.saturating_mul(1000)) {
            looked.undated.push(id.clone());
        } else if applied_at_s < before_s {
            looked.old.push((id.clone(), row.get(1)?));
        }
        looked.last = Some(id);
        seen += 1;
    }
    looked.last = looked.last.filter(|_| seen == count);
    Ok(looked)
}

fn blocks_after(
    connection: &Connection,
    (prefix, width, number): &OwnedKey,
    before_s: i64,
    stamps: &Stamps,
    count: u32,
) -> rusqlite::Result<Looked<OwnedKey, Vec<(i64, u64)>>> {
    let mut select = connection.prepare_cached(SELECT_ID_BLOCKS_AFTER)?;
    let mut rows = select.query(params![prefix, width, number, count])?;
    let mut looked = Looked {
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
            looked.undated.push(key.clone());
        } else if applied_at_s < before_s {
            id_blocks::read(row, &mut block)?;
            let runs = block.runs().iter();
            let counts = runs.map(|run| (run.segment, u64::from(run.count)));
            looked.old.push((key.clone(), counts.collect()));
        }
        looked.last = Some(key);
        seen += 1;
    }
    looked.last = looked.last.filter(|_| seen == count);
    Ok(looked)
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

/// Notes in the rows of segments how many of their ids are gone; how many that are in all.
fn note_expired(
    connection: &Connection,
    counts: impl Iterator<Item = (i64, u64)>,
) -> rusqlite::Result<u64> {
    let mut by_segment = BTreeMap::<i64, u64>::new();
    for (segment, count) in counts {
        *by_segment.entry(segment).or_default() += count;
    }
    let mut note = connection.prepare_cached(ADD_IDS_LET_GO)?;
    for (segment, count) in &by_segment {
        // A pruned segment has no row to note it in.
        note.execute(params![segment, count])?;
    }
    Ok(by_segment.values().sum())
}
