//! Step 5: adds the sums to the totals, in the order of the user ids.

use std::collections::HashSet;

use super::super::Sums;
use super::overflow::OverflowReplay;
use super::{Range, Rows, Tally};

/// A total of at most this absolute value cannot overflow by sums below [`SMALL`].
pub(in crate::store) const SAFE: i64 = 1 << 62;
const SMALL: u128 = 1 << 62;

/// The number of users whose sums are copied together.
const BLOCK_USERS: usize = 256;

/// Step 5. Users whose totals might overflow are skipped and returned.
pub(super) fn add<'a, R: Rows>(
    rows: &mut R,
    range: &Range<'a>,
    replay: &OverflowReplay,
    tally: &mut Tally<'a>,
) -> Result<HashSet<String>, R::Error> {
    let mut totals = Totals::new(rows, range.delta.users.len());
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
    let suspects = totals.finish()?;
    for (user, (total, events)) in &replay.users {
        if *events > 0 {
            rows.set_total(user, *total, *events)?;
        }
    }
    Ok(suspects)
}

struct Totals<'r, 'a, R> {
    rows: &'r mut R,
    /// User, net micros and events that are not written yet.
    waiting: Vec<(&'a str, i64, i64)>,
    suspects: HashSet<String>,
}

impl<'r, 'a, R: Rows> Totals<'r, 'a, R> {
    fn new(rows: &'r mut R, users: usize) -> Self {
        Self {
            rows,
            waiting: Vec::with_capacity(R::TOGETHER.min(users)),
            suspects: HashSet::new(),
        }
    }

    fn add(&mut self, user: &'a str, sums: &Sums) -> Result<(), R::Error> {
        if sums.added() >= SMALL || sums.subtracted() >= SMALL {
            self.suspects.insert(user.to_owned());
            return Ok(());
        }
        let events = i64::try_from(sums.events()).unwrap_or(i64::MAX);
        self.waiting.push((user, sums.net_wrapping(), events));
        if self.waiting.len() == R::TOGETHER {
            self.rows.add_totals(&self.waiting, &mut self.suspects)?;
            self.waiting.clear();
        }
        Ok(())
    }

    /// Writes the remaining rows and returns the users whose totals might overflow.
    fn finish(mut self) -> Result<HashSet<String>, R::Error> {
        if !self.waiting.is_empty() {
            self.rows.add_totals(&self.waiting, &mut self.suspects)?;
        }
        Ok(self.suspects)
    }
}
