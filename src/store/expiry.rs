//! Expiry of ids: a walk over the two tables of ids, in steps.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, TransactionBehavior, params};

use super::id_blocks::{self, Block};
use super::{SqliteWriter, Stamps, StoreError, overall};

const RESTAMP_EVENT_ID: &str = include_str!("../../sql/query/restamp_event_id.sql");
const SELECT_IDS_AFTER: &str = include_str!("../../sql/query/select_ids_after.sql");
const DELETE_EVENT_ID: &str = include_str!("../../sql/query/delete_event_id.sql");
const ADD_IDS_EXPIRED: &str = include_str!("../../sql/query/add_ids_expired.sql");
const SELECT_ID_BLOCKS_AFTER: &str = include_str!("../../sql/query/select_id_blocks_after.sql");
const DELETE_ID_BLOCK: &str = include_str!("../../sql/query/delete_id_block.sql");
const RESTAMP_ID_BLOCK: &str = include_str!("../../sql/query/restamp_id_block.sql");

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

impl SqliteWriter {
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
        .and_then(|expired| overall::take_off_ids(&transaction, expired).map(|()| expired))
        .map_err(&doing)?;
        transaction.commit().map_err(&doing)?;
        Ok(IdsWalk { after, expired })
    }
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

/// The key in a row of `id_block`.
pub(super) fn key_of(row: &Row<'_>) -> rusqlite::Result<OwnedKey> {
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
