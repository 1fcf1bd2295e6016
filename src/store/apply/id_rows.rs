//! Ids that have a row of their own in `event_id`.

use rusqlite::{CachedStatement, Connection, OptionalExtension};

use super::ids::IdLookup;
use super::{ROWS, many_rows};
use crate::aggregate::IdEvent;

const INSERT_EVENT_ID: &str = include_str!("../../../sql/query/insert_event_id.sql");
const SELECT_EVENT_ID: &str = include_str!("../../../sql/query/select_event_id.sql");

/// The table and its prepared statements.
pub(super) struct IdRows<'t> {
    transaction: &'t Connection,
    select: CachedStatement<'t>,
    one: CachedStatement<'t>,
    /// Inserts [`ROWS`] rows; prepared on first use.
    many: Option<CachedStatement<'t>>,
    key: i64,
    now_s: i64,
}

impl<'t> IdRows<'t> {
    pub(super) fn new(transaction: &'t Connection, key: i64, now_s: i64) -> rusqlite::Result<Self> {
        Ok(Self {
            transaction,
            select: transaction.prepare_cached(SELECT_EVENT_ID)?,
            one: transaction.prepare_cached(INSERT_EVENT_ID)?,
            many: None,
            key,
            now_s,
        })
    }

    /// Inserts the ids that are not in the table, of equal ones the first, and reports the status of each
    /// in `seen`.
    pub(super) fn insert_or_look_up(
        &mut self,
        events: &[IdEvent<'_>],
        seen: &mut Vec<IdLookup>,
    ) -> rusqlite::Result<()> {
        seen.clear();
        let mut inserted = 0;
        if events.len() == ROWS {
            let many = match &mut self.many {
                Some(many) => many,
                none => {
                    let sql = many_rows(INSERT_EVENT_ID, 2, 3, "?1, ?2");
                    none.insert(self.transaction.prepare_cached(&sql)?)
                }
            };
            inserted = insert_ids(many, events, self.key, self.now_s)?;
        } else {
            for event in events.chunks(1) {
                inserted += insert_ids(&mut self.one, event, self.key, self.now_s)?;
            }
        }
        for event in events {
            seen.push(if inserted == events.len() {
                IdLookup::New
            } else {
                self.look_up(event)?
            });
        }
        Ok(())
    }

    /// InputFormat an id up. A row of the event itself (the same segment and offset) counts as new.
    pub(super) fn look_up(&mut self, event: &IdEvent<'_>) -> rusqlite::Result<IdLookup> {
        let found = self.select.query_row([event.id], |row| {
            Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?))
        });
        Ok(match found.optional()? {
            None => IdLookup::New,
            Some((_, segment, offset)) if segment == self.key && offset == event.offset => {
                IdLookup::New
            }
            Some((payload, ..)) if payload == event.payload() => IdLookup::Duplicate,
            Some((_, segment, offset)) => IdLookup::Conflict {
                segment,
                offsets: offset..=offset,
            },
        })
    }

    /// Inserts an id that is not in the table.
    pub(super) fn insert(&mut self, event: &IdEvent<'_>) -> rusqlite::Result<()> {
        insert_ids(&mut self.one, &[*event], self.key, self.now_s).map(|_| ())
    }
}

/// Inserts the ids of the events and returns how many were new.
fn insert_ids(
    insert: &mut CachedStatement<'_>,
    events: &[IdEvent<'_>],
    key: i64,
    now_s: i64,
) -> rusqlite::Result<usize> {
    insert.raw_bind_parameter(1, key)?;
    insert.raw_bind_parameter(2, now_s)?;
    for (row, event) in events.iter().enumerate() {
        let first = 3 + row * 3;
        insert.raw_bind_parameter(first, event.id)?;
        insert.raw_bind_parameter(first + 1, event.payload())?;
        insert.raw_bind_parameter(first + 2, event.offset)?;
    }
    insert.raw_execute()
}
