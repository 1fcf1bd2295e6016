//! The pool of scanning threads.
//!
//! The calling thread sends the chunks of a range to the pool in order, a bounded number ahead, and
//! joins the partial aggregates in the same order. It scans a small range itself, because that is
//! faster. If the memory in use and the estimate for the chunks in progress exceed the budget, no
//! further chunk is sent, and the range ends with the last one. If a thread fails to read or panics,
//! the scan of the range fails; the pool stays usable.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Receiver, Sender};

use super::memory_budget::{GROWTH, MemoryBudget};
use super::scan::{Chunk, ChunkScanner, PartialAggregate};
use super::sharded_totals::ShardedTotals;
use crate::data_dir::disk::DiskFile;

/// The size of a chunk. A large chunk costs less to hand over and fills the batches of each shard; in a
/// smaller range chunks are smaller, so that every thread gets some.
const CHUNK_BYTES_MIN: u64 = 512 << 10;
const CHUNK_BYTES_MAX: u64 = 8 << 20;
/// The minimum size if memory is short: the chunks in progress may use a quarter of the budget.
const CHUNK_BYTES_LEAST: u64 = 64 << 10;
/// A range ends after this many bytes, so that progress becomes visible and little work is lost when a
/// run is interrupted.
const RANGE_BYTES_MAX: u64 = 1 << 30;

/// The aggregate of a range.
pub(crate) struct RangeAggregate {
    /// The end of the range, at or before the requested end.
    pub(crate) to: u64,
    pub(crate) partial: PartialAggregate,
    pub(crate) users: Arc<ShardedTotals>,
}

/// The threads; they end when this is dropped.
pub(crate) struct Pool {
    /// `None` only in `drop`.
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    /// For small ranges, on the calling thread.
    scanner: ChunkScanner,
    /// The memory budget of a range in bytes.
    range_bytes: usize,
    /// A fixed chunk size, in tests.
    chunk_bytes: Option<u64>,
}

struct Job {
    chunk: Chunk,
    users: Arc<ShardedTotals>,
    index: usize,
    partials: Sender<(usize, io::Result<PartialAggregate>)>,
}

impl Pool {
    /// Starts the threads, at least one, with the memory budget for a range.
    pub(crate) fn start(budget: &MemoryBudget) -> io::Result<Self> {
        let threads = budget.threads.max(1);
        let (jobs, received) = crossbeam_channel::bounded::<Job>(threads);
        let threads = (0..threads)
            .map(|number| {
                let received = received.clone();
                Builder::new()
                    .name(format!("process-scan-{number}"))
                    .spawn(move || work(&received))
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            jobs: Some(jobs),
            threads,
            scanner: ChunkScanner::new(),
            range_bytes: budget.range_bytes,
            chunk_bytes: None,
        })
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

    /// How many chunks are given to the threads before the first result is needed.
    fn ahead(&self) -> usize {
        self.threads.len() * 2
    }

    /// Aggregates `[from, to)`, or as much of it as the memory budget allows, but at least one chunk.
    pub(crate) fn scan(
        &mut self,
        file: &Arc<dyn DiskFile>,
        from: u64,
        to: u64,
    ) -> io::Result<RangeAggregate> {
        let users = Arc::new(ShardedTotals::new());
        let whole = Chunk {
            file: Arc::clone(file),
            range_start: from,
            range_end: to,
            start: from,
            end: to,
        };
        let ahead = self.ahead();
        let chunk_bytes = self.chunk_bytes_for(to - from);
        if to - from <= chunk_bytes {
            let partial = self.scanner.scan(&whole, &users)?;
            return Ok(RangeAggregate { to, partial, users });
        }
        let growth = usize::try_from(chunk_bytes).map_err(io::Error::other)? * GROWTH;
        let (sender, received) = crossbeam_channel::unbounded();
        let mut partials = PartialAggregates::default();
        let mut handed_out = 0;
        let mut end = from;
        loop {
            let held = partials.memory_bytes + users.memory_bytes();
            let growing = (handed_out - partials.received + 1) * growth;
            let full =
                (held + growing > self.range_bytes && end > from) || end - from >= RANGE_BYTES_MAX;
            if end < to && !full && handed_out - partials.received < ahead {
                let start = end;
                end = to.min(start.saturating_add(chunk_bytes));
                let job = Job {
                    chunk: Chunk {
                        start,
                        end,
                        ..whole.clone()
                    },
                    users: Arc::clone(&users),
                    index: handed_out,
                    partials: sender.clone(),
                };
                handed_out += 1;
                let sent = self
                    .jobs
                    .as_ref()
                    .is_some_and(|jobs| jobs.send(job).is_ok());
                if !sent {
                    return Err(io::Error::other("the scanning threads have ended"));
                }
            } else if partials.received < handed_out {
                let (index, partial) = received.recv().map_err(io::Error::other)?;
                partials.insert(index, partial?);
            } else {
                break;
            }
        }
        let partial = partials.join();
        Ok(RangeAggregate {
            to: from + partial.bytes(),
            partial,
            users,
        })
    }
}

impl Pool {
    /// The chunk size for a range of `length` bytes.
    fn chunk_bytes_for(&self, length: u64) -> u64 {
        let share = length / (self.threads.len() as u64 * 4);
        let quarter = (self.range_bytes / (4 * GROWTH * self.ahead())) as u64;
        self.chunk_bytes.unwrap_or(
            share
                .clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)
                .min(quarter.max(CHUNK_BYTES_LEAST)),
        )
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // `work` reports a panic as an error of its chunk.
            drop(thread.join());
        }
    }
}

/// The partial aggregates received so far. They are joined in order; those after a gap wait in `early`.
#[derive(Default)]
struct PartialAggregates {
    joined: PartialAggregate,
    next: usize,
    early: std::collections::BTreeMap<usize, PartialAggregate>,
    received: usize,
    memory_bytes: usize,
}

impl PartialAggregates {
    fn insert(&mut self, index: usize, partial: PartialAggregate) {
        self.received += 1;
        self.memory_bytes += partial.memory_bytes();
        self.early.insert(index, partial);
        while let Some(partial) = self.early.remove(&self.next) {
            self.joined.append(partial);
            self.next += 1;
        }
    }

    fn join(self) -> PartialAggregate {
        self.joined
    }
}

fn work(jobs: &Receiver<Job>) {
    let mut scanner = ChunkScanner::new();
    for job in jobs {
        let partial = catch_unwind(AssertUnwindSafe(|| scanner.scan(&job.chunk, &job.users)))
            .unwrap_or_else(|_| {
                scanner = ChunkScanner::new();
                Err(io::Error::other(
                    "scanning a chunk panicked; please report this",
                ))
            });
        drop(job.users);
        // The receiver is closed if another chunk of the range has failed.
        let _failed = job.partials.send((job.index, partial));
    }
}
