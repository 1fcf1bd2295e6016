//! Statements for one row and for [`ROWS`] rows, and their parameters.

use rusqlite::{CachedStatement, Connection, params};

use crate::store::IdEvent;
use crate::store::apply::id_blocks::Work;
use crate::store::apply::totals::SAFE;
use crate::store::id_blocks::{self, Block, BlockKey};

/// The number of rows per statement.
pub(super) const ROWS: usize = 64;

/// A statement, prepared on first use.
pub(super) type Prepared<'t> = Option<CachedStatement<'t>>;

/// The statement in `slot`, which is prepared on first use.
pub(super) fn prepared<'s, 't, S: AsRef<str>>(
    slot: &'s mut Prepared<'t>,
    connection: &'t Connection,
    sql: impl FnOnce() -> S,
) -> rusqlite::Result<&'s mut CachedStatement<'t>> {
    match slot {
        Some(statement) => Ok(statement),
        none => Ok(none.insert(connection.prepare_cached(sql().as_ref())?)),
    }
}

/// Inserts the ids of the events and returns how many were new.
pub(super) fn insert_ids(
    insert: &mut CachedStatement<'_>,
    events: &[IdEvent<'_>],
    place: i64,
    now_s: i64,
) -> rusqlite::Result<usize> {
    insert.raw_bind_parameter(1, place)?;
    insert.raw_bind_parameter(2, now_s)?;
    for (row, event) in events.iter().enumerate() {
        let first = 3 + row * 3;
        insert.raw_bind_parameter(first, event.id)?;
        insert.raw_bind_parameter(first + 1, event.payload())?;
        insert.raw_bind_parameter(first + 2, event.offset)?;
    }
    insert.raw_execute()
}

/// Reads a block, if it is there and its bytes are not `known`.
pub(super) fn load(
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
pub(super) fn insert_blocks(
    insert: &mut CachedStatement<'_>,
    works: &[Work<'_>],
    now_s: i64,
) -> rusqlite::Result<usize> {
    insert.raw_bind_parameter(1, now_s)?;
    for (row, work) in works.iter().enumerate() {
        let first = 2 + row * 4;
        insert.raw_bind_parameter(first, work.key.prefix)?;
        insert.raw_bind_parameter(first + 1, work.key.width)?;
        insert.raw_bind_parameter(first + 2, work.key.block)?;
        insert.raw_bind_parameter(first + 3, &*work.bytes)?;
    }
    insert.raw_execute()
}

/// Binds parameters 1 to 3 of the statement that adds to totals, which are common to all rows.
pub(super) fn bind_totals(
    mut upsert: CachedStatement<'_>,
    now_ms: i64,
) -> rusqlite::Result<CachedStatement<'_>> {
    upsert.raw_bind_parameter(1, now_ms)?;
    upsert.raw_bind_parameter(2, -SAFE)?;
    upsert.raw_bind_parameter(3, SAFE)?;
    Ok(upsert)
}

/// Returns how many totals were changed.
pub(super) fn upsert_totals(
    upsert: &mut CachedStatement<'_>,
    users: &[(&str, i64, i64)],
) -> rusqlite::Result<usize> {
    for (row, &(user, net, events)) in users.iter().enumerate() {
        let first = 4 + row * 3;
        upsert.raw_bind_parameter(first, user)?;
        upsert.raw_bind_parameter(first + 1, net)?;
        upsert.raw_bind_parameter(first + 2, events)?;
    }
    upsert.raw_execute()
}

/// Extends a statement with one row of parameters to [`ROWS`] rows. The first `shared` parameters are
/// common to all rows; then each row has `own` parameters, followed by `last`, which are shared ones.
pub(super) fn many_rows(statement: &str, shared: usize, own: usize, last: &str) -> String {
    let rows = |count: usize| {
        let row = |row: usize| {
            let first = shared + row * own + 1;
            let own: Vec<String> = (first..first + own).map(|at| format!("?{at}")).collect();
            format!("({}, {last})", own.join(", "))
        };
        (0..count).map(row).collect::<Vec<_>>().join(", ")
    };
    statement.replace(&rows(1), &rows(ROWS))
}
