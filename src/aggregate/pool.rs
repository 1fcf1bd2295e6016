//! Scans ranges on several threads.
//!
//! Each thread takes the next chunk of the range when it has scanned one, and the partial aggregates are joined in
//! the order of the chunks. If the sums in memory and the estimate for the chunks in progress exceed the budget, no
//! further chunk is begun; then the threads sort the sums and write them to temporary files, and the scan
//! continues. Without a directory for these, or if the events with ids are what fills the memory, the range ends
//! instead. If a thread fails to read, the scan of the range fails; the pool stays usable.
//!
//! The sums of several ranges, also of several files, can be added up: see [`Fold`].

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::memory_budget::{GROWTH, MemoryBudget};
use super::partials::PartialAggregates;
use super::run::Run;
use super::scan::{Chunk, ChunkScanner, PartialAggregate};
use super::sharded_totals::{ShardBuffer, ShardedTotals};
use super::sorted::SortedTotals;
use super::spill::{Runs, SpillDir, SpillError};
use super::threads::{contained, in_parallel};
use super::user_sums::UserSums;
use crate::data_dir::disk::DiskFile;

/// The size of a chunk. A large chunk costs less to hand over; in a smaller range chunks are smaller, so that
/// every thread gets some.
const CHUNK_BYTES_MIN: u64 = 512 << 10;
const CHUNK_BYTES_MAX: u64 = 2 << 20;
/// The minimum size if memory is short: the chunks in progress may use a quarter of the budget.
const CHUNK_BYTES_LEAST: u64 = 4 << 10;
/// A range, or several whose sums are added up, ends after this many bytes, so that progress becomes visible and little work is lost when a
/// run is interrupted,
pub(crate) const RANGE_BYTES: u64 = 1 << 30;
/// or after this many bytes for each user in it, if that is more: writing a user costs about as much as
/// scanning 1 KiB, so that the database then takes at most a quarter of the time,
const RANGE_BYTES_PER_USER: u64 = 4 << 10;
/// but never after more than this.
const RANGE_BYTES_MAX: u64 = 8 << 30;
/// A line of an event has at least so many bytes, so a chunk cannot have more users.
const LINE_BYTES_MIN: usize = 46;
/// Fewer users than this are sorted by one thread.
const SORTED_BY_ONE: usize = 64 << 10;
/// The most threads that sort. Each writes a run of its own.
const SORTING_MAX: usize = 4;

/// The aggregate of a range.
pub(crate) struct RangeAggregate {
    /// The end of the range, at or before the requested end.
    pub(crate) to: u64,
    pub(crate) partial: PartialAggregate,
    pub(crate) users: UserSums,
}

/// The sums per user of one or several ranges, while they are scanned. Every range adds to them; after an
/// error they are incomplete.
pub(crate) struct Fold {
    users: ShardedTotals,
    runs: Runs,
    /// The number of events in the sums.
    events: u64,
    /// The length of the ranges in bytes.
    bytes: u64,
    /// The memory of the partial aggregates of these ranges, in bytes.
    partial_bytes: usize,
}

impl Fold {
    /// The length of the ranges in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Begins the next range as if it were the first one: the caller has used up the partial aggregates of the
    /// ranges so far, and the bounds of a range do not apply to them together.
    pub(crate) fn begin_range(&mut self) {
        (self.bytes, self.partial_bytes) = (0, 0);
    }

    fn add(&mut self, partial: &PartialAggregate) {
        self.events += partial.lines - partial.rejected_count;
        self.bytes += partial.bytes();
        self.partial_bytes += partial.memory_bytes();
    }

    /// The most bytes of ranges with these users.
    pub(crate) fn bytes_max(&self) -> u64 {
        let users = (self.users.len() + self.runs.users()) as u64;
        (users * RANGE_BYTES_PER_USER).clamp(RANGE_BYTES, RANGE_BYTES_MAX)
    }
}

/// How ranges are scanned: the threads and their bounds.
pub(crate) struct Pool {
    /// The number of scanning threads, with the calling one.
    threads: usize,
    /// Empty buffers for the next range.
    buffers: Vec<ShardBuffer>,
    /// The memory budget of a range in bytes.
    range_bytes: usize,
    /// Where sums that exceed the budget are written; `None`: the range ends instead.
    spill: Option<SpillDir>,
    /// A fixed chunk size, in tests.
    chunk_bytes: Option<u64>,
}

impl Pool {
    /// A pool with so many threads and the memory budget for a range.
    pub(crate) fn new(budget: &MemoryBudget) -> Self {
        Self {
            threads: budget.threads.max(1),
            buffers: Vec::new(),
            range_bytes: budget.range_bytes,
            spill: None,
            chunk_bytes: None,
        }
    }

    /// Writes sums that exceed the memory budget to temporary files, instead of ending the range.
    /// If that fails, it depends on the directory whether the range ends or its scan fails.
    pub(crate) fn spilling_to(mut self, dir: SpillDir) -> Self {
        self.spill = Some(dir);
        self
    }

    /// Sets a fixed chunk size, for tests.
    #[cfg(test)]
    pub(crate) fn with_chunk_bytes(mut self, chunk_bytes: u64) -> Self {
        self.chunk_bytes = Some(chunk_bytes);
        self
    }

    /// Ranges up to this many bytes are scanned on the caller's thread.
    pub(crate) fn small_bytes(&self) -> u64 {
        self.chunk_bytes_for(0)
    }

    /// The most memory that a range may use, in bytes.
    pub(crate) fn range_bytes(&self) -> usize {
        self.range_bytes
    }

    /// Aggregates `[from, to)`, or as much of it as the memory budget allows, but at least one chunk.
    pub(crate) fn scan(
        &mut self,
        file: &Arc<dyn DiskFile>,
        from: u64,
        to: u64,
    ) -> io::Result<RangeAggregate> {
        self.scan_at_most(file, from, to, RANGE_BYTES_MAX)
    }

    /// The same for at most `bytes_max` bytes and the rest of a line, but at least one chunk.
    pub(crate) fn scan_at_most(
        &mut self,
        file: &Arc<dyn DiskFile>,
        from: u64,
        to: u64,
        bytes_max: u64,
    ) -> io::Result<RangeAggregate> {
        let mut fold = self.begin();
        let partial = self.scan_into(&mut fold, file, from, to, bytes_max)?;
        Ok(RangeAggregate {
            to: from + partial.bytes(),
            partial,
            users: self.finish(fold)?,
        })
    }

    /// Sums without any event.
    pub(crate) fn begin(&mut self) -> Fold {
        let buffers = std::mem::take(&mut self.buffers);
        Fold {
            users: ShardedTotals::new(self.threads, buffers),
            runs: Runs::default(),
            events: 0,
            bytes: 0,
            partial_bytes: 0,
        }
    }

    /// Adds `[from, to)` to the sums, or as much of it as `bytes_max`, the memory budget and the bounds of a
    /// range allow: at least one chunk, unless there are other ranges in the sums.
    pub(crate) fn scan_into(
        &mut self,
        fold: &mut Fold,
        file: &Arc<dyn DiskFile>,
        from: u64,
        to: u64,
        bytes_max: u64,
    ) -> io::Result<PartialAggregate> {
        let chunk_bytes = self.chunk_bytes_for(to - from).min(bytes_max.max(1));
        let threads = if to - from <= chunk_bytes {
            1
        } else {
            self.threads
        };
        let unfinished_bytes = usize::try_from(chunk_bytes).map_err(io::Error::other)? * threads;
        let mut state = ScanState::at(from);
        loop {
            let scan = RangeScan {
                pool: self,
                fold,
                whole: Chunk::whole(file, from, to),
                chunk_bytes,
                bytes_max,
                unfinished_bytes,
                state: Mutex::new(state),
            };
            in_parallel(threads, |_| scan.run())?;
            state = scan
                .state
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner);
            // Every chunk that was begun is scanned now.
            let partial_bytes = fold.partial_bytes + state.partials.memory_bytes;
            match state.ended.take() {
                Some(Ended::Memory) if self.make_room(fold, partial_bytes)? => {}
                _ => break,
            }
        }
        let partial = state.partials.join();
        fold.add(&partial);
        Ok(partial)
    }

    /// Writes the sums to runs if they are what fills the memory. Returns false if there is no more room. While
    /// there are events in buffers, it only adds them to the sums: they may be of few users.
    fn make_room(&self, fold: &mut Fold, partial_bytes: usize) -> io::Result<bool> {
        let users = &fold.users;
        if users.buffered_events() > 0 {
            return flush(users).map(|()| true);
        }
        Ok(partial_bytes <= users.used_bytes() && self.spill(users, &mut fold.runs)?)
    }

    /// Sorts what is left in memory.
    pub(crate) fn finish(&mut self, fold: Fold) -> io::Result<UserSums> {
        let users = fold.users;
        flush(&users)?;
        self.buffers = users.take_buffers();
        let parts = self.sorting_threads(users.len());
        let memory = if parts == 1 {
            vec![users.take_sorted(0, 1).without_empty()]
        } else {
            in_parallel(parts, |part| Ok(users.take_sorted(part, parts)))?
        };
        Ok(UserSums::new(memory, fold.runs.into_all(), fold.events))
    }

    /// Writes the sums to runs, and removes them from memory. Returns false if that is impossible; the sums
    /// are then in memory, or in a run.
    fn spill(&self, users: &ShardedTotals, runs: &mut Runs) -> io::Result<bool> {
        let Some(dir) = &self.spill else {
            return Ok(false);
        };
        let parts = self.sorting_threads(users.len());
        let written = in_parallel(parts, |part| Ok(spill_part(users, part, parts, dir)))?;
        let mut failed = None;
        for run in written {
            match run.and_then(|run| runs.push(run, dir)) {
                Ok(()) => {}
                Err(error) => failed = Some(error),
            }
        }
        let failed = match failed {
            Some(error) if dir.is_required() => return Err(error.into()),
            failed => failed,
        };
        if let Some(error) = &failed {
            tracing::warn!(
                "{error}; the events up to here are applied without it, and more slowly. Free some space on its disk"
            );
        }
        Ok(failed.is_none())
    }

    fn sorting_threads(&self, users: usize) -> usize {
        if users < SORTED_BY_ONE {
            1
        } else {
            self.threads.min(SORTING_MAX)
        }
    }

    /// The chunk size for a range of `length` bytes.
    fn chunk_bytes_for(&self, length: u64) -> u64 {
        let share = length / (self.threads as u64 * 4);
        let quarter = (self.range_bytes / (4 * GROWTH * self.threads)) as u64;
        self.chunk_bytes.unwrap_or(
            share
                .clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)
                .min(quarter.max(CHUNK_BYTES_LEAST)),
        )
    }
}

/// A range while the threads scan it.
struct RangeScan<'r> {
    pool: &'r Pool,
    fold: &'r Fold,
    /// The range as one chunk.
    whole: Chunk,
    chunk_bytes: u64,
    /// The most bytes to scan.
    bytes_max: u64,
    /// The most bytes of chunks in progress.
    unfinished_bytes: usize,
    state: Mutex<ScanState>,
}

/// How far a range is scanned.
struct ScanState {
    /// The number of chunks that are scanned or in progress.
    chunks: usize,
    /// The end of the last of them.
    end: u64,
    partials: PartialAggregates,
    /// Why no further chunk is begun.
    ended: Option<Ended>,
}

/// Why no further chunk is begun.
enum Ended {
    /// The range or one of its bounds is reached, or a chunk has failed.
    Range,
    /// The next chunk may exceed the memory budget.
    Memory,
}

impl ScanState {
    fn at(from: u64) -> Self {
        Self {
            chunks: 0,
            end: from,
            partials: PartialAggregates::default(),
            ended: None,
        }
    }
}

impl RangeScan<'_> {
    /// Scans one chunk after the other, until no further one is begun. Each thread calls this.
    fn run(&self) -> io::Result<()> {
        let mut scanner = ChunkScanner::new();
        while let Some((index, chunk)) = self.next() {
            let partial = contained(|| scanner.scan(&chunk, &self.fold.users));
            let mut state = self.state();
            match partial {
                Ok(partial) => state.partials.insert(index, partial),
                Err(error) => {
                    state.ended = Some(Ended::Range);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The next chunk and its index.
    fn next(&self) -> Option<(usize, Chunk)> {
        let mut state = self.state();
        if state.ended.is_none() {
            state.ended = self.ended(&state);
        }
        if state.ended.is_some() {
            return None;
        }
        let (index, start) = (state.chunks, state.end);
        state.chunks += 1;
        state.end = self.whole.end.min(start.saturating_add(self.chunk_bytes));
        let chunk = Chunk {
            start,
            end: state.end,
            ..self.whole.clone()
        };
        Some((index, chunk))
    }

    /// Why the next chunk must not be begun; `None` if it may.
    fn ended(&self, state: &ScanState) -> Option<Ended> {
        let length = state.end - self.whole.start;
        if (state.end >= self.whole.end && state.chunks > 0)
            || length >= self.bytes_max
            || self.fold.bytes + length >= self.fold.bytes_max()
        {
            return Some(Ended::Range);
        }
        let partial_bytes = self.fold.partial_bytes + state.partials.memory_bytes;
        self.is_over(partial_bytes).then_some(Ended::Memory)
    }

    /// Whether the chunks in progress and a further one may exceed the memory budget.
    fn is_over(&self, partial_bytes: usize) -> bool {
        let users = &self.fold.users;
        let buffered = users.buffered_events();
        if partial_bytes == 0 && buffered == 0 && users.len() == 0 {
            return false;
        }
        let needed = users.memory_bytes_with(buffered + self.unfinished_bytes / LINE_BYTES_MIN);
        let needed = needed.saturating_add(self.unfinished_bytes.saturating_mul(GROWTH));
        needed.saturating_add(partial_bytes) > self.pool.range_bytes
    }

    fn state(&self) -> MutexGuard<'_, ScanState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds the events in buffers to the sums.
fn flush(users: &ShardedTotals) -> io::Result<()> {
    let parts = users.idle_buffers();
    let flushed = |part| {
        let mut buffer = users.buffer();
        buffer.flush(users, part, parts);
        Ok(buffer)
    };
    let buffers = if parts < 2 || users.len() < SORTED_BY_ONE {
        (0..parts).map(flushed).collect::<io::Result<_>>()?
    } else {
        in_parallel(parts, flushed)?
    };
    for buffer in buffers {
        users.keep_buffer(buffer);
    }
    Ok(())
}

/// Writes one part of the sums to a run. If that fails, they are put back.
fn spill_part(
    users: &ShardedTotals,
    part: usize,
    parts: usize,
    dir: &SpillDir,
) -> Result<Run, SpillError> {
    let sorted: SortedTotals = users.take_sorted(part, parts);
    match dir.write(Ok(sorted.sources().collect())) {
        Ok(run) => {
            users.reuse(part, parts, sorted);
            Ok(run)
        }
        Err(error) => {
            users.put_back(part, parts, sorted);
            Err(error)
        }
    }
}
