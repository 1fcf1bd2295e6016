//! What the tables of ids say about an event.

use std::ops::RangeInclusive;

use crate::store::IdEvent;

/// A row of an id.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct IdRow {
    pub(in crate::store) payload: i64,
    /// The [`Rows::place`](super::Rows::place) of the segment of the counted event.
    pub(in crate::store) place: i64,
    /// Where the line of that event starts.
    pub(in crate::store) offset: u64,
}

/// The result of looking up an event's id.
pub(in crate::store) enum IdLookup {
    /// No other event with the id was counted.
    New,
    /// An event with the id and the same payload was counted.
    Duplicate,
    /// An event with the id and another payload was counted.
    Conflict {
        /// The [`Rows::place`](super::Rows::place) of its segment.
        segment: i64,
        /// Where its line starts: one offset, or the offsets of the run that contains it.
        offsets: RangeInclusive<u64>,
    },
}

impl IdLookup {
    /// The status of an event of the segment at `place`, if `row` is the row of its id. A row of the event
    /// itself counts as new: it was inserted by this transaction.
    #[inline]
    pub(in crate::store) fn of(row: Option<&IdRow>, place: i64, event: &IdEvent<'_>) -> Self {
        let Some(row) = row else {
            return Self::New;
        };
        if row.payload != event.payload() {
            return Self::Conflict {
                segment: row.place,
                offsets: row.offset..=row.offset,
            };
        }
        if (row.place, row.offset) == (place, event.offset) {
            Self::New
        } else {
            Self::Duplicate
        }
    }
}
