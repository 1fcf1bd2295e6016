//! Step 5: adds the sums to the totals, in the order of the user ids.

use std::collections::HashSet;

use super::super::{Sums, UserSums};
use super::overflow::OverflowReplay;
use super::{Failure, RangeTally, Rows};

/// A total of at most this absolute value cannot overflow by sums below [`SMALL`].
pub(in crate::store) const SAFE: i64 = 1 << 62;
const SMALL: u128 = 1 << 62;

/// Step 5. Users whose totals might overflow are skipped and returned.
pub(super) fn add<R: Rows>(
    rows: &mut R,
    users: &UserSums,
    replay: &OverflowReplay,
    tally: &mut RangeTally<'_>,
) -> Result<HashSet<String>, Failure<R::Error>> {
    let mut totals = Totals::new(rows);
    let mut uncounted = std::mem::take(&mut tally.uncounted);
    uncounted.sort_unstable_by_key(|&(user, _)| user);
    let mut uncounted = uncounted.chunk_by(|a, b| a.0 == b.0).peekable();
    for block in users.blocks().map_err(Failure::Source)? {
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
            tally.added.events += sums.events();
            tally.added.micros += sums.net();
            totals.add(user, &sums)?;
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

struct Totals<'r, R> {
    rows: &'r mut R,
    /// The users that are not written yet: the end of each id in `text`, net micros and events.
    waiting: Vec<(usize, i64, i64)>,
    text: String,
    suspects: HashSet<String>,
}

impl<'r, R: Rows> Totals<'r, R> {
    fn new(rows: &'r mut R) -> Self {
        Self {
            rows,
            waiting: Vec::new(),
            text: String::new(),
            suspects: HashSet::new(),
        }
    }

    fn add(&mut self, user: &str, sums: &Sums) -> Result<(), R::Error> {
        if sums.added() >= SMALL || sums.subtracted() >= SMALL {
            self.suspects.insert(user.to_owned());
            return Ok(());
        }
        let events = i64::try_from(sums.events()).unwrap_or(i64::MAX);
        self.text.push_str(user);
        self.waiting
            .push((self.text.len(), sums.net_wrapping(), events));
        if self.waiting.len() == R::TOGETHER {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), R::Error> {
        let mut users = Vec::with_capacity(self.waiting.len());
        let mut start = 0;
        for &(end, net, events) in &self.waiting {
            users.push((self.text.get(start..end).unwrap_or_default(), net, events));
            start = end;
        }
        self.rows.add_totals(&users, &mut self.suspects)?;
        self.waiting.clear();
        self.text.clear();
        Ok(())
    }

    /// Writes the remaining rows and returns the users whose totals might overflow.
    fn finish(mut self) -> Result<HashSet<String>, R::Error> {
        if !self.waiting.is_empty() {
            self.write()?;
        }
        Ok(self.suspects)
    }
}
