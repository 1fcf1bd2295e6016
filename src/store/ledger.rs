//! The ledger: the number of lines in each state.

/// Counts since the database was created: lines = applied + duplicates + rejected + pending + corrupt.
/// Lines are counted when they are written, or found in files; the states are counted when they are
/// committed. A difference between the two while no line is pending is `unaccounted`, which must be 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// All lines in the files, including pruned ones.
    pub lines: u64,
    /// Lines whose event is in the totals.
    pub applied: u64,
    /// Events with an id that was counted before.
    pub duplicates: u64,
    /// Lines that are not valid events, conflict with an earlier id, or would overflow a total.
    pub rejected: u64,
    /// Lines that are not applied yet.
    pub pending: u64,
    /// Lines in corrupt files that were not applied.
    pub corrupt: u64,
    /// Lines without a state while no line was pending; negative if there are more states than lines.
    pub unaccounted: i64,
}

impl Ledger {
    /// The number of lines that are not pending: applied, duplicates, rejected and corrupt.
    pub fn settled(&self) -> u64 {
        self.applied + self.duplicates + self.rejected + self.corrupt
    }
}
