//! Overflow replay: if the total of a user might overflow 64 bits, the lines of that user are applied
//! one by one, in file order. The set of rejected lines then does not depend on how the file was
//! divided into ranges.

use std::collections::{BTreeMap, HashSet};

use super::super::UserLine;
use super::{Failure, RangeTally, Rows, Source};
use crate::aggregate::delta::signed;

/// Users whose totals might overflow, and their lines.
pub(super) struct OverflowReplay {
    /// (total, events counted in this range) by user.
    pub(super) users: BTreeMap<String, (i64, u64)>,
    pub(super) lines: Vec<UserLine>,
}

impl OverflowReplay {
    pub(super) fn none() -> Self {
        Self {
            users: BTreeMap::new(),
            lines: Vec::new(),
        }
    }

    pub(super) fn start<R: Rows>(
        rows: &mut R,
        suspects: &HashSet<String>,
        source: &mut dyn Source,
    ) -> Result<Self, Failure<R::Error>> {
        if suspects.is_empty() {
            return Ok(Self::none());
        }
        let mut users = BTreeMap::new();
        let totals = rows.totals(suspects)?;
        for user in suspects {
            let total = totals.get(user).copied().unwrap_or(0);
            users.insert(user.clone(), (total, 0));
        }
        let lines = source.lines_of(suspects).map_err(Failure::Source)?;
        Ok(Self { users, lines })
    }

    /// Adds an amount to the total of a user in the replay. Returns whether it fits; `None` for users
    /// that are not in the replay.
    pub(super) fn take(&mut self, user: &str, amount: i64) -> Option<bool> {
        let (total, events) = self.users.get_mut(user)?;
        let sum = total.checked_add(amount);
        if let Some(sum) = sum {
            *total = sum;
            *events += 1;
        }
        Some(sum.is_some())
    }
}

/// Counts or rejects an event without an id of a user in the replay.
pub(super) fn count_line(replay: &mut OverflowReplay, tally: &mut RangeTally<'_>, line: &UserLine) {
    let amount = signed(line.kind, line.amount_micros);
    if replay.take(&line.user_id, amount) == Some(false) {
        refuse(tally, line.offset, &line.user_id);
    } else {
        tally.added.event(amount);
    }
}

pub(super) fn refuse(tally: &mut RangeTally<'_>, offset: u64, user_id: &str) {
    tally.rejected.push(offset, "overflow", || {
        format!(
            "/value: the total of {user_id:?} would be outside of -9223372036854.775808 to 9223372036854.775807"
        )
    });
}
