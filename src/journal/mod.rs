//! The journal appends events to `events.jsonl` and makes them durable before a request is
//! acknowledged. Its committer thread is the only writer of that file.
//!
//! # The directory
//! `events.jsonl` is the active segment; sealing renames it to
//! `events-<UTC time>-<number>-<tag>-<length>-<checksum>.jsonl`. The identity of a segment is stored
//! in three places, each of which is written independently:
//! - in `directory.json` ([`Directory`](crate::data_dir::Directory)), before the file is created;
//! - in the file: its first line ends in the segment's [`Label`](crate::data_dir::segment::Label). The label is written together with
//!   that line, so every acknowledged byte lies in a file that carries a label;
//! - in the name of the sealed file.
//!
//! The name of a sealed file contains the length and the CRC-32 of the acknowledged bytes ([`Seal`]).
//! The committer updates both as it appends; recovery takes them from the database's row and the
//! bytes beyond it. The rename that seals the file makes them durable, so no crash leaves a sealed
//! file without them. A file that contradicts its name is not applied. The name of a segment that
//! recovery seals (in a copied directory, or when the database has applied more bytes than the file
//! holds) has no length, because the acknowledged length is unknown.
//!
//! A copy of the directory taken while segments change may combine an old `directory.json` with a
//! newer `events.jsonl`, or the reverse. The label takes precedence then, and a number without a file
//! is reported as missing. A [`Position`] is `number-offset`.
//!
//! # Append (the committer thread)
//! 1. Take all waiting appends, up to a bound in bytes.
//! 2. Check that the file ends at the durable end and that this process still holds the lock. Write
//!    the group at the durable end. The first line of a segment gets its label here.
//! 3. fdatasync.
//! 4. fstat: the file is still linked and has the expected length. For the first group of a segment,
//!    write `started` to `directory.json`, durably.
//! 5. Advance the durable end and its checksum, publish them, answer each append with its position.
//!
//! If writing (2), syncing (3) or replacing `directory.json` (4) fails, the file is truncated to the durable end
//! and synced, and every append of the group fails with "nothing was appended". If the truncation or the rest of
//! step 4 fails, the journal is **poisoned**: it acknowledges nothing until a restart, and the appends of the group fail with
//! "outcome unknown". If the check in step 2 fails, the journal is poisoned as well, but nothing of the
//! group was appended.
//!
//! # Rotate (the committer thread, between groups; never an empty file)
//! 1. Check that the file's length is the durable end, that the path leads to the open file, and that
//!    this process holds the lock. Rename `events.jsonl` to its sealed name, which contains its length
//!    and checksum. An existing file is never replaced.
//! 2. fsync the directory.
//! 3. Replace `directory.json` (the next number, a new token, not started). Create the next
//!    `events.jsonl` exclusively and lock it.
//! 4. fsync the directory.
//! 5. Publish the new segment.
//!
//! If 1 fails, the journal keeps appending to the file and tries again later. If 2 or 4 fails, the
//! journal is poisoned. If 3 fails, appends are refused and creation is retried. The directory is
//! opened for 2 before 1, and for 4 before 3, so that a lack of file descriptors makes 1 or 3 fail.
//! The next number is the lowest one above the current that no file has.
//!
//! A crash after rotate 1 or 2 leaves no `events.jsonl`, and a `directory.json` that names a sealed
//! segment: recovery creates the next one. A crash after `directory.json` was replaced leaves its
//! segment empty or absent: recovery creates it if it is absent. A crash after append 2 or 3 of a
//! segment's first group leaves a file of a segment that has not started, with a label or without a
//! complete line.
//!
//! # Recover (at start, locks held, before anything listens)
//! 0. `directory.json` is read, or written where there is none. The directory, each month of `applied/`
//!    and `quarantine/` are fsynced.
//! 1. `events.jsonl` is locked, rewritten from the applied offset on, and fdatasync'd. After a failed
//!    sync the page cache may hold data that never reached the disk, and a second sync alone would not
//!    write it. The last line end is the durable end after this.
//! 2. The segment is identified by its label, otherwise by `directory.json`. A copy of a sealed
//!    segment, or another segment of a known number, is moved to `quarantine/`. A file without a label
//!    is imported; if the active segment had started, the file is moved to `quarantine/`.
//! 3. Bytes after the durable end were never acknowledged. They are copied to
//!    `quarantine/torn-<number>-<offset>` and truncated.
//! 4. A started segment whose file is missing or empty gets a note `quarantine/missing-<number>`.
//! 5. A segment that must not grow (a later one was created, or the database has it sealed or longer)
//!    is sealed as it is. If there is no file to append to, rotate 3 and 4 create one.
//!
//! # How changes by other programs are detected
//! | change | detected by |
//! |---|---|
//! | a sealed file truncated, extended, edited, or replaced by an older copy, before it is applied | its name |
//! | the same, after it is applied | its row: by `verify`, when it is pruned, and when it is archived unless this process has read all of it |
//! | the active file, while a server runs | length, path and lock: before each group and once a second; content after the applied offset: when it is sealed; before it: by `verify`, and when it is pruned |
//! | the active file, while no server runs: missing, empty, without its label, or shorter than the applied offset | `directory.json` and the row |
//! | the same: edited before the applied offset | the row's checksum |
//! | **the same: truncated at a line end or edited after the applied offset** | **not detected** if the file was not sealed (kill, crash, power failure). A durable length would cost a second sync for each group. With a processor, this concerns the events of the last flush interval; with `--no-process`, all events of the active segment: rotate often, or stop the server, which seals the file |
//! | a sealed file renamed to a name without length and checksum | not detected: this is how an operator accepts a changed file |
//!
//! This module keeps invariant 1 (acknowledgement), and of invariant 4 the part "acknowledged bytes never
//! change". It depends neither on SQL nor on HTTP.

mod committer;
mod error;
mod known;
mod queue;
mod recover;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

pub use self::error::{AppendError, JournalError};
pub use self::known::{KnownSegment, KnownSegments};
use self::queue::{Command, QueuedBatch};
pub use self::recover::{Recovery, active_numbers};
use crate::data_dir::disk::{Disk, DiskFile, Lock};
#[cfg(doc)]
use crate::data_dir::segment::Seal;
use crate::data_dir::segment::{Numbers, Position, Tag};
use crate::health::Health;

/// Complete lines to append: each ends in `\n`, none is empty, and each is a valid event.
#[derive(Debug)]
pub struct Batch {
    /// The lines as they are written to the file.
    pub bytes: Vec<u8>,
}

/// Called exactly once, usually on the committer thread, so it must not block. It receives the
/// durable position after the last line of the batch, or the error. The waker that it returns is called
/// after all appends of the group were answered, so that a thread that handles their results is woken
/// once for the group.
pub type AppendDone = Box<dyn FnOnce(Result<Position, AppendError>) -> Option<Waker> + Send>;
/// As [`AppendDone`], for a rotation.
pub type RotateDone = Box<dyn FnOnce(Result<Position, AppendError>) + Send>;

/// The settings of the journal. All bounds are inclusive.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Seal the active segment this long after its first line; `None`: never by age.
    pub rotate_interval: Option<Duration>,
    /// Seal the active segment once it holds this many bytes.
    pub rotate_size: u64,
    /// The interval of the periodic check of the path, the lock and the free space.
    pub check_every: Duration,
    /// Maximum size of the queue in bytes; further appends fail with [`AppendError::Busy`].
    pub queue_bytes_max: u64,
    /// Free bytes that appends must not use; they are kept for applying and pruning.
    pub disk_reserve_bytes: u64,
    /// Maximum size of the data directory in bytes; `None`: unlimited.
    pub disk_bytes_max: Option<u64>,
    /// The lock that makes this process the only writer. It is checked before each group: if its
    /// path no longer leads to the locked file, the journal is poisoned. `None`: no check.
    pub lock: Option<Arc<Lock>>,
}

impl Default for JournalConfig {
    /// No rotation, a check each second, a queue of 64 MiB, no bound on disk space.
    fn default() -> Self {
        Self {
            rotate_interval: None,
            rotate_size: u64::MAX,
            check_every: Duration::from_secs(1),
            queue_bytes_max: 64 << 20,
            disk_reserve_bytes: 0,
            disk_bytes_max: None,
            lock: None,
        }
    }
}

/// The durable end of the journal at one moment.
#[derive(Clone)]
pub struct Tail {
    /// The number of the active segment.
    pub number: u64,
    /// The tag of the active segment.
    pub tag: Tag,
    /// The number of durable bytes of the active segment; lower segments are durable completely.
    pub durable_end: u64,
    /// Lines that this process has made durable, in all segments.
    pub lines: u64,
    /// The active segment's file, for reading below `durable_end`; it stays valid after a rotation.
    pub file: Arc<dyn DiskFile>,
}

impl Tail {
    /// The position of the durable end.
    pub fn end(&self) -> Position {
        Position {
            segment: self.number,
            offset: self.durable_end,
        }
    }
}

/// The handle to the committer thread; cheap to clone.
#[derive(Clone)]
pub struct Journal {
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

/// The state shared by appenders, readers and the committer.
struct Shared {
    /// Bytes in the queue.
    queued_bytes: AtomicU64,
    queue_bytes_max: u64,
    tail: Mutex<Tail>,
    /// Numbers in use by files of the directory; no new segment gets one of them.
    taken: Mutex<Numbers>,
    /// New segments get numbers above this one.
    floor: AtomicU64,
    directory: uuid::Uuid,
    /// The start of the write and sync in progress; `None` between them.
    disk_call: Mutex<Option<Instant>>,
}

/// The committer thread. [`Committer::stop`] seals the active segment.
pub struct Committer {
    commands: Sender<Command>,
    thread: JoinHandle<Option<String>>,
}

impl Journal {
    /// Recovers the directory and starts the committer thread. `known` has the native segments of the
    /// database; it is empty if the database cannot be read, because appending does not need the
    /// database. The caller must hold `serve.lock`. Sealed files are not read.
    pub fn open(
        disk: Arc<dyn Disk>,
        data_dir: &Path,
        config: JournalConfig,
        known: &KnownSegments,
        health: Arc<Health>,
    ) -> Result<(Self, Committer, Recovery), JournalError> {
        let (active, recovery) = recover::recover(&*disk, data_dir, known)?;
        if let Some(contradiction) = &recovery.contradiction {
            health.set("active file", contradiction);
        }
        let shared = Arc::new(Shared {
            queued_bytes: AtomicU64::new(0),
            queue_bytes_max: config.queue_bytes_max,
            tail: Mutex::new(Tail {
                number: active.directory.number,
                tag: active.directory.label().tag,
                durable_end: active.durable_end,
                lines: 0,
                file: Arc::clone(&active.file),
            }),
            taken: Mutex::new(active.taken.clone()),
            floor: AtomicU64::new(known.pruned),
            directory: active.directory.id,
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

    /// Queues the batch. `done` is called when the batch is durable or has failed; if the queue is full
    /// or the journal has stopped, it is called on this thread. An empty queue accepts a batch of any
    /// size.
    pub fn append(&self, batch: Batch, done: AppendDone) {
        let bytes = batch.bytes.len() as u64;
        let waiting = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let pending = self.pending(batch, done);
        if waiting > 0 && waiting + bytes > self.shared.queue_bytes_max {
            let waker = pending.answer(Err(AppendError::Busy { waiting }));
            return waker.into_iter().for_each(Waker::wake);
        }
        // If the send fails, the command is dropped, which answers `Stopping`.
        drop(self.commands.send(Command::Append(pending)));
    }

    /// Seals the active segment now, unless it is empty. `done` receives the end of the journal:
    /// everything acknowledged before is at or below that position.
    pub fn rotate(&self, done: RotateDone) {
        let done = |result| {
            done(result);
            None
        };
        let pending = self.pending(Batch { bytes: Vec::new() }, Box::new(done));
        drop(self.commands.send(Command::Rotate(pending)));
    }

    /// The current durable end.
    pub fn tail(&self) -> Tail {
        self.shared.tail().clone()
    }

    /// The UUID of the data directory.
    pub fn directory(&self) -> uuid::Uuid {
        self.shared.directory
    }

    /// Reserves all numbers up to and including this one: new segments get higher ones.
    pub fn reserve_up_to(&self, number: u64) {
        self.shared.floor.fetch_max(number, Ordering::Relaxed);
    }

    /// Reserves a number that is in use by a file: no new segment gets it.
    pub fn reserve(&self, number: u64) {
        self.shared.taken().insert(number);
    }

    /// Reserves these numbers: no new segment gets one of them.
    pub fn reserve_all(&self, numbers: &Numbers) {
        let mut taken = self.shared.taken();
        numbers.ranges().for_each(|range| taken.insert_range(range));
    }

    /// The size of the queue in bytes, and its maximum.
    pub fn queued_bytes(&self) -> (u64, u64) {
        (
            self.shared.queued_bytes.load(Ordering::Relaxed),
            self.shared.queue_bytes_max,
        )
    }

    fn pending(&self, batch: Batch, done: AppendDone) -> QueuedBatch {
        QueuedBatch {
            batch,
            done: Some(done),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Committer {
    /// Commits the queued appends, seals the active segment and joins the thread. Later appends fail
    /// with [`AppendError::Stopping`]. Returns why the segment is not sealed; `None` if it is.
    pub fn stop(self) -> Option<String> {
        drop(self.commands.send(Command::Shutdown));
        self.thread.join().unwrap_or_else(|_| {
            Some(
                "the committer thread panicked; events that it had not acknowledged may be lost"
                    .to_owned(),
            )
        })
    }
}

/// A write and sync that takes longer than this is reported as a stuck disk.
const DISK_CALL_MAX: Duration = Duration::from_secs(5);

impl Shared {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taken(&self) -> MutexGuard<'_, Numbers> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the start of a disk call (or `None` at its end), so that readiness can report a call
    /// that hangs.
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
                "the disk has not completed a write for {} s; no events are acknowledged until it does",
                waited.as_secs()
            )
        })
    }
}
