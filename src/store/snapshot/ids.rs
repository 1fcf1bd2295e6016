//! The status of events with an id, looked up in the tables of ids of an SQLite file.

use rusqlite::{Connection, OptionalExtension, params};

use crate::store::id_blocks::{self, Block, Grouped, NumberStatus, SELECT_ID_BLOCK, Span};
use crate::store::{IdEvent, IdEvents};

const SELECT_EVENT_ID: &str = include_str!("../../../sql/query/select_event_id.sql");

/// The status of an event with an id, according to the tables of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdStatus {
    /// The event was counted.
    Counted,
    /// Another event with the same id and payload was counted.
    Duplicate,
    /// An event with the same id and another payload was counted.
    Contradicted,
    /// The id is not in the tables: it expired, or the event was not counted.
    Unknown,
}

/// Calls `each` with the status of these events of the segment with this key. Each table is read in the order
/// of its key.
pub(super) fn statuses<'e>(
    database: &Connection,
    key: i64,
    events: &'e IdEvents,
    each: &mut dyn FnMut(&IdEvent<'e>, IdStatus),
) -> rusqlite::Result<()> {
    let grouped = Grouped::of(events);
    let reading = database.unchecked_transaction()?;
    let mut select = reading.prepare_cached(SELECT_EVENT_ID)?;
    for event in grouped
        .rows
        .iter()
        .filter_map(|row| events.get(row.index()))
    {
        let row = select.query_row([event.id], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get(2)?))
        });
        let status = match row.optional()? {
            None => IdStatus::Unknown,
            Some((payload, ..)) if payload != event.payload() => IdStatus::Contradicted,
            Some((_, segment, offset)) if (segment, offset) == (key, event.offset) => {
                IdStatus::Counted
            }
            Some(_) => IdStatus::Duplicate,
        };
        each(&event, status);
    }
    let mut select = reading.prepare_cached(SELECT_ID_BLOCK)?;
    let mut block = Block::default();
    for spans in grouped.blocks() {
        let of = &spans[0].key;
        let mut rows = select.query(params![of.prefix, of.width, of.block])?;
        block.clear();
        if let Some(row) = rows.next()?
            && block.decode(id_blocks::bytes(row)?).is_err()
        {
            block.clear(); // Reported as a fault.
        }
        for index in spans.iter().flat_map(Span::indexes) {
            if let Some(event) = events.get(index) {
                let number = grouped.numbers[index];
                each(&event, status_in(&block, number, key, &event));
            }
        }
    }
    Ok(())
}

/// The status of an event according to its block.
pub(in crate::store) fn status_in(
    block: &Block,
    number: u8,
    key: i64,
    event: &IdEvent<'_>,
) -> IdStatus {
    match block.status(number, event.payload_hash()) {
        NumberStatus::New => IdStatus::Unknown,
        NumberStatus::Conflict => IdStatus::Contradicted,
        NumberStatus::Duplicate => match block.run_of(number) {
            Some(run) if run.is_at(key, event.offset) => IdStatus::Counted,
            _ => IdStatus::Duplicate,
        },
    }
}
