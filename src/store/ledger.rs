//! The ledger: every line that was ever seen, and its fate.

/// All time: lines in the files = applied + duplicates + rejected + pending + corrupt. The lines are
/// counted where they are written, or found in files; the fates where they are committed. What the
/// two sides differ by when nothing waits is unaccounted for, and 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Lines in the files.
    pub lines: u64,
    /// Events counted.
    pub applied: u64,
    /// Events with an id that was counted before.
    pub duplicates: u64,
    /// Lines that are no event, contradict an id, or overflow a total.
    pub rejected: u64,
    /// Lines not yet applied.
    pub pending: u64,
    /// Lines in files that can't be trusted.
    pub corrupt: u64,
    /// Lines without a fate when nothing waited; negative: fates without a line.
    pub unaccounted: i64,
}

impl Ledger {
    /// Lines whose fate is known.
    pub fn settled(&self) -> u64 {
        self.applied + self.duplicates + self.rejected + self.corrupt
    }
}
