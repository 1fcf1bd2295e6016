//! Step 5: adds the sums to the totals, in the order of the user ids.

use std::collections::HashSet;

use rusqlite::{CachedStatement, Connection, params};

use super::super::{Sums, overall};
use super::overflow::{OverflowReplay, SELECT_REVENUE};
use super::{Failure, ROWS, Range, Tally, many_rows};

const UPSERT_USER_TOTAL: &str = include_str!("../../../sql/query/upsert_user_total.sql");
const SET_USER_TOTAL: &str = include_str!("../../../sql/query/set_user_total.sql");

/// A total of at most this absolute value cannot overflow by sums below [`SMALL`].
const SAFE: i64 = 1 << 62;
const SMALL: u128 = 1 << 62;

/// The number of users whose sums are copied together.
const BLOCK_USERS: usize = 256;

/// Step 5. Users whose totals might overflow are skipped and returned.
pub(super) fn add<'a>(
    transaction: &Connection,
    range: &Range<'a>,
    replay: &OverflowReplay,
    tally: &mut Tally<'a>,
) -> Result<HashSet<String>, Failure> {
    let counting = overall::NewUsers::begin(transaction)?;
    let mut totals = Totals::new(transaction, range.now_ms)?;
    let mut uncounted = std::mem::take(&mut tally.uncounted);
    uncounted.sort_unstable_by_key(|&(user, _)| user);
    let mut uncounted = uncounted.chunk_by(|a, b| a.0 == b.0).peekable();
    let mut block = Vec::with_capacity(BLOCK_USERS);
    for users in range.delta.users.chunks(BLOCK_USERS) {
        // The sums are scattered in memory. Copying them together lets the cache misses overlap.
        block.clear();
        block.extend(users.iter().map(|&(_, sums)| *sums));
        for (&(user, _), sums) in users.iter().zip(&mut block) {
            if !replay.users.is_empty() && replay.users.contains_key(user) {
                continue;
            }
            if let Some(events) = uncounted.next_if(|events| events[0].0 == user) {
                let mut out = Sums::default();
                for &(_, micros) in events {
                    out.add_signed(micros);
                }
                sums.subtract(&out);
                if sums.events() == 0 {
                    continue;
                }
            }
            tally.added.events += sums.events();
            tally.added.micros += sums.net();
            totals.add(user, sums)?;
        }
    }
    let (mut written, suspects) = totals.finish()?;
    for (user, (total, events)) in &replay.users {
        if *events > 0 {
            written += transaction
                .prepare_cached(SET_USER_TOTAL)?
                .execute(params![user, total, events, range.now_ms])?;
        }
    }
    tally.added.users = counting.of_written(written)?;
    Ok(suspects)
}

/// Binds parameters 1 to 3 of [`UPSERT_USER_TOTAL`], which are common to all rows.
fn bind_totals(
    mut upsert: CachedStatement<'_>,
    now_ms: i64,
) -> rusqlite::Result<CachedStatement<'_>> {
    upsert.raw_bind_parameter(1, now_ms)?;
    upsert.raw_bind_parameter(2, -SAFE)?;
    upsert.raw_bind_parameter(3, SAFE)?;
    Ok(upsert)
}

struct Totals<'t, 'a> {
    transaction: &'t Connection,
    now_ms: i64,
    one: CachedStatement<'t>,
    /// The statement for [`ROWS`] rows, prepared when it is first needed.
    many: Option<CachedStatement<'t>>,
    /// User, net micros and events that are not written yet.
    rows: Vec<(&'a str, i64, i64)>,
    /// Rows that were inserted or updated.
    written: usize,
    suspects: HashSet<String>,
}

impl<'t, 'a> Totals<'t, 'a> {
    fn new(transaction: &'t Connection, now_ms: i64) -> rusqlite::Result<Self> {
        let one = transaction.prepare_cached(UPSERT_USER_TOTAL)?;
        Ok(Self {
            transaction,
            now_ms,
            one: bind_totals(one, now_ms)?,
            many: None,
            rows: Vec::with_capacity(ROWS),
            written: 0,
            suspects: HashSet::new(),
        })
    }

    fn add(&mut self, user: &'a str, sums: &Sums) -> rusqlite::Result<()> {
        if sums.added() >= SMALL || sums.subtracted() >= SMALL {
            self.suspects.insert(user.to_owned());
            return Ok(());
        }
        let events = i64::try_from(sums.events()).unwrap_or(i64::MAX);
        self.rows.push((user, sums.net_wrapping(), events));
        if self.rows.len() == ROWS {
            self.write_many()?;
        }
        Ok(())
    }

    fn write_many(&mut self) -> rusqlite::Result<()> {
        let many = match &mut self.many {
            Some(many) => many,
            none => {
                let sql = many_rows(UPSERT_USER_TOTAL, 3, 3, "?1");
                none.insert(bind_totals(
                    self.transaction.prepare_cached(&sql)?,
                    self.now_ms,
                )?)
            }
        };
        for (row, &(user, net, events)) in self.rows.iter().enumerate() {
            let first = 4 + row * 3;
            many.raw_bind_parameter(first, user)?;
            many.raw_bind_parameter(first + 1, net)?;
            many.raw_bind_parameter(first + 2, events)?;
        }
        let written = many.raw_execute()?;
        self.written += written;
        if written != self.rows.len() {
            // At least one row was skipped because its total was out of bounds. A total that is out of
            // bounds only after this statement is replayed as well, which is slower but correct.
            let mut select = self.transaction.prepare_cached(SELECT_REVENUE)?;
            for &(user, ..) in &self.rows {
                let total: i64 = select.query_row([user], |row| row.get(0))?;
                if !(-SAFE..=SAFE).contains(&total) {
                    self.suspects.insert(user.to_owned());
                }
            }
        }
        self.rows.clear();
        Ok(())
    }

    /// Writes the remaining rows. Returns the number of all written rows, and the users whose totals
    /// might overflow.
    fn finish(mut self) -> rusqlite::Result<(usize, HashSet<String>)> {
        for (user, net, events) in self.rows {
            self.one.raw_bind_parameter(4, user)?;
            self.one.raw_bind_parameter(5, net)?;
            self.one.raw_bind_parameter(6, events)?;
            let written = self.one.raw_execute()?;
            self.written += written;
            if written != 1 {
                self.suspects.insert(user.to_owned());
            }
        }
        Ok((self.written, self.suspects))
    }
}
