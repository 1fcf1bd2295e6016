//! From lines to what they add up to: per-user deltas, computed in memory. Knows no database.
//!
//! [`scan`] parses the lines of a chunk, [`pool`] does so on several threads and joins the chunks in
//! order, [`sharded_totals`] holds the sums per user, [`delta`] is the result that the store applies.
//! [`memory_budget`] bounds all of it; [`lines`] reads lines and checksums without adding up.

pub(crate) mod delta;
pub(crate) mod lines;
pub(crate) mod memory_budget;
pub(crate) mod pool;
pub(crate) mod scan;
pub(crate) mod sharded_totals;

pub use self::delta::{IdEvent, IdEvents, REJECTED_LINE_BYTES_MAX, Rejected, Sums, UserLine};

/// The most rejected lines of a segment that are kept; all are counted.
pub const REJECTED_LINES_MAX: u64 = 10_000;
