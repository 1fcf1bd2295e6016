//! How the memory that the processor may hold is shared out.
//!
//! Nothing here is exact: each share is what its owner may come to at the worst, so that all of
//! them together stay under what was asked for. Below the least that a share can be, the sum is
//! more.

use super::scan::ChunkScanner;

/// Program, stacks, statements, what is known of segments.
const FIXED_BYTES: usize = 12 << 20;
/// SQLite's page cache on the writing connection: at most the inner pages of a table of tens of
/// millions of rows, and at least a way down the tree.
const CACHE_BYTES_MAX: usize = 32 << 20;
const CACHE_BYTES_MIN: usize = 1 << 20;
/// What a byte of a file may come to while it is applied: a line of 46 bytes may be a new user,
/// and a line with an id holds its text and five times as much.
pub(crate) const GROWTH: usize = 6;

/// Who gets how much, in bytes.
pub(crate) struct MemoryBudget {
    /// Scanning threads: those asked for, as far as they take a quarter at most.
    pub(crate) threads: usize,
    /// SQLite's page cache.
    pub(crate) cache_bytes: usize,
    /// What a range may come to before it is applied.
    pub(crate) range_bytes: usize,
}

impl MemoryBudget {
    /// MemoryBudget out `all` bytes among so many threads, if they are not too many for it.
    pub(crate) fn of(all: usize, threads: usize) -> Self {
        let threads = threads.min(all / 4 / ChunkScanner::MEMORY_BYTES).max(1);
        let cache_bytes = (all / 8).clamp(CACHE_BYTES_MIN, CACHE_BYTES_MAX);
        // The coordinator folds small ranges itself.
        // What is free goes back to the system a little later.
        let free = all / 8;
        let rest = FIXED_BYTES + (threads + 1) * ChunkScanner::MEMORY_BYTES + cache_bytes + free;
        Self {
            threads,
            cache_bytes,
            range_bytes: all.saturating_sub(rest),
        }
    }
}
