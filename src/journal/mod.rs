//! The journal: the only writer of `events.jsonl`, and the promise behind every 2xx.
//!
//! # The directory
//! `events.jsonl` is the active segment, number `n` = 1 + the highest number of any sealed segment.
//! Sealing renames it to `events-<UTC time>-<n>.jsonl`; the number alone is its identity. A
//! [`Position`] is `n-offset`.
//!
//! # Append (the committer thread)
//! 1. Take all waiting appends, up to a bound in bytes.
//! 2. Write them at the durable end.
//! 3. fdatasync.
//! 4. fstat: still linked, and the length is ours.
//! 5. Move the durable end, publish it, answer each waiter with its own position.
//!
//! If 2 or 3 fails, the file is cut back to the durable end and synced, and the whole group is told
//! that nothing was appended. If cutting fails or 4 does not hold, the journal is **poisoned**: no
//! acknowledgement until a restart; those who waited are told that the outcome is unknown.
//!
//! # Rotate (the committer thread, between groups; never an empty file)
//! 1. rename `events.jsonl` to its sealed name, never replacing.
//! 2. fsync the directory.
//! 3. create the next `events.jsonl`, exclusively.
//! 4. fsync the directory.
//! 5. publish the new segment.
//!
//! If 1 fails: stay on the file, try later. 2 or 4: poisoned. 3: appends are refused while creating
//! is tried again. The directory is opened for 2 before 1 and for 4 before 3, so that having no
//! descriptor left is a failure of 1 or 3.
//!
//! # Recover
//! See [`recover`](Journal::open): torn tails are kept in `quarantine/` and cut off, lost segments
//! are named, and nothing is believed before it is durable.
//!
//! Invariant 1 (ACK) is kept here. Of invariant 4, so is "acknowledged bytes never change". The
//! journal knows neither SQL nor HTTP.

mod catalog;
mod committer;
mod recover;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

pub use self::catalog::{APPLIED_DIR, Catalog, Found, Place, QUARANTINE_DIR};
pub use self::recover::Recovery;
use crate::fs::{Disk, DiskFile};
use crate::health::Health;
use crate::segment::Position;

/// Whole lines to append, each ended by `\n`, none empty; checked events all.
#[derive(Debug)]
pub struct Batch {
    /// The lines as they go to the file.
    pub bytes: Vec<u8>,
    /// How many.
    pub lines: u32,
}

/// Why nothing of a batch was acknowledged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The disk is full, or its reserve or `--max-disk` would be touched. Nothing was appended.
    #[error("{0}")]
    DiskFull(String),
    /// The queue in front of the disk is full. Nothing was appended.
    #[error("{waiting} bytes already wait to be written; send again in a moment")]
    Busy {
        /// Bytes in the queue.
        waiting: u64,
    },
    /// The server is stopping. Nothing was appended.
    #[error("the server is stopping; send again once it is back")]
    Stopping,
    /// The write or the sync failed and was undone, or the journal was poisoned before. Nothing
    /// was appended.
    #[error("{0}")]
    Failed(String),
    /// It failed and could not be undone: the events may count or not.
    #[error("{0}")]
    Unknown(String),
}

/// Called exactly once, on the committer thread mostly (so it must not block): the position after
/// the batch's last line, durable; or why not.
pub type AppendDone = Box<dyn FnOnce(Result<Position, AppendError>) + Send>;

/// How the journal behaves. All bounds are inclusive.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Seal the active segment this long after its first line; `None`: never by age.
    pub rotate_every: Option<Duration>,
    /// Seal the active segment once it holds this many bytes.
    pub rotate_bytes: u64,
    /// How often the path, the disk and the age are looked at when nothing else happens.
    pub check_every: Duration,
    /// Bytes that may wait to be written; past it appends are refused as busy.
    pub queue_bytes_max: u64,
    /// Free bytes that appends leave untouched, for applying and pruning.
    pub disk_reserve_bytes: u64,
    /// The most bytes the data directory may hold; `None`: no bound.
    pub disk_bytes_max: Option<u64>,
}

impl Default for JournalConfig {
    /// Nothing by itself: no rotation, a look each second, a queue of 64 MiB, no bound on the disk.
    fn default() -> Self {
        Self {
            rotate_every: None,
            rotate_bytes: u64::MAX,
            check_every: Duration::from_secs(1),
            queue_bytes_max: 64 << 20,
            disk_reserve_bytes: 0,
            disk_bytes_max: None,
        }
    }
}

/// A segment the database has a row for, as far as recovery needs it.
#[derive(Clone, Copy, Debug)]
pub struct KnownSegment {
    /// Its number.
    pub number: u64,
    /// Bytes of it that are applied.
    pub applied_bytes: u64,
    /// Whether the database has seen it sealed.
    pub sealed: bool,
}

/// Why the journal did not open.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk said no.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No committer thread could be started.
    #[error("cannot start the committer thread")]
    Thread(#[source] std::io::Error),
}

impl JournalError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// What is durable now.
#[derive(Clone)]
pub struct Tail {
    /// The active segment.
    pub number: u64,
    /// Bytes of it that are durable; everything of lower segments is.
    pub durable_end: u64,
    /// Lines made durable by this process in all segments.
    pub lines: u64,
    /// The active segment's file, for reading below `durable_end` (valid after a rotation too).
    pub file: Arc<dyn DiskFile>,
}

/// The handle to the committer thread; cheap to clone.
#[derive(Clone)]
pub struct Journal {
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

/// What appenders, readers and the committer share.
struct Shared {
    /// Bytes in the queue, for the bound.
    queued_bytes: AtomicU64,
    queue_bytes_max: u64,
    tail: Mutex<Tail>,
    /// When the disk was last asked for something it has not answered yet.
    disk_call: Mutex<Option<Instant>>,
}

enum Command {
    Append(Pending),
    Rotate(Pending),
    Stop,
}

/// A batch and who waits for it. Whatever happens to it, `done` is called exactly once.
struct Pending {
    batch: Batch,
    done: Option<AppendDone>,
    shared: Arc<Shared>,
}

impl Pending {
    fn answer(mut self, result: Result<Position, AppendError>) {
        self.finish(result);
    }

    /// Gives the bytes back to the queue's bound, then answers; the second time, nothing.
    fn finish(&mut self, result: Result<Position, AppendError>) {
        let bytes = std::mem::take(&mut self.batch.bytes);
        self.shared
            .queued_bytes
            .fetch_sub(bytes.len() as u64, Ordering::Relaxed);
        if let Some(done) = self.done.take() {
            done(result);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.finish(Err(AppendError::Stopping));
    }
}

/// The committer thread; stopping it seals what is there.
pub struct Committer {
    commands: Sender<Command>,
    thread: JoinHandle<()>,
}

impl Journal {
    /// Recovers the directory and starts the committer thread. `known` are the database's rows of
    /// our segments, or nothing while the database can't be read: taking does not wait for it. The
    /// caller holds `serve.lock`. Never reads whole files.
    pub fn open(
        disk: Arc<dyn Disk>,
        data_dir: &Path,
        config: JournalConfig,
        known: &[KnownSegment],
        health: Arc<Health>,
    ) -> Result<(Self, Committer, Recovery), JournalError> {
        let (active, recovery) = recover::recover(&*disk, data_dir, known)?;
        let shared = Arc::new(Shared {
            queued_bytes: AtomicU64::new(0),
            queue_bytes_max: config.queue_bytes_max,
            tail: Mutex::new(Tail {
                number: active.number,
                durable_end: active.durable_end,
                lines: 0,
                file: Arc::clone(&active.file),
            }),
            disk_call: Mutex::new(None),
        });
        let watched = Arc::clone(&shared);
        health.watch(Box::new(move || watched.stuck()));
        let (commands, received) = crossbeam_channel::unbounded();
        let thread = committer::start(
            disk,
            data_dir,
            config,
            active,
            received,
            Arc::clone(&shared),
            health,
        )?;
        let journal = Self {
            commands: commands.clone(),
            shared,
        };
        Ok((journal, Committer { commands, thread }, recovery))
    }

    /// Queues the batch; `done` is called when it is durable or refused (also right here, on this
    /// thread, when the queue is full or the journal has stopped). A batch of any size is taken
    /// into an empty queue.
    pub fn append(&self, batch: Batch, done: AppendDone) {
        let bytes = batch.bytes.len() as u64;
        let waiting = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let pending = self.pending(batch, done);
        if waiting > 0 && waiting + bytes > self.shared.queue_bytes_max {
            return pending.answer(Err(AppendError::Busy { waiting }));
        }
        // A send that fails gives the command back, and dropping it answers "stopping".
        drop(self.commands.send(Command::Append(pending)));
    }

    /// Seals the active segment now if it is not empty; `done` gets the position that everything
    /// acknowledged before is at or below.
    pub fn rotate(&self, done: AppendDone) {
        let pending = self.pending(
            Batch {
                bytes: Vec::new(),
                lines: 0,
            },
            done,
        );
        drop(self.commands.send(Command::Rotate(pending)));
    }

    /// What is durable now.
    pub fn tail(&self) -> Tail {
        self.shared.tail().clone()
    }

    /// Bytes that wait to be written, and the bound past which appends are refused.
    pub fn queued_bytes(&self) -> (u64, u64) {
        (
            self.shared.queued_bytes.load(Ordering::Relaxed),
            self.shared.queue_bytes_max,
        )
    }

    fn pending(&self, batch: Batch, done: AppendDone) -> Pending {
        Pending {
            batch,
            done: Some(done),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Committer {
    /// Commits what waits, seals the active segment and ends the thread. Appends that come later
    /// are told that the server is stopping.
    pub fn stop(self) {
        drop(self.commands.send(Command::Stop));
        if self.thread.join().is_err() {
            tracing::error!(
                "the committer thread panicked; what it had not acknowledged may be lost"
            );
        }
    }
}

/// A write or sync that takes longer than this is a stuck disk.
const DISK_CALL_MAX: Duration = Duration::from_secs(5);

impl Shared {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the disk is asked (or has answered), so that a call that hangs can be told.
    fn note_disk_call(&self, began: Option<Instant>) {
        *self
            .disk_call
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = began;
    }

    fn stuck(&self) -> Option<String> {
        let began = (*self
            .disk_call
            .lock()
            .unwrap_or_else(PoisonError::into_inner))?;
        let waited = began.elapsed();
        (waited > DISK_CALL_MAX).then(|| {
            format!(
                "the disk has not answered a write for {} s; nothing is acknowledged meanwhile",
                waited.as_secs()
            )
        })
    }
}

type Commands = Receiver<Command>;
