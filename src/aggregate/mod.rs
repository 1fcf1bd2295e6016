//! Aggregation of lines into per-user deltas. It does not depend on the database.
//!
//! [`scan`] parses the lines of a chunk. [`pool`] scans chunks on several threads and joins the results
//! in order. [`sharded_totals`] holds the sums per user, and [`delta`] defines the result that the store
//! applies. [`memory_budget`] bounds the memory of all of them. [`lines`] reads lines and checksums
//! without aggregation.
//!
//! # Several ranges
//! The sums of several ranges, also of several files, can be added up before they are applied ([`pool::Fold`]), so
//! that a user who occurs in all of them is written once. Everything else is kept for each range.
//!
//! # More users than fit into memory
//! A database in key order is written sequentially, and each user that is written twice costs twice. A range
//! therefore does not end when the memory is full:
//! 1. The scanning threads sort the sums in memory and write them to temporary files, the runs ([`spill`]).
//!    The tables are then empty, and the scan continues.
//! 2. At the end of the range, the sums that are left in memory are sorted.
//! 3. A thread merges the runs and the memory ([`merge`]), so that each user comes once and in key order,
//!    while the store writes ([`user_sums`]).
//!
//! Events with an id and rejected lines are not spilled. They end a range when the memory is full and they
//! fill the larger part of it.
//! A range also ends after [`pool`]'s bounds in bytes, and when a run cannot be written, because the disk is
//! full: what was scanned is then applied, and nothing is lost. The argument for exactly-once is that of any
//! range: the sums are those of the bytes `[from, to)`, and the runs are not used after its transaction.

pub(crate) mod delta;
pub(crate) mod lines;
pub(crate) mod memory_budget;
mod merge;
mod partials;
pub(crate) mod pool;
mod run;
pub(crate) mod scan;
pub(crate) mod sharded_totals;
mod sorted;
pub(crate) mod spill;
mod table;
mod threads;
mod user;
mod user_block;
pub(crate) mod user_sums;

pub use self::delta::{IdEvent, IdEvents, Rejected, Sums, UserLine};
pub use self::user_sums::UserSums;

/// The maximum number of rejected lines of a segment that are stored; all are counted.
pub const REJECTED_LINES_MAX: u64 = 10_000;
