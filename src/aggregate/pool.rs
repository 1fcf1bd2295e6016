//! The pool of scanning threads, and how a range is put together from their pieces.
//!
//! The coordinator hands out chunks in order, a bounded number ahead, and joins the pieces in
//! order. Small ranges it scans itself: handing over costs more. When what is held, and what the
//! chunks handed out may come to, grows past the bound, no more chunks are handed out and the range
//! ends where the last one did.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Receiver, Sender};

use super::memory_budget::{GROWTH, MemoryBudget};
use super::scan::{Chunk, ChunkScanner, PartialAggregate};
use super::sharded_totals::ShardedTotals;
use crate::data_dir::disk::DiskFile;

/// A chunk's bytes: large enough to be worth handing over, and that a thread's events of one part
/// are many; in a small range less, so that all threads have some.
const CHUNK_BYTES_MIN: u64 = 512 << 10;
const CHUNK_BYTES_MAX: u64 = 8 << 20;
/// ... and where memory is short: the chunks on their way may take a quarter of it.
const CHUNK_BYTES_LEAST: u64 = 64 << 10;
/// A range ends past this many bytes: progress shows, and a run that is stopped has done most of its
/// work.
const RANGE_BYTES_MAX: u64 = 1 << 30;

/// A range, aggregate.
pub(crate) struct RangeAggregate {
    /// Where it ends; at or before where it was to end.
    pub(crate) to: u64,
    pub(crate) partial: PartialAggregate,
    pub(crate) users: Arc<ShardedTotals>,
}

/// The threads; they end when this is dropped.
pub(crate) struct Pool {
    /// `None` only while being dropped.
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    /// For small ranges, on the caller's thread.
    scanner: ChunkScanner,
    /// What a range may hold.
    range_bytes: usize,
    /// Only for tests.
    chunk_bytes: Option<u64>,
}

struct Job {
    chunk: Chunk,
    users: Arc<ShardedTotals>,
    index: usize,
    pieces: Sender<(usize, io::Result<PartialAggregate>)>,
}

impl Pool {
    /// As many threads, at least one, and as much memory for a range as their shares say.
    pub(crate) fn start(shares: &MemoryBudget) -> io::Result<Self> {
        let threads = shares.threads.max(1);
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
            range_bytes: shares.range_bytes,
            chunk_bytes: None,
        })
    }

    /// Chunks of another size, for tests.
    #[cfg(test)]
    pub(crate) fn with_chunk_bytes(mut self, chunk_bytes: u64) -> Self {
        self.chunk_bytes = Some(chunk_bytes);
        self
    }

    /// A range of so many bytes is scanned whole, on the caller's thread.
    pub(crate) fn small_bytes(&self) -> u64 {
        let quarter = (self.range_bytes / (4 * GROWTH * self.ahead())) as u64;
        self.chunk_bytes
            .unwrap_or(CHUNK_BYTES_MIN.min(quarter.max(CHUNK_BYTES_LEAST)))
    }

    /// The most memory that a range may use, in bytes.
    pub(crate) fn range_bytes(&self) -> usize {
        self.range_bytes
    }

    /// Chunks that are handed out before the first of them is done.
    fn ahead(&self) -> usize {
        self.threads.len() * 2
    }

    /// Folds `[from, to)`, or as much of it as a range may hold, but at least one chunk.
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
        let share = (to - from) / (self.threads.len() as u64 * 4);
        let quarter = (self.range_bytes / (4 * GROWTH * ahead)) as u64;
        let chunk_bytes = self.chunk_bytes.unwrap_or(
            share
                .clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)
                .min(quarter.max(CHUNK_BYTES_LEAST)),
        );
        if to - from <= chunk_bytes {
            let partial = self.scanner.scan(&whole, &users)?;
            return Ok(RangeAggregate { to, partial, users });
        }
        let growth = usize::try_from(chunk_bytes).map_err(io::Error::other)? * GROWTH;
        let (sender, received) = crossbeam_channel::unbounded();
        let mut pieces = PartialAggregates::default();
        let mut handed_out = 0;
        let mut end = from;
        loop {
            let held = pieces.memory_bytes + users.memory_bytes();
            let growing = (handed_out - pieces.received + 1) * growth;
            let full =
                (held + growing > self.range_bytes && end > from) || end - from >= RANGE_BYTES_MAX;
            if end < to && !full && handed_out - pieces.received < ahead {
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
                    pieces: sender.clone(),
                };
                handed_out += 1;
                let sent = self
                    .jobs
                    .as_ref()
                    .is_some_and(|jobs| jobs.send(job).is_ok());
                if !sent {
                    return Err(io::Error::other("the scanning threads are gone"));
                }
            } else if pieces.received < handed_out {
                let (index, partial) = received.recv().map_err(io::Error::other)?;
                pieces.take(index, partial?);
            } else {
                break;
            }
        }
        let partial = pieces.join();
        Ok(RangeAggregate {
            to: from + partial.bytes(),
            partial,
            users,
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // What panicked was told to whoever waited for the partial.
            drop(thread.join());
        }
    }
}

/// The pieces that have come, joined as far as they are without a gap.
#[derive(Default)]
struct PartialAggregates {
    joined: PartialAggregate,
    next: usize,
    early: std::collections::BTreeMap<usize, PartialAggregate>,
    received: usize,
    memory_bytes: usize,
}

impl PartialAggregates {
    fn take(&mut self, index: usize, partial: PartialAggregate) {
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
        // The coordinator may have given up on the range already.
        let _given_up = job.pieces.send((job.index, partial));
    }
}
