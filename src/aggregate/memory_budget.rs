//! Division of the processor's memory limit among its parts.
//!
//! The figures are upper estimates, so that the sum of all parts stays below the limit. Each part has a
//! minimum; a limit below the sum of the minimums is exceeded.

use super::scan::ChunkScanner;
use super::sharded_totals::ShardBuffer;

/// Program, stacks, prepared statements, the list of segments, and the client of PostgreSQL: a server of the tests
/// with 32 MiB needs all of it.
const FIXED_BYTES: usize = 14 << 20;
/// The page cache of the writing connection. The maximum holds the inner pages of a table with tens of
/// millions of rows; the minimum holds one path through the tree.
const CACHE_BYTES_MAX: usize = 32 << 20;
const CACHE_BYTES_MIN: usize = 1 << 20;
/// The maximum number of bytes of memory per byte of file while it is applied. A line of 46 bytes may be
/// a new user; a line with an id needs its text and five times as much.
pub(crate) const GROWTH: usize = 6;
/// What a scanning thread needs apart from its buffers: the allocator keeps some memory for each thread.
const THREAD_BYTES: usize = 3 << 20;

/// The memory limits of the processor's parts.
pub(crate) struct MemoryBudget {
    /// The number of scanning threads: as requested, but limited so that they use at most a quarter of
    /// the memory.
    pub(crate) threads: usize,
    /// SQLite's page cache, in bytes.
    pub(crate) cache_bytes: usize,
    /// A range before it is applied, in bytes.
    pub(crate) range_bytes: usize,
}

impl MemoryBudget {
    /// Divides `all` bytes; `threads` is the requested number of scanning threads.
    pub(crate) fn of(all: usize, threads: usize) -> Self {
        let thread_bytes = THREAD_BYTES + ChunkScanner::MEMORY_BYTES + ShardBuffer::MEMORY_BYTES;
        let threads = threads.min(all / 4 / thread_bytes).max(1);
        let cache_bytes = (all / 8).clamp(CACHE_BYTES_MIN, CACHE_BYTES_MAX);
        // The allocator returns freed memory to the system with a delay.
        let free = all / 8;
        let rest = FIXED_BYTES + threads * thread_bytes + cache_bytes + free;
        Self {
            threads,
            cache_bytes,
            range_bytes: all.saturating_sub(rest),
        }
    }
}
