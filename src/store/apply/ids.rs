//! Step 4: what has an id is counted if no event of that id was.

use rusqlite::{CachedStatement, Connection};

use super::super::IdEvent;
use super::overflow::{OverflowReplay, count_line, refuse};
use super::{Failure, ROWS, Range, Tally, many_rows};
use crate::aggregate::delta::signed;

const INSERT_EVENT_ID: &str = include_str!("../../../sql/query/insert_event_id.sql");
const SELECT_EVENT_ID: &str = include_str!("../../../sql/query/select_event_id.sql");
const DELETE_EVENT_ID: &str = include_str!("../../../sql/query/delete_event_id.sql");

/// Step 4, and the lines of suspects: what has an id is counted if no event of that id was.
pub(super) fn count<'a>(
    transaction: &Connection,
    range: &Range<'a>,
    key: i64,
    one_by_one: &mut OverflowReplay,
    tally: &mut Tally<'a>,
) -> Result<(), Failure> {
    let mut ids = Ids::new(transaction, key, range.now_ms)?;
    let mut events: Vec<IdEvent<'a>> = range.delta.with_id.iter().collect();
    if one_by_one.users.is_empty() {
        // The table is fast in the order of its ids; of one id the first in the file goes first.
        events.sort_unstable_by(|a, b| a.id.cmp(b.id).then(a.offset.cmp(&b.offset)));
    }
    // What comes of a suspect's event decides whether its id stays.
    let together = if one_by_one.users.is_empty() { ROWS } else { 1 };
    let mut lines = std::mem::take(&mut one_by_one.lines).into_iter().peekable();
    let mut seen = Vec::with_capacity(together);
    for events in events.chunks(together) {
        ids.insert_or_look_up(events, &mut seen)?;
        for (event, seen) in events.iter().zip(&seen) {
            while let Some(line) = lines.next_if(|line| line.offset < event.offset) {
                count_line(one_by_one, tally, &line);
            }
            count_id_event(&mut ids, one_by_one, tally, event, seen)?;
        }
    }
    for line in lines {
        count_line(one_by_one, tally, &line);
    }
    Ok(())
}

fn count_id_event<'a>(
    ids: &mut Ids<'_>,
    one_by_one: &mut OverflowReplay,
    tally: &mut Tally<'a>,
    event: &IdEvent<'a>,
    seen: &Seen,
) -> rusqlite::Result<()> {
    match seen {
        Seen::Never => {}
        Seen::Same => {
            tally.duplicates += 1;
            return Ok(());
        }
        Seen::Other { segment, offset } => {
            tally.refused.push(event.offset, "id_conflict", || {
                format!(
                    "/id: {:?} was counted before with another userId, name or value (segment {segment}, offset {offset})",
                    event.id
                )
            });
            return Ok(());
        }
    }
    let amount = signed(event.kind, event.amount_micros);
    match one_by_one.take(event.user_id, amount) {
        None => tally.with_id.push((event.user_id, amount)),
        Some(true) => {}
        Some(false) => {
            refuse(tally, event.offset, event.user_id);
            return ids.take_back(event);
        }
    }
    tally.events += 1;
    tally.id_events += 1;
    tally.net = tally.net.wrapping_add(amount);
    tally.id_net = tally.id_net.wrapping_add(amount);
    Ok(())
}

/// The table of ids, and the statements to it.
struct Ids<'t> {
    transaction: &'t Connection,
    select: CachedStatement<'t>,
    one: CachedStatement<'t>,
    /// Prepared when there are so many events.
    many: Option<CachedStatement<'t>>,
    delete: CachedStatement<'t>,
    key: i64,
    now_s: i64,
}

enum Seen {
    Never,
    Same,
    Other { segment: i64, offset: u64 },
}

impl<'t> Ids<'t> {
    fn new(transaction: &'t Connection, key: i64, now_ms: i64) -> rusqlite::Result<Self> {
        Ok(Self {
            transaction,
            select: transaction.prepare_cached(SELECT_EVENT_ID)?,
            one: transaction.prepare_cached(INSERT_EVENT_ID)?,
            many: None,
            delete: transaction.prepare_cached(DELETE_EVENT_ID)?,
            key,
            now_s: now_ms.div_euclid(1000),
        })
    }

    /// Inserts the ids that are not there, the first of equal ones; `seen` tells what of which.
    fn insert_or_look_up(
        &mut self,
        events: &[IdEvent<'_>],
        seen: &mut Vec<Seen>,
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
                Seen::Never
            } else {
                self.look_up(event)?
            });
        }
        Ok(())
    }

    /// Whose id it is that is there: the event's own, or that of one before.
    fn look_up(&mut self, event: &IdEvent<'_>) -> rusqlite::Result<Seen> {
        let (payload, segment, offset) = self.select.query_row([event.id], |row| {
            Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?))
        })?;
        Ok(if segment == self.key && offset == event.offset {
            Seen::Never
        } else if payload == event.payload() {
            Seen::Same
        } else {
            Seen::Other { segment, offset }
        })
    }

    /// The event was not counted after all.
    fn take_back(&mut self, event: &IdEvent<'_>) -> rusqlite::Result<()> {
        self.delete.execute([event.id]).map(|_| ())
    }
}

/// How many of the events' ids were not there before.
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
