//! Step 4: an event with an id counts if no event with that id was counted before.
//!
//! The sums per user include all events with an id, because most of them count. The others are
//! collected here and subtracted from the sums in step 5.

use std::ops::RangeInclusive;

use rusqlite::Connection;

use super::super::IdEvent;
use super::id_blocks::{Counts, IdBlocks};
use super::id_rows::IdRows;
use super::overflow::{OverflowReplay, count_line, refuse};
use super::{Failure, ROWS, Range, Tally};
use crate::aggregate::delta::signed;
use crate::store::id_blocks::{Grouped, SequentialId};

/// The result of looking up an event's id.
pub(super) enum IdLookup {
    /// No other event with the id was counted.
    New,
    /// An event with the id and the same payload was counted.
    Duplicate,
    /// An event with the id and another payload was counted.
    Conflict {
        /// `segment.key` of its segment.
        segment: i64,
        /// Where its line starts: one offset, or the offsets of the run that contains it.
        offsets: RangeInclusive<u64>,
    },
}

/// Counts the events with an id and, during an overflow replay, the lines of its users.
pub(super) fn count<'a>(
    transaction: &Connection,
    range: &Range<'a>,
    key: i64,
    replay: &mut OverflowReplay,
    tally: &mut Tally<'a>,
) -> Result<(), Failure> {
    let now_s = range.now_ms.div_euclid(1000);
    if replay.users.is_empty() {
        return Ok(count_together(transaction, range, key, now_s, tally)?);
    }
    let mut rows = IdRows::new(transaction, key, now_s)?;
    let mut blocks = IdBlocks::new(transaction, key, now_s)?;
    let mut lines = std::mem::take(&mut replay.lines).into_iter().peekable();
    for event in range.delta.with_id.iter() {
        while let Some(line) = lines.next_if(|line| line.offset < event.offset) {
            count_line(replay, tally, &line);
        }
        if let Some(id) = SequentialId::of(event.id) {
            blocks.one(&id, &event, |seen| -> Result<Counts, Failure> {
                Ok(decide(replay, tally, &event, seen))
            })?;
        } else {
            let seen = rows.look_up(&event)?;
            // An event that overflows its total is rejected, and its id is not stored.
            if decide(replay, tally, &event, &seen) == Counts::Yes {
                rows.insert(&event)?;
            }
        }
    }
    for line in lines {
        count_line(replay, tally, &line);
    }
    Ok(())
}

/// Reads and writes each table in the order of its key. Of several events with one id the first in the
/// file counts.
fn count_together<'a>(
    transaction: &Connection,
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
            record(tally, event, seen);
        }
    }
    IdBlocks::new(transaction, key, now_s)?.count(events, &grouped, |event, seen| {
        record(tally, event, seen);
    })
}

/// Counts an event whose user cannot overflow.
#[inline]
fn record<'a>(tally: &mut Tally<'a>, event: &IdEvent<'a>, seen: &IdLookup) {
    let amount = signed(event.kind, event.amount_micros);
    if matches!(seen, IdLookup::New) {
        tally.id_events += 1;
        tally.id_net = tally.id_net.wrapping_add(amount);
    } else {
        not_counted(tally, event, seen);
        tally.uncounted.push((event.user_id, amount));
    }
}

/// Counts an event during an overflow replay, in file order.
fn decide<'a>(
    replay: &mut OverflowReplay,
    tally: &mut Tally<'a>,
    event: &IdEvent<'a>,
    seen: &IdLookup,
) -> Counts {
    if !replay.users.contains_key(event.user_id) {
        record(tally, event, seen);
        return if matches!(seen, IdLookup::New) {
            Counts::Yes
        } else {
            Counts::No
        };
    }
    if !matches!(seen, IdLookup::New) {
        not_counted(tally, event, seen);
        return Counts::No;
    }
    let amount = signed(event.kind, event.amount_micros);
    if replay.take(event.user_id, amount) == Some(false) {
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
fn not_counted(tally: &mut Tally<'_>, event: &IdEvent<'_>, seen: &IdLookup) {
    let IdLookup::Conflict { segment, offsets } = seen else {
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
