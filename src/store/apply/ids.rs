//! Step 4: an event with an id counts if no event with that id was counted before.
//!
//! The sums per user include all events with an id, because most of them count. The others are
//! collected here and subtracted from the sums in step 5.

use super::super::IdEvent;
use super::id_blocks::{Counted, IdBlocks};
pub(in crate::store) use super::id_lookup::{IdLookup, IdRow};
use super::overflow::{OverflowReplay, count_line, refuse};
use super::{Failure, Range, RangeTally, Rows};
use crate::aggregate::delta::signed;
use crate::store::id_blocks::{Grouped, SequentialId};

/// Counts the events with an id and, during an overflow replay, the lines of its users.
pub(super) fn count<'a, R: Rows>(
    rows: &mut R,
    range: &Range<'a>,
    key: i64,
    replay: &mut OverflowReplay,
    tally: &mut RangeTally<'a>,
) -> Result<(), Failure<R::Error>> {
    let place = rows.place(key);
    if replay.users.is_empty() {
        return Ok(count_together(rows, range, place, tally)?);
    }
    let blocks = IdBlocks::new(place);
    let mut lines = std::mem::take(&mut replay.lines).into_iter().peekable();
    for event in range.delta.with_id.iter() {
        while let Some(line) = lines.next_if(|line| line.offset < event.offset) {
            count_line(replay, tally, &line);
        }
        if let Some(id) = SequentialId::of(event.id) {
            blocks.one(rows, &id, &event, |seen| {
                decide(replay, tally, &event, seen)
            })?;
        } else {
            let seen = rows.look_up_id(place, &event)?;
            // An event that overflows its total is rejected, and its id is not stored.
            match (decide(replay, tally, &event, &seen), seen) {
                (Counted::Yes, _) => rows.insert_id(place, &event)?,
                (Counted::No, IdLookup::New) => rows.reject_id(place, &event)?,
                (Counted::No, _) => {}
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
fn count_together<'a, R: Rows>(
    rows: &mut R,
    range: &Range<'a>,
    place: i64,
    tally: &mut RangeTally<'a>,
) -> Result<(), R::Error> {
    let events = range.delta.with_id;
    if events.is_empty() {
        return Ok(());
    }
    let grouped = Grouped::of(events);
    let room = R::TOGETHER.min(grouped.rows.len());
    let mut together = Vec::with_capacity(room);
    let mut seen = Vec::with_capacity(room);
    for chunk in grouped.rows.chunks(R::TOGETHER) {
        together.clear();
        together.extend(chunk.iter().filter_map(|row| events.get(row.index())));
        seen.clear();
        rows.insert_ids(place, &together, &mut seen)?;
        for (event, seen) in together.iter().zip(&seen) {
            record(tally, event, seen);
        }
    }
    IdBlocks::new(place).count(rows, events, &grouped, |event, seen| {
        record(tally, event, seen);
    })
}

/// Counts an event whose user cannot overflow.
#[inline]
fn record<'a>(tally: &mut RangeTally<'a>, event: &IdEvent<'a>, seen: &IdLookup) {
    let amount = signed(event.kind, event.amount_micros);
    if matches!(seen, IdLookup::New) {
        tally.added.ids += 1;
        tally.id_net = tally.id_net.wrapping_add(amount);
    } else {
        not_counted(tally, event, seen);
        tally.uncounted.push((event.user_id, amount));
    }
}

/// Counts an event during an overflow replay, in file order.
fn decide<'a>(
    replay: &mut OverflowReplay,
    tally: &mut RangeTally<'a>,
    event: &IdEvent<'a>,
    seen: &IdLookup,
) -> Counted {
    if !replay.users.contains_key(event.user_id) {
        record(tally, event, seen);
        return if matches!(seen, IdLookup::New) {
            Counted::Yes
        } else {
            Counted::No
        };
    }
    if !matches!(seen, IdLookup::New) {
        not_counted(tally, event, seen);
        return Counted::No;
    }
    let amount = signed(event.kind, event.amount_micros);
    if replay.take(event.user_id, amount) == Some(false) {
        refuse(tally, event.offset, event.user_id);
        return Counted::No;
    }
    tally.added.event(amount);
    tally.added.ids += 1;
    tally.id_net = tally.id_net.wrapping_add(amount);
    Counted::Yes
}

#[cold]
fn not_counted(tally: &mut RangeTally<'_>, event: &IdEvent<'_>, seen: &IdLookup) {
    let IdLookup::Conflict { segment, offsets } = seen else {
        tally.duplicates += 1;
        return;
    };
    tally.rejected.push(event.offset, "id_conflict", || {
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
