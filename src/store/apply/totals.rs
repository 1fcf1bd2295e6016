//! Step 5: adds the sums to the totals, in the order of the user ids.

use std::collections::HashSet;

use rusqlite::{CachedStatement, Connection, params};

use super::super::Sums;
use super::overflow::{OverflowReplay, SELECT_REVENUE};
use super::{Failure, ROWS, Range, Tally, many_rows};

const UPSERT_USER_TOTAL: &str = include_str!("../../../sql/query/upsert_user_total.sql");
const SET_USER_TOTAL: &str = include_str!("../../../sql/query/set_user_total.sql");

/// A total of at most this absolute value cannot overflow by sums below [`SMALL`].
const SAFE: i64 = 1 << 62;
const SMALL: u128 = 1 << 62;

/// Step 5. Users whose totals might overflow are skipped and returned.
pub(super) fn add<'a>(
    transaction: &Connection,
    range: &Range<'a>,
    replay: &OverflowReplay,
    tally: &mut Tally<'a>,
) -> Result<HashSet<String>, Failure> {
    let mut totals = Totals::new(transaction, range.now_ms)?;
    let mut uncounted = std::mem::take(&mut tally.uncounted);
    uncounted.sort_unstable_by_key(|&(user, _)| user);
    let mut uncounted = uncounted.chunk_by(|a, b| a.0 == b.0).peekable();
    for block in range.delta.users.blocks().map_err(Failure::Source)? {
        let block = block.map_err(Failure::Source)?;
        for (user, sums) in block.iter() {
            if !replay.users.is_empty() && replay.users.contains_key(user) {
                continue;
            }
            let mut sums = *sums;
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
            tally.events += sums.events();
            tally.net = tally.net.wrapping_add(sums.net_wrapping());
            totals.add(user, &sums)?;
        }
    }
    let suspects = totals.finish()?;
    for (user, (total, events)) in &replay.users {
        if *events > 0 {
            transaction
                .prepare_cached(SET_USER_TOTAL)?
                .execute(params![user, total, events, range.now_ms])?;
        }
    }
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

struct Totals<'t> {
    transaction: &'t Connection,
    now_ms: i64,
    one: CachedStatement<'t>,
    /// The statement for [`ROWS`] rows, prepared when it is first needed.
    many: Option<CachedStatement<'t>>,
    /// The users that are not written yet: the end of each id in `text`, net micros and events.
    rows: Vec<(usize, i64, i64)>,
    text: String,
    suspects: HashSet<String>,
}

impl<'t> Totals<'t> {
    fn new(transaction: &'t Connection, now_ms: i64) -> rusqlite::Result<Self> {
        let one = transaction.prepare_cached(UPSERT_USER_TOTAL)?;
        Ok(Self {
            transaction,
            now_ms,
            one: bind_totals(one, now_ms)?,
            many: None,
            rows: Vec::with_capacity(ROWS),
            text: String::new(),
            suspects: HashSet::new(),
        })
    }

    fn add(&mut self, user: &str, sums: &Sums) -> rusqlite::Result<()> {
        if sums.added() >= SMALL || sums.subtracted() >= SMALL {
            self.suspects.insert(user.to_owned());
            return Ok(());
        }
        let events = i64::try_from(sums.events()).unwrap_or(i64::MAX);
        self.text.push_str(user);
        let net = sums.net_wrapping();
        self.rows.push((self.text.len(), net, events));
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
        for (row, (user, net, events)) in rows(&self.rows, &self.text).enumerate() {
            let first = 4 + row * 3;
            many.raw_bind_parameter(first, user)?;
            many.raw_bind_parameter(first + 1, net)?;
            many.raw_bind_parameter(first + 2, events)?;
        }
        if many.raw_execute()? != self.rows.len() {
            // At least one row was skipped because its total was out of bounds. A total that is out of
            // bounds only after this statement is replayed as well, which is slower but correct.
            let mut select = self.transaction.prepare_cached(SELECT_REVENUE)?;
            for (user, ..) in rows(&self.rows, &self.text) {
                let total: i64 = select.query_row([user], |row| row.get(0))?;
                if !(-SAFE..=SAFE).contains(&total) {
                    self.suspects.insert(user.to_owned());
                }
            }
        }
        self.rows.clear();
        self.text.clear();
        Ok(())
    }

    /// Writes the remaining rows and returns the users whose totals might overflow.
    fn finish(mut self) -> rusqlite::Result<HashSet<String>> {
        for (user, net, events) in rows(&self.rows, &self.text) {
            self.one.raw_bind_parameter(4, user)?;
            self.one.raw_bind_parameter(5, net)?;
            self.one.raw_bind_parameter(6, events)?;
            if self.one.raw_execute()? != 1 {
                self.suspects.insert(user.to_owned());
            }
        }
        Ok(self.suspects)
    }
}

/// User, net micros and events of rows whose ids are in `text`.
fn rows<'r>(
    rows: &'r [(usize, i64, i64)],
    text: &'r str,
) -> impl Iterator<Item = (&'r str, i64, i64)> {
    let mut start = 0;
    rows.iter().map(move |&(end, net, events)| {
        let user = text.get(start..end).unwrap_or_default();
        start = end;
        (user, net, events)
    })
}
