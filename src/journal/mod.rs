//! The journal: the only writer of `events.jsonl`, and the promise behind every 2xx.
//!
//! # The directory
//! `events.jsonl` is the active segment; sealing renames it to
//! `events-<UTC time>-<number>-<tag>-<length>-<checksum>.jsonl`. Which segment it is stands in three places, none of
//! which is guessed from another:
//! - in `directory.json` ([`Directory`]), written before the file is created;
//! - in the file: its first line ends in the segment's [`Label`], which is written together with that
//!   line, so no byte is ever acknowledged in a file that does not say which segment it is;
//! - in the sealed file's name.
//!
//! What was acknowledged in a sealed segment, its length and CRC-32, is in its name ([`Seal`]): the
//! committer keeps both as it appends, and a recovery takes them from the database's row and the
//! bytes beyond it. The rename that seals makes them durable, so they need no step of their own, and no
//! crash leaves a sealed file without them. Nothing of a file that contradicts its name is applied.
//! The name of a segment that recovery seals (one of a copied directory, or one that the database
//! knows to be longer) has no length, because nothing says what was acknowledged in it.
//!
//! A copy of the directory taken while segments change may combine an old `directory.json` with a
//! newer `events.jsonl`, or the other way round. The label decides then, and a number that is left
//! without a file is reported as missing. A [`Position`] is `number-offset`.
//!
//! # Append (the committer thread)
//! 1. Take all waiting appends, up to a bound in bytes.
//! 2. Write them at the durable end, where the file must end and the lock must still be ours. The
//!    first line of a segment gets its label here.
//! 3. fdatasync.
//! 4. fstat: still linked, and the length is ours. For the first group of a segment:
//!    `directory.json` says "started", durably.
//! 5. Move the durable end and its checksum, publish it, answer each waiter with its own position.
//!
//! If 2 or 3 fails, the file is cut back to the durable end and synced, and the whole group is told
//! that nothing was appended. If cutting fails or 4 does not hold, the journal is **poisoned**: no
//! acknowledgement until a restart; those who waited are told that the outcome is unknown. The same
//! where 2 finds the file changed or the lock lost, but then nothing was appended.
//!
//! # Rotate (the committer thread, between groups; never an empty file)
//! 1. rename `events.jsonl` to its sealed name, which says its length and checksum, never replacing.
//!    Its length must be the durable end, the path must lead to it and the lock be ours.
//! 2. fsync the directory.
//! 3. replace `directory.json`: the next number and a new token, not started; create the next
//!    `events.jsonl`, exclusively, and lock it.
//! 4. fsync the directory.
//! 5. publish the new segment.
//!
//! If 1 fails: stay on the file, try later. 2 or 4: poisoned. 3: appends are refused while creating
//! is tried again. The directory is opened for 2 before 1 and for 4 before 3, so that having no
//! descriptor left is a failure of 1 or 3. The next number is the first that no file bears.
//!
//! A crash after rotate 1 or 2 leaves no `events.jsonl` and a `directory.json` whose segment is
//! sealed: the next number is created. After `directory.json` was replaced: its segment is created,
//! or is there and empty. After append 2 or 3 of a segment's first group: a file with a label, or
//! without a whole line, of a segment that has not started.
//!
//! # Recover (at start, locks held, before anything listens)
//! 0. `directory.json` is read, or written where there is none. The directory, each month of `applied/`
//!    and `quarantine/` are fsynced.
//! 1. `events.jsonl` is locked, written again from what the database has applied of it, and
//!    fdatasync'd: after a sync that failed, pages read as written that never reached the disk. Only
//!    then is its last line end the durable end.
//! 2. Which segment it is, is decided by its label, then by `directory.json`. A copy of a sealed
//!    segment, or another segment of a known number, is moved to `quarantine/`; a file without a label
//!    is imported, or set aside where the active segment had started.
//! 3. Bytes after the durable end were never acknowledged: they are copied to
//!    `quarantine/torn-<number>-<offset>` and cut off.
//! 4. A started segment without a file, or with an empty one, gets a note `quarantine/lost-<number>`.
//! 5. A segment that must not grow (a later one was created, the database has it sealed or longer) is
//!    sealed as it is. Where there is no file to go on with, rotate 3 and 4 create one.
//!
//! # What is noticed when another program changes a file
//! | what | noticed |
//! |---|---|
//! | a sealed file cut, grown, edited, or replaced by an older copy, before it is applied | by its name |
//! | the same afterwards | by its row: when it is archived or pruned, and by `verify` |
//! | the active file, while a server runs | length, path and lock: before each group and each second; content: when it is sealed and applied |
//! | the active file, while no server runs: gone, empty, without its label, or shorter than what is applied | by `directory.json` and the row |
//! | the same: edited in what is applied | by the row's checksum |
//! | **the same: cut at a line end or edited beyond what is applied** | **not**, where it was not sealed (kill, crash, power cut). A durable length would cost a second sync for each group. With a processor that is what came in the last flush interval; with `--no-process`, everything in the active segment: rotate often, or stop the server, which seals |
//! | a sealed file renamed to a name without length and checksum | not: that is how a changed file is accepted |
//!
//! Invariant 1 (ACK) is kept here. Of invariant 4, so is "acknowledged bytes never change". The
//! journal knows neither SQL nor HTTP.

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

pub use self::recover::{Recovery, active_numbers};
use crate::data_dir::DataDirError;
use crate::data_dir::disk::{Disk, DiskFile, Lock};
#[cfg(doc)]
use crate::data_dir::segment::Seal;
use crate::data_dir::segment::{Label, Numbers, Position, Tag};
use crate::health::Health;

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
    pub rotate_interval: Option<Duration>,
    /// Seal the active segment once it holds this many bytes.
    pub rotate_size: u64,
    /// How often the path, the disk and the age are looked at when nothing else happens.
    pub check_every: Duration,
    /// Bytes that may wait to be written; past it appends are refused as busy.
    pub queue_bytes_max: u64,
    /// Free bytes that appends leave untouched, for applying and pruning.
    pub disk_reserve_bytes: u64,
    /// The most bytes the data directory may hold; `None`: no bound.
    pub disk_bytes_max: Option<u64>,
    /// The lock that makes this process the only writer, looked at before each group: where its
    /// path no longer leads to it, nothing is appended. `None`: the caller sees to that.
    pub lock: Option<Arc<Lock>>,
}

impl Default for JournalConfig {
    /// Nothing by itself: no rotation, a look each second, a queue of 64 MiB, no bound on the disk.
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

/// A native segment that the database has a row for, as far as recovery needs it.
#[derive(Clone, Copy, Debug)]
pub struct KnownSegment {
    /// Its number.
    pub number: u64,
    /// Which of that number; `None` where that is not known.
    pub tag: Option<Tag>,
    /// Bytes of it that are applied.
    pub applied_bytes: u64,
    /// CRC-32 of those bytes; `None` where that is not known.
    pub checksum: Option<u32>,
    /// Whether the database has seen it sealed.
    pub sealed: bool,
}

/// What the database knows of the directory; nothing while it cannot be read.
#[derive(Clone, Debug, Default)]
pub struct KnownSegments {
    /// The UUID of the data directory that it belongs to.
    pub directory: Option<uuid::Uuid>,
    /// Its rows of native segments: at least of those that are not fully applied, and of the active
    /// one, see [`active_numbers`].
    pub segments: Vec<KnownSegment>,
    /// The numbers of the segments that have a row, but none here: they are fully applied.
    pub applied: Numbers,
    /// The highest number that retention has pruned; 0 if none.
    pub pruned: u64,
}

impl KnownSegments {
    /// The highest number that the database knows of; 0 if none.
    pub fn highest(&self) -> u64 {
        let rows = self.segments.iter().map(|row| row.number).max();
        let applied = self.applied.last();
        rows.max(applied).unwrap_or(0).max(self.pruned)
    }

    /// What is known of a number. Of a fully applied segment whose row was not given, that nothing may
    /// be appended to it.
    pub(crate) fn row(&self, number: u64) -> Option<KnownSegment> {
        let row = self.segments.iter().find(|row| row.number == number);
        let applied = KnownSegment {
            number,
            tag: None,
            applied_bytes: 0,
            checksum: None,
            sealed: true,
        };
        row.copied()
            .or_else(|| self.applied.contains(number).then_some(applied))
    }
}

/// Why the journal did not open.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file or directory could not be read or written.
    #[error(transparent)]
    Io(#[from] DataDirError),
    /// Another process has the active file locked.
    #[error("cannot lock {}: another server appends to it; only one may run in a data directory", path.display())]
    Locked {
        /// The active file.
        path: PathBuf,
    },
    /// No committer thread could be started.
    #[error("cannot start the committer thread")]
    Thread(#[source] std::io::Error),
}

impl JournalError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| DataDirError::io(action, path)(source).into()
    }
}

/// What is durable now.
#[derive(Clone)]
pub struct Tail {
    /// The active segment.
    pub number: u64,
    /// Its tag.
    pub tag: Tag,
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
    /// Numbers that files in the directory bear and that no new segment gets.
    taken: Mutex<Numbers>,
    /// ... nor any number up to this one.
    floor: AtomicU64,
    directory: uuid::Uuid,
    /// When the disk was last asked for something it has not answered yet.
    disk_call: Mutex<Option<Instant>>,
}

enum Command {
    Append(Pending),
    Rotate(Pending),
    Shutdown,
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
    /// Recovers the directory and starts the committer thread. `known` is what the database says of
    /// native segments, or nothing while it cannot be read: appending does not wait for it. The
    /// caller holds `serve.lock`. Never reads whole files.
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

    /// The UUID of the data directory.
    pub fn directory(&self) -> uuid::Uuid {
        self.shared.directory
    }

    /// Keeps this number and all below it from being given to a new segment.
    pub fn reserve_up_to(&self, number: u64) {
        self.shared.floor.fetch_max(number, Ordering::Relaxed);
    }

    /// Keeps a number from being given to a new segment: a file bears it.
    pub fn reserve(&self, number: u64) {
        self.shared.taken().insert(number);
    }

    /// Keeps these numbers from being given to a new segment.
    pub fn reserve_all(&self, numbers: &Numbers) {
        let mut taken = self.shared.taken();
        numbers.ranges().for_each(|range| taken.insert_range(range));
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
        drop(self.commands.send(Command::Shutdown));
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

    fn taken(&self) -> MutexGuard<'_, Numbers> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
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
