//! Applies sequential ids to the table `id_block`.
//!
//! The events of a range are processed block by block, and those of a block in file order: of several
//! events with one id the first counts. Blocks are first inserted as if all of them were new, several in
//! one statement. Only if some existed already are these read, changed and updated.

use super::Rows;
use super::id_lookup::IdLookup;
use crate::aggregate::{IdEvent, IdEvents};
use crate::store::id_blocks::{Block, BlockKey, Grouped, NumberStatus, SequentialId, Span};

/// Applies the events of one segment.
pub(super) struct IdBlocks {
    /// The [`Rows::place`] of the segment that is applied.
    place: i64,
}

/// A block of the range; its memory is used again.
pub(in crate::store) struct Work<'e> {
    pub(in crate::store) key: BlockKey<'e>,
    /// Among the spans of the call.
    at: usize,
    /// The block, with the events of the range.
    pub(in crate::store) block: Block,
    /// The bytes of `block`.
    pub(in crate::store) bytes: Vec<u8>,
    /// Of its events, in file order.
    statuses: Vec<NumberStatus>,
}

impl Work<'_> {
    fn encode(&mut self) {
        self.bytes.clear();
        self.block.encode(&mut self.bytes);
    }
}

/// What events changed of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Change {
    Nothing,
    /// A run was closed.
    Closed,
    Counted,
}

impl IdBlocks {
    pub(super) fn new(place: i64) -> Self {
        Self { place }
    }

    /// Counts the sequential ids of a range that are not there; `each` gets what each event is.
    pub(super) fn count<'e, R: Rows>(
        &self,
        rows: &mut R,
        events: &'e IdEvents,
        grouped: &Grouped<'e>,
        mut each: impl FnMut(&IdEvent<'e>, &IdLookup),
    ) -> Result<(), R::Error> {
        let mut works: Vec<Work<'e>> = Vec::new();
        let mut blocks = grouped.blocks().peekable();
        let mut together: Vec<&[Span<'e>]> = Vec::new();
        while blocks.peek().is_some() {
            together.clear();
            together.extend(blocks.by_ref().take(R::TOGETHER));
            for (at, spans) in together.iter().enumerate() {
                let key = spans[0].key;
                match works.get_mut(at) {
                    Some(work) => work.key = key,
                    None => works.push(Work {
                        key,
                        at,
                        block: Block::default(),
                        bytes: Vec::new(),
                        statuses: Vec::new(),
                    }),
                }
            }
            let works = &mut works[..together.len()];
            for (spans, work) in together.iter().zip(&mut *works) {
                work.block.clear();
                self.add(events, grouped, spans, work);
                work.encode();
            }
            rows.upsert_blocks(works, |work| {
                let change = self.add(events, grouped, together[work.at], work);
                if change != Change::Nothing {
                    work.encode();
                }
                change
            })?;
            for (spans, work) in together.iter().zip(works) {
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
        work: &mut Work<'_>,
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
                work.block.count(number, hash, self.place, event.offset);
                change = Change::Counted;
            } else if work.block.pass(self.place) && change == Change::Nothing {
                change = Change::Closed;
            }
            work.statuses.push(status);
        }
        change
    }

    /// What an event is, whose block `decide` may then count it in: for lines that go one by one.
    pub(super) fn one<R: Rows>(
        &self,
        rows: &mut R,
        id: &SequentialId<'_>,
        event: &IdEvent<'_>,
        decide: impl FnOnce(&IdLookup) -> Counted,
    ) -> Result<(), R::Error> {
        let mut work = Work {
            key: id.key,
            at: 0,
            block: Block::default(),
            bytes: Vec::new(),
            statuses: Vec::new(),
        };
        let block = &mut work.block;
        let is_there = rows.load_block(&id.key, block)?;
        let hash = event.payload_hash();
        let counts = decide(&seen(block.status(id.number, hash), block, id.number));
        let change = match counts {
            Counted::Yes => {
                block.count(id.number, hash, self.place, event.offset);
                Change::Counted
            }
            Counted::No if block.pass(self.place) => Change::Closed,
            Counted::No => Change::Nothing,
        };
        if change == Change::Nothing {
            return Ok(());
        }
        work.encode();
        if is_there {
            rows.update_block(&work, change)
        } else {
            rows.insert_block(&work)
        }
    }
}

/// Whether an event is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
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
