//! The lines in the files by state, and the sums over all users, as of one commit.

use std::time::Instant;

use crate::store::{Ledger, Overall};

/// The lines of this run of the process: found + appended = settled + pending + unaccounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Lines that the journal has made durable.
    pub appended: u64,
    /// Lines that were not yet applied when the process started, and lines of files imported since.
    pub found: i64,
    /// Lines that were committed as applied, duplicate, rejected or corrupt.
    pub settled: i64,
}

/// The lines that the database accounts for, and all lines in the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// The counts of the database and the unaccounted lines. `lines` and `pending` are not used.
    pub ledger: Ledger,
    /// The sums over all users, as of the same commit.
    pub overall: Overall,
    /// All lines in the files at the time when this process had made `tail_lines` lines durable.
    pub lines: u64,
    /// Lines that this process had made durable when `lines` was determined.
    pub tail_lines: u64,
    /// Lines that were settled when this process first read the database.
    pub settled_before: u64,
    /// When this process found the oldest pending lines of imported files, and of others that its journal did
    /// not append; `None` if there are none.
    pub found_since: Option<Instant>,
}

impl Settled {
    /// Lines in the files that are not settled, given that this process has made `tail_lines` lines
    /// durable. Negative if more lines are settled than were counted.
    pub fn waiting(&self, tail_lines: u64) -> i64 {
        self.lines_now(tail_lines)
            .saturating_sub(self.ledger.settled().cast_signed())
    }

    fn lines_now(&self, tail_lines: u64) -> i64 {
        let since = tail_lines.cast_signed() - self.tail_lines.cast_signed();
        self.lines.cast_signed().saturating_add(since)
    }

    /// The figures as of now, when this process has made `tail_lines` lines durable.
    pub(super) fn accounts(&self, tail_lines: u64) -> Accounts {
        let waiting = self.waiting(tail_lines) - self.ledger.unaccounted;
        let ledger = Ledger {
            lines: u64::try_from(self.lines_now(tail_lines)).unwrap_or(0),
            pending: u64::try_from(waiting).unwrap_or(0),
            unaccounted: self.ledger.unaccounted + waiting.min(0),
            ..self.ledger
        };
        let before = self.settled_before.cast_signed();
        let run = Run {
            appended: tail_lines,
            found: self.lines_now(0) - before,
            settled: self.ledger.settled().cast_signed() - before,
        };
        Accounts {
            overall: self.overall,
            ledger,
            run,
        }
    }
}

/// The sums and counts that `/status` publishes, as of the same commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// The sums over all users.
    pub overall: Overall,
    /// All lines in the files, by state.
    pub ledger: Ledger,
    /// The lines of this run.
    pub run: Run,
}
