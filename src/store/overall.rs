//! The sums over all users: how many there are, their events and their revenue. And the number of ids.
//!
//! They are kept in the one row of the table `overall`, which changes in the same transaction as the
//! totals, so that no reader has to add up all rows. `verify` compares them with the rows. The revenue is
//! stored as text and added in Rust, because the sum of many 64-bit totals may exceed 64 bits.
//!
//! An upsert reports how many rows it wrote, but not how many of them are new. Its statements therefore
//! call the function `count_update` for each row that existed ([`NewUsers`]). `RETURNING` would report the
//! same, but makes the upsert about 1.6 times as expensive, because SQLite stores its rows first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::functions::FunctionFlags;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{Connection, params};

use crate::event::Micros;

const SELECT_OVERALL: &str = include_str!("../../sql/query/select_overall.sql");
const SET_OVERALL: &str = include_str!("../../sql/query/set_overall.sql");
const TAKE_IDS_OFF: &str = include_str!("../../sql/query/take_ids_off_overall.sql");
const COUNT_ALL_IDS: &str = include_str!("../../sql/query/count_all_ids.sql");
const SELECT_TOTAL_CHECKS: &str = include_str!("../../sql/query/select_total_checks.sql");
const TAKE_UPDATES: &str = include_str!("../../sql/query/take_updates.sql");

/// The sums over all users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overall {
    /// The number of users with at least one counted event.
    pub users: u64,
    /// The number of counted events.
    pub events: u64,
    /// The sum of all revenues.
    pub revenue: Micros,
    /// When an event was last applied, in milliseconds since 1970 UTC; `None` if there are no users.
    pub updated_at_ms: Option<i64>,
}

impl Overall {
    /// Adds a user's row.
    pub(super) fn add_user(&mut self, micros: i64, events: u64) {
        self.users += 1;
        self.events += events;
        self.revenue.0 += i128::from(micros);
    }

    /// Whether the sums are equal; the times may differ.
    pub fn has_sums_of(&self, other: &Self) -> bool {
        (self.users, self.events, self.revenue) == (other.users, other.events, other.revenue)
    }

    /// The revenue in micros, modulo 2^64.
    pub(crate) fn net_check(&self) -> i64 {
        low_64_bits(self.revenue.0)
    }
}

/// What a transaction adds to the sums.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Added {
    pub(super) events: u64,
    /// Their signed micros.
    pub(super) micros: i128,
    /// How many of them have an id.
    pub(super) ids: u64,
}

impl Added {
    /// Adds one counted event.
    pub(super) fn event(&mut self, micros: i64) {
        self.events += 1;
        self.micros += i128::from(micros);
    }

    /// Adds the sums of a user.
    pub(super) fn user(&mut self, micros: i64, events: i64) {
        self.events = self.events.saturating_add_signed(events);
        self.micros += i128::from(micros);
    }
}

/// The value modulo 2^64.
pub(super) fn low_64_bits(micros: i128) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "modulo 2^64")]
    let low = micros as i64;
    low
}

pub(super) fn read(connection: &Connection) -> rusqlite::Result<Overall> {
    connection
        .prepare_cached(SELECT_OVERALL)?
        .query_row([], |row| {
            Ok(Overall {
                users: row.get(0)?,
                events: row.get(1)?,
                revenue: row.get(2)?,
                updated_at_ms: row.get(3)?,
            })
        })
}

/// Adds to the stored sums, inside the transaction that changes the totals; `users` is the number of new
/// users. Returns the new sums.
pub(super) fn add(
    transaction: &Connection,
    users: u64,
    added: &Added,
    now_ms: i64,
) -> rusqlite::Result<Overall> {
    let mut overall = read(transaction)?;
    if added.events == 0 {
        return Ok(overall);
    }
    overall.users += users;
    overall.events += added.events;
    overall.revenue.0 += added.micros;
    overall.updated_at_ms = Some(now_ms);
    transaction.prepare_cached(SET_OVERALL)?.execute(params![
        overall.users,
        overall.events,
        overall.revenue.0.to_string(),
        overall.updated_at_ms,
        added.ids,
    ])?;
    Ok(overall)
}

/// Takes expired ids off, inside the transaction that deletes them.
pub(super) fn take_off_ids(transaction: &Connection, expired: u64) -> rusqlite::Result<()> {
    let mut update = transaction.prepare_cached(TAKE_IDS_OFF)?;
    update.execute([expired]).map(|_| ())
}

/// The number of ids in `event_id` and `id_block`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdCount {
    /// As it is stored.
    pub stored: u64,
    /// Computed from the rows.
    pub of_rows: u64,
}

impl IdCount {
    /// Reads the stored number and counts the rows of `event_id`; `id_block` has `in_blocks` ids in the same
    /// transaction.
    pub(super) fn read(connection: &Connection, in_blocks: u64) -> rusqlite::Result<Self> {
        let (stored, of_rows) = connection.query_row(COUNT_ALL_IDS, [], |row| {
            Ok((row.get(0)?, row.get::<_, u64>(1)?))
        })?;
        Ok(Self {
            stored,
            of_rows: of_rows + in_blocks,
        })
    }

    /// Whether no id was lost or added by another program.
    pub fn agrees(&self) -> bool {
        self.stored == self.of_rows
    }
}

/// The sums computed from the rows. Reads every row; without a time.
pub(super) fn of_rows(connection: &Connection) -> rusqlite::Result<Overall> {
    let mut overall = Overall::default();
    let mut statement = connection.prepare(SELECT_TOTAL_CHECKS)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        overall.add_user(row.get(1)?, row.get(0)?);
    }
    Ok(overall)
}

impl FromSql for Micros {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let text = value.as_str()?;
        text.parse()
            .map(Self)
            .map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

/// Registers `count_update(value)`, which returns its argument and counts the call, and `take_updates()`,
/// which returns the count and sets it to 0. Only the statements of the writer use them.
pub(super) fn register(connection: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
    let updates = Arc::new(AtomicU64::new(0));
    let taken = Arc::clone(&updates);
    connection.create_scalar_function("count_update", 1, flags, move |context| {
        updates.fetch_add(1, Ordering::Relaxed);
        context.get::<i64>(0)
    })?;
    connection.create_scalar_function("take_updates", 0, flags, move |_| {
        Ok(taken.swap(0, Ordering::Relaxed).cast_signed())
    })
}

/// Counts the new users among the rows that a transaction writes to `user_total`.
pub(super) struct NewUsers;

impl NewUsers {
    /// Called before the first row is written: an attempt that was rolled back may have left a count.
    pub(super) fn begin(transaction: &Connection) -> rusqlite::Result<()> {
        Self::take_updates(transaction).map(|_| ())
    }

    /// How many of the rows written since are new.
    pub(super) fn of_written(transaction: &Connection, rows: usize) -> rusqlite::Result<u64> {
        Ok((rows as u64).saturating_sub(Self::take_updates(transaction)?))
    }

    fn take_updates(transaction: &Connection) -> rusqlite::Result<u64> {
        transaction
            .prepare_cached(TAKE_UPDATES)?
            .query_row([], |row| row.get(0))
    }
}
