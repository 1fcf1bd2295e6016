//! Step 4: what has an id is counted if no event of that id was.
//!
//! The sums per user have the events with an id as if all of them counted, which most do; those that do
//! not are collected and taken out of the sums in step 5.

use std::ops::RangeInclusive;

use rusqlite::Transaction;

use super::super::IdEvent;
use super::id_blocks::{Counts, IdBlocks};
use super::id_rows::IdRows;
use super::overflow::{OverflowReplay, count_line, refuse};
use super::{Failure, ROWS, Range, Tally};
use crate::aggregate::delta::signed;
use crate::store::id_blocks::{Grouped, SequentialId};

/// What the tables know of an event's id.
pub(super) enum Seen {
    /// No other event of that id was counted.
    Never,
    /// One of the same payload was.
    Same,
    /// One of another payload was.
    Other {
        /// `segment.key` of the segment in which it was.
        segment: i64,
        /// Where its line starts, as far as that is kept.
        offsets: RangeInclusive<u64>,
    },
}

/// Step 4, and the lines of suspects: what has an id is counted if no event of that id was.
pub(super) fn count<'a>(
    transaction: &Transaction<'_>,
    range: &Range<'a>,
    key: i64,
    one_by_one: &mut OverflowReplay,
    tally: &mut Tally<'a>,
) -> Result<(), Failure> {
    let now_s = range.now_ms.div_euclid(1000);
    if one_by_one.users.is_empty() {
        return Ok(count_together(transaction, range, key, now_s, tally)?);
    }
    let mut rows = IdRows::new(transaction, key, now_s)?;
    let mut blocks = IdBlocks::new(transaction, key, now_s)?;
    let mut lines = std::mem::take(&mut one_by_one.lines).into_iter().peekable();
    for event in range.delta.with_id.iter() {
        while let Some(line) = lines.next_if(|line| line.offset < event.offset) {
            count_line(one_by_one, tally, &line);
        }
        if let Some(id) = SequentialId::of(event.id) {
            blocks.one(&id, &event, |seen| -> Result<Counts, Failure> {
                Ok(decide(one_by_one, tally, &event, seen))
            })?;
        } else {
            let seen = rows.look_up(&event)?;
            // What comes of a suspect's event decides whether its id is kept.
            if decide(one_by_one, tally, &event, &seen) == Counts::Yes {
                rows.insert(&event)?;
            }
        }
    }
    for line in lines {
        count_line(one_by_one, tally, &line);
    }
    Ok(())
}

/// Both tables are fast in their own order; of one id the first in the file goes first.
fn count_together<'a>(
    transaction: &Transaction<'_>,
    range: &Range<'a>,
    key: i64,
    now_s: i64,
    tally: &mut Tally<'a>,
) -> rusqlite::Result<()> {
    let events = range.delta.with_id;
    if events.is_empty() {
        return Ok(());
    }
    let grouped = Grouped::of(events);
    let mut rows = IdRows::new(transaction, key, now_s)?;
    let mut together = Vec::with_capacity(ROWS);
    let mut seen = Vec::with_capacity(ROWS);
    for chunk in grouped.rows.chunks(ROWS) {
        together.clear();
        together.extend(chunk.iter().filter_map(|row| events.get(row.index())));
        rows.insert_or_look_up(&together, &mut seen)?;
        for (event, seen) in together.iter().zip(&seen) {
            settle(tally, event, seen);
        }
    }
    IdBlocks::new(transaction, key, now_s)?.count(events, &grouped, |event, seen| {
        settle(tally, event, seen);
    })
}

/// An event whose user is no suspect.
#[inline]
fn settle<'a>(tally: &mut Tally<'a>, event: &IdEvent<'a>, seen: &Seen) {
    let amount = signed(event.kind, event.amount_micros);
    if matches!(seen, Seen::Never) {
        tally.id_events += 1;
        tally.id_net = tally.id_net.wrapping_add(amount);
    } else {
        not_counted(tally, event, seen);
        tally.uncounted.push((event.user_id, amount));
    }
}

/// An event where some user is a suspect: in file order.
fn decide<'a>(
    one_by_one: &mut OverflowReplay,
    tally: &mut Tally<'a>,
    event: &IdEvent<'a>,
    seen: &Seen,
) -> Counts {
    if !one_by_one.users.contains_key(event.user_id) {
        settle(tally, event, seen);
        return if matches!(seen, Seen::Never) {
            Counts::Yes
        } else {
            Counts::No
        };
    }
    if !matches!(seen, Seen::Never) {
        not_counted(tally, event, seen);
        return Counts::No;
    }
    let amount = signed(event.kind, event.amount_micros);
    if one_by_one.take(event.user_id, amount) == Some(false) {
        refuse(tally, event.offset, event.user_id);
        return Counts::No;
    }
    tally.events += 1;
    tally.net = tally.net.wrapping_add(amount);
    tally.id_events += 1;
    tally.id_net = tally.id_net.wrapping_add(amount);
    Counts::Yes
}

#[cold]
fn not_counted(tally: &mut Tally<'_>, event: &IdEvent<'_>, seen: &Seen) {
    let Seen::Other { segment, offsets } = seen else {
        tally.duplicates += 1;
        return;
    };
    tally.refused.push(event.offset, "id_conflict", || {
        let (first, last) = (offsets.start(), offsets.end());
        let place = if first == last {
            format!("offset {first}")
        } else {
            format!("between offsets {first} and {last}")
        };
        format!(
            "/id: {:?} was counted before with another userId, name or value (segment {segment}, {place})",
            event.id
        )
    });
}
