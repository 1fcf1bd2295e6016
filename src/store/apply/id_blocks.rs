//! Applies sequential ids to the table `id_block`.
//!
//! The events of a range are processed block by block, and those of a block in file order: of several
//! events with one id the first counts. Blocks are first inserted as if all of them were new, several in
//! one statement. Only if some existed already are these read, changed and updated. A stored block with
//! exactly the bytes that were to be inserted was inserted by this statement: its runs lie in this range,
//! which was not applied before.

use rusqlite::{CachedStatement, Connection, params};

use super::ids::IdLookup;
use super::{ROWS, many_rows};
use crate::aggregate::{IdEvent, IdEvents};
use crate::store::id_blocks::{
    self, Block, BlockKey, Grouped, INSERT_ID_BLOCK, NumberStatus, SELECT_ID_BLOCK, SequentialId,
    Span,
};

const UPDATE_ID_BLOCK: &str = include_str!("../../../sql/query/update_id_block.sql");

/// The table and its prepared statements.
pub(super) struct IdBlocks<'t> {
    transaction: &'t Connection,
    select: CachedStatement<'t>,
    one: CachedStatement<'t>,
    /// Prepared when there are so many blocks.
    many: Option<CachedStatement<'t>>,
    update: CachedStatement<'t>,
    /// `segment.key` of the segment that is applied.
    segment: i64,
    now_s: i64,
}

/// A block of the range; its memory is used again.
#[derive(Default)]
struct Work {
    block: Block,
    bytes: Vec<u8>,
    /// Of its events, in file order.
    statuses: Vec<NumberStatus>,
}

/// What events changed of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    /// A run was closed.
    Closed,
    /// Some were counted.
    Counted,
}

impl<'t> IdBlocks<'t> {
    pub(super) fn new(
        transaction: &'t Connection,
        segment: i64,
        now_s: i64,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            transaction,
            select: transaction.prepare_cached(SELECT_ID_BLOCK)?,
            one: transaction.prepare_cached(INSERT_ID_BLOCK)?,
            many: None,
            update: transaction.prepare_cached(UPDATE_ID_BLOCK)?,
            segment,
            now_s,
        })
    }

    /// Counts the sequential ids of a range that are not there; `each` gets what each event is.
    pub(super) fn count<'e>(
        &mut self,
        events: &'e IdEvents,
        grouped: &Grouped<'e>,
        mut each: impl FnMut(&IdEvent<'e>, &IdLookup),
    ) -> rusqlite::Result<()> {
        let mut works: Vec<Work> = Vec::new();
        let mut blocks = grouped.blocks().peekable();
        let mut together: Vec<&[Span<'e>]> = Vec::with_capacity(ROWS);
        while blocks.peek().is_some() {
            together.clear();
            together.extend(blocks.by_ref().take(ROWS));
            works.resize_with(together.len().max(works.len()), Work::default);
            for (spans, work) in together.iter().zip(&mut works) {
                work.block.clear();
                work.bytes.clear();
                self.add(events, grouped, spans, work);
                work.block.encode(&mut work.bytes);
            }
            self.insert_or_update(events, grouped, &together, &mut works)?;
            for (spans, work) in together.iter().zip(&works) {
                let indexes = spans.iter().flat_map(Span::indexes);
                for (index, status) in indexes.zip(&work.statuses) {
                    if let Some(event) = events.get(index) {
                        let number = grouped.numbers[index];
                        each(&event, &seen(*status, &work.block, number));
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds the events of a block to what `work` holds of it.
    fn add(
        &self,
        events: &IdEvents,
        grouped: &Grouped<'_>,
        spans: &[Span<'_>],
        work: &mut Work,
    ) -> Change {
        let mut change = Change::Nothing;
        work.statuses.clear();
        for index in spans.iter().flat_map(Span::indexes) {
            let (Some(event), number) = (events.get(index), grouped.numbers[index]) else {
                continue;
            };
            let hash = event.payload_hash();
            let status = work.block.status(number, hash);
            if status == NumberStatus::New {
                work.block.count(number, hash, self.segment, event.offset);
                change = Change::Counted;
            } else if work.block.pass(self.segment) && change == Change::Nothing {
                change = Change::Closed;
            }
            work.statuses.push(status);
        }
        change
    }

    /// Inserts the blocks that are not there and adds to those that are.
    fn insert_or_update(
        &mut self,
        events: &IdEvents,
        grouped: &Grouped<'_>,
        together: &[&[Span<'_>]],
        works: &mut [Work],
    ) -> rusqlite::Result<()> {
        let keys = together.iter().map(|spans| spans[0].key);
        let mut inserted = 0;
        if together.len() == ROWS {
            let many = match &mut self.many {
                Some(many) => many,
                none => {
                    let sql = many_rows(INSERT_ID_BLOCK, 1, 4, "?1");
                    none.insert(self.transaction.prepare_cached(&sql)?)
                }
            };
            inserted = insert_blocks(many, keys.clone().zip(&*works), self.now_s)?;
        } else {
            for row in keys.clone().zip(&*works) {
                inserted += insert_blocks(&mut self.one, std::iter::once(row), self.now_s)?;
            }
        }
        if inserted == together.len() {
            return Ok(());
        }
        for ((spans, key), work) in together.iter().zip(keys).zip(works) {
            let Work { block, bytes, .. } = work;
            if !load(&mut self.select, &key, Some(bytes), block)? {
                continue; // as it was inserted
            }
            let change = self.add(events, grouped, spans, work);
            self.update(&key, &work.block, change, &mut work.bytes)?;
        }
        Ok(())
    }

    /// Writes a block that is there, if anything of it changed.
    fn update(
        &mut self,
        key: &BlockKey<'_>,
        block: &Block,
        change: Change,
        bytes: &mut Vec<u8>,
    ) -> rusqlite::Result<()> {
        if change == Change::Nothing {
            return Ok(());
        }
        bytes.clear();
        block.encode(bytes);
        let now_s = (change == Change::Counted).then_some(self.now_s);
        self.update
            .execute(params![key.prefix, key.width, key.block, &*bytes, now_s])
            .map(|_| ())
    }

    /// What an event is, whose block `decide` may then count it in: for lines that go one by one.
    pub(super) fn one<E: From<rusqlite::Error>>(
        &mut self,
        id: &SequentialId<'_>,
        event: &IdEvent<'_>,
        decide: impl FnOnce(&IdLookup) -> Result<Counts, E>,
    ) -> Result<(), E> {
        let mut block = Block::default();
        let mut bytes = Vec::new();
        let is_there = load(&mut self.select, &id.key, None, &mut block)?;
        let hash = event.payload_hash();
        let counts = decide(&seen(block.status(id.number, hash), &block, id.number))?;
        let change = match counts {
            Counts::Yes => {
                block.count(id.number, hash, self.segment, event.offset);
                Change::Counted
            }
            Counts::No if block.pass(self.segment) => Change::Closed,
            Counts::No => Change::Nothing,
        };
        if is_there {
            self.update(&id.key, &block, change, &mut bytes)?;
        } else if counts == Counts::Yes {
            block.encode(&mut bytes);
            let work = Work {
                block,
                bytes,
                ..Work::default()
            };
            insert_blocks(&mut self.one, std::iter::once((id.key, &work)), self.now_s)?;
        }
        Ok(())
    }
}

/// Whether an event is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Counts {
    Yes,
    No,
}

fn seen(status: NumberStatus, block: &Block, number: u8) -> IdLookup {
    match (status, block.run_of(number)) {
        (NumberStatus::New, _) => IdLookup::New,
        (NumberStatus::Conflict, Some(run)) => IdLookup::Conflict {
            segment: run.segment,
            offsets: run.first_offset..=run.last_offset,
        },
        _ => IdLookup::Duplicate,
    }
}

/// Reads a block, if it is there and its bytes are not `known`.
fn load(
    select: &mut CachedStatement<'_>,
    key: &BlockKey<'_>,
    known: Option<&[u8]>,
    block: &mut Block,
) -> rusqlite::Result<bool> {
    let mut rows = select.query(params![key.prefix, key.width, key.block])?;
    match rows.next()? {
        None => Ok(false),
        Some(row) if Some(id_blocks::bytes(row)?) == known => Ok(false),
        Some(row) => id_blocks::read(row, block).map(|()| true),
    }
}

/// How many of the blocks were not there before.
fn insert_blocks<'w, 'k>(
    insert: &mut CachedStatement<'_>,
    blocks: impl Iterator<Item = (BlockKey<'k>, &'w Work)>,
    now_s: i64,
) -> rusqlite::Result<usize> {
    insert.raw_bind_parameter(1, now_s)?;
    for (row, (key, work)) in blocks.enumerate() {
        let first = 2 + row * 4;
        insert.raw_bind_parameter(first, key.prefix)?;
        insert.raw_bind_parameter(first + 1, key.width)?;
        insert.raw_bind_parameter(first + 2, key.block)?;
        insert.raw_bind_parameter(first + 3, &*work.bytes)?;
    }
    insert.raw_execute()
}
