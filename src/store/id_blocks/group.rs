//! Groups the events of a range by the place of their ids, so that each block is looked up once.
//!
//! Senders number their events in order, so consecutive events in the file mostly belong to one block.
//! A span of such events is sorted as a whole.

use std::ops::Range;

use super::{BlockKey, SequentialId};
use crate::aggregate::IdEvents;

/// An event whose id has a row of its own.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Row<'e> {
    pub(in crate::store) id: &'e str,
    index: u32,
}

impl Row<'_> {
    /// Among all events with an id.
    pub(in crate::store) fn index(&self) -> usize {
        index(self.index)
    }
}

/// Neighbouring events of one block.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Span<'e> {
    pub(in crate::store) key: BlockKey<'e>,
    start: u32,
    end: u32,
}

impl Span<'_> {
    /// Their indexes among all events with an id, in file order.
    pub(in crate::store) fn indexes(&self) -> Range<usize> {
        index(self.start)..index(self.end)
    }
}

/// All events of a range, in the order of the two tables.
pub(in crate::store) struct Grouped<'e> {
    /// By id, of one id in file order.
    pub(in crate::store) rows: Vec<Row<'e>>,
    /// By key, of one block in file order.
    spans: Vec<Span<'e>>,
    /// Of each event the number of its id modulo 128, if that is sequential.
    pub(in crate::store) numbers: Vec<u8>,
}

impl<'e> Grouped<'e> {
    pub(in crate::store) fn of(events: &'e IdEvents) -> Self {
        let mut grouped = Self {
            rows: Vec::new(),
            spans: Vec::new(),
            numbers: Vec::with_capacity(events.len()),
        };
        for (event, index) in events.iter().zip(0u32..) {
            let Some(id) = SequentialId::of(event.id) else {
                grouped.numbers.push(0);
                grouped.rows.push(Row {
                    id: event.id,
                    index,
                });
                continue;
            };
            grouped.numbers.push(id.number);
            match grouped.spans.last_mut() {
                Some(last) if last.end == index && last.key == id.key => last.end += 1,
                _ => grouped.spans.push(Span {
                    key: id.key,
                    start: index,
                    end: index + 1,
                }),
            }
        }
        grouped
            .rows
            .sort_unstable_by(|a, b| a.id.cmp(b.id).then(a.index.cmp(&b.index)));
        grouped
            .spans
            .sort_unstable_by(|a, b| a.key.cmp(&b.key).then(a.start.cmp(&b.start)));
        grouped
    }

    /// The spans of each block.
    pub(in crate::store) fn blocks(&self) -> impl Iterator<Item = &[Span<'e>]> {
        self.spans.chunk_by(|a, b| a.key == b.key)
    }
}

/// A range has far fewer than 2^32 events.
fn index(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}
