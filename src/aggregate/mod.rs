//! Aggregation of lines into per-user deltas, in memory. It does not depend on the database.
//!
//! [`scan`] parses the lines of a chunk. [`pool`] scans chunks on several threads and joins the results
//! in order. [`sharded_totals`] holds the sums per user, and [`delta`] defines the result that the store
//! applies. [`memory_budget`] bounds the memory of all of them. [`lines`] reads lines and checksums
//! without aggregation.

pub(crate) mod delta;
pub(crate) mod lines;
pub(crate) mod memory_budget;
pub(crate) mod pool;
pub(crate) mod scan;
pub(crate) mod sharded_totals;

pub use self::delta::{IdEvent, IdEvents, Rejected, Sums, UserLine};

/// The maximum number of rejected lines of a segment that are stored; all are counted.
pub const REJECTED_LINES_MAX: u64 = 10_000;
