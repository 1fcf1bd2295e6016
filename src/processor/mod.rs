//! The processor: applies durable bytes to the totals in the database.
//!
//! One thread, `process`, owns the store's writer and all state. In each round it applies the active segment
//! up to the journal's durable end, and the sealed files that it finds by listing the data directory: native
//! segments by number, imported files by name. A round starts every flush interval, or when a request waits
//! for a position. Each range of a file ends at a line end; a pool of threads aggregates it into sums per
//! user, and [`Writer::apply`](crate::store::Writer::apply) commits them in one transaction. Fully applied
//! files are moved to `applied/YYYY-MM/`, which keeps the data directory small. A file is recognised in any of
//! these directories.
//!
//! With `--no-process`, `observer` publishes the state instead, while another process applies. `tallyline
//! process` applies on the caller's thread (`batch`), after it has imported the files that were named
//! (`import`).
//!
//! # Many small segments
//! Segments of up to 256 KiB that wait at the same time are applied together, at most 256 of them:
//! 1. Open each file.
//! 2. Make the files durable: by one `syncfs` if the file system reports write errors to it, otherwise
//!    by an fdatasync of each file.
//! 3. Verify and scan each file to its end. Its length must not have changed afterwards.
//! 4. Apply all of them in one transaction, in the order of the segments. Each row changes from its own
//!    offset to the end of its file, together with its own totals, ids and rejected lines.
//! 5. Update the state in memory.
//! 6. Make the archive's directories durable, rename each file, and sync the directories.
//!
//! After a crash before the commit every row has its old offset, and after a crash after it every row is
//! at the end of its file. The argument for one range therefore holds for each of them. If a total might
//! overflow, only that segment's range is repeated, within the transaction.
//!
//! # Several large segments
//! A larger segment that waits alone is applied by itself, in one or several transactions. If others wait after it,
//! most users would be written again by each of them. The sums of the segments are therefore added up (`folding`):
//! 1. Open and sync each file, verify it, and scan it to its end. Its length must not have changed afterwards. The
//!    sums go into the same tables, and into the same temporary files if they do not fit into the memory.
//! 2. Before the next file would exceed 1 GiB in a server, or in a batch run the bounds of a range, apply all of
//!    them in one transaction, in the order of the segments. Each row changes from its own offset to the end of its
//!    file, together with its own ids, rejected lines and counts; the totals change once for all of them. The
//!    events and the revenue of the segments must be those of the sums.
//! 3. Update the state in memory, and archive the files as above.
//!
//! If events with ids fill the memory, the last segment of a transaction ends at an earlier offset; its rest is
//! applied by itself. If a file cannot be read or has changed, or if a total might overflow, nothing is committed,
//! and the segments are applied one by one.
//!
//! # Invariants
//! - The processor never reads past the durable end. Otherwise a power failure could leave totals for lines
//!   that are lost. A file found by listing is synced, and its directory too, before it is applied.
//! - Before more of a file is applied, its applied prefix is verified by the checksum in its row, and the
//!   bytes after it by the length and checksum in the name of a sealed file. If one of them differs, the file
//!   is marked corrupt and readiness reports it; the other files are still applied.
//! - A number is missing if it has no file, no row of a fully applied segment, and was not pruned. A file in
//!   the quarantine counts as present only if it is empty, by which the operator accepts the loss.
//! - Totals do not depend on the number of threads, the chunks, or the ends of ranges.
//! - State in memory changes only after the commit. After any error it is read from the database again.
//!
//! # Failure
//! If the database is damaged or locked, readiness reports it, and the processor tries again with increasing
//! pauses; ingestion continues. If a file cannot be read, readiness reports it by name; the other files are
//! still applied.

mod accounting;
mod applier;
mod archive;
mod batch;
mod clock;
mod import;
mod observer;
mod open_journal;
mod other_names;
mod rebuild;
mod retention;
mod sealed_files;
#[cfg(test)]
mod tests;
mod unfinished;
mod worker;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use uuid::Uuid;

pub use self::batch::{BatchSummary, RunProgress, Step, run_once};
use self::clock::Clock;
pub use self::open_journal::{open_journal, seal};
pub use self::rebuild::rebuild;
use crate::aggregate::memory_budget::MemoryBudget;
use crate::aggregate::pool::Pool;
use crate::aggregate::spill::{self, SpillDir};
use crate::data_dir::disk::Disk;
use crate::data_dir::segment::DirectoryTag;
use crate::data_dir::{DataDirError, Directory, directory_tag};
use crate::health::Health;
use crate::journal::Journal;
use crate::progress::Progress;
use crate::store::{Database, Readers, StoreError};
use crate::verify::{self, VerifyError};

/// The configuration of the processor.
#[derive(Clone, Debug)]
pub struct ProcessorConfig {
    /// The data directory whose files are applied.
    pub data_dir: PathBuf,
    /// Maximum delay between acknowledgement and totals; at least 10 ms. Shorter under load.
    pub flush_interval: Duration,
    /// Scanning threads, at least 1.
    pub threads: usize,
    /// Memory budget for applying, in bytes. It is kept from 32 MiB on; with less, the sums of each chunk are
    /// written to a temporary file.
    pub memory_bytes: usize,
    /// Prune a segment this long after it was fully applied; `None`: never. Only the server's processor
    /// prunes.
    pub retention: Option<Duration>,
    /// Expire an id this long after it was applied; `None`: never. Only the server's processor expires ids.
    pub dedup_window: Option<Duration>,
    /// The database; by default the file `revenue.db` in the data directory.
    pub database: Database,
    /// The UUID of the data directory; nil until [`ProcessorConfig::established`] or [`Processor::start`].
    pub directory: Uuid,
    /// The source of time for ages and records.
    pub(crate) clock: Arc<Clock>,
}

impl ProcessorConfig {
    /// Flushes every second with one thread per core and 384 MiB; prunes and expires nothing.
    pub fn new(data_dir: &Path) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            flush_interval: Duration::from_secs(1),
            threads: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            memory_bytes: 384 << 20,
            retention: None,
            dedup_window: None,
            database: Database::in_dir(data_dir),
            directory: Uuid::nil(),
            clock: Arc::default(),
        }
    }

    /// The part of the data directory's UUID that is in the names of native segments.
    fn directory_tag(&self) -> DirectoryTag {
        directory_tag(self.directory)
    }

    /// Fills in the UUID from `directory.json`, which is created if it is missing. The caller holds
    /// `process.lock`.
    fn established(&self, disk: &dyn Disk) -> Result<Self, ProcessError> {
        let known = self.database.directory()?;
        let directory = Directory::establish(disk, &self.data_dir, known, 0)?;
        Ok(Self {
            directory: directory.id,
            ..self.clone()
        })
    }

    fn target(&self) -> verify::Target {
        verify::Target {
            data_dir: self.data_dir.clone(),
            database: self.database.clone(),
            directory: self.directory,
            memory_bytes: self.memory_bytes,
            threads: self.threads,
        }
    }

    fn memory_budget(&self) -> MemoryBudget {
        MemoryBudget::of(self.memory_bytes, self.threads)
    }

    /// Returns the pool of scanning threads. Removes the temporary files that a crash has left; the caller holds
    /// `process.lock`.
    fn pool(&self, budget: &MemoryBudget, disk: &Arc<dyn Disk>) -> Pool {
        let dir = &self.data_dir;
        if let Err(error) = spill::remove_leftovers(&**disk, dir) {
            tracing::warn!(%error, "cannot remove temporary files of an earlier run in {}", dir.display());
        }
        Pool::new(budget).spilling_to(SpillDir::new(Arc::clone(disk), dir))
    }
}

/// A file that was not applied.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Its path; the file is unchanged.
    pub path: PathBuf,
    /// Why it was not applied, and what to do.
    pub reason: String,
}

/// The processor could not start, or could not complete its work.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No thread could be started.
    #[error("cannot start the processor's threads")]
    Thread(#[source] std::io::Error),
    /// The database could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file or directory could not be read or written.
    #[error(transparent)]
    Io(#[from] DataDirError),
    /// A fully applied file could not be moved to the archive.
    #[error(
        "cannot move {} to {}: {cause}; its events are counted. It is moved once that directory can be written and is on the same file system; do not import it under another name, which would count its events twice",
        path.display(),
        archive.display()
    )]
    NotArchived {
        /// Path of the file of which a part was applied.
        path: PathBuf,
        /// The target directory in the archive.
        archive: PathBuf,
        /// The error of the file system.
        cause: std::io::Error,
    },
    /// Another process applied the same segment at the same time.
    #[error(
        "segment {segment}: another processor applied it at the same time; stop one of them, only one may run per data directory"
    )]
    Raced {
        /// The id of the segment.
        segment: String,
    },
    /// Another file has replaced the database file or one of the files beside it.
    #[error("database {}: {what} while the server had it open; the applied positions are read again from the present file, and the rest is applied", path.display())]
    Replaced {
        /// Path of the SQLite file.
        path: PathBuf,
        /// The change, such as `revenue.db-wal was removed`.
        what: String,
    },
    /// Another program committed a transaction to the database, or it lost commits.
    #[error(
        "database {database}: another program changed it, or it lost the last commits in a failover; the applied positions are read from it again"
    )]
    ChangedByOthers {
        /// The database that another program wrote to.
        database: Database,
    },
    /// Another program wrote to the database file or its `-wal` without SQLite's locks, such as `cp`.
    #[error("database {}: another program overwrote the file in place, or its -wal, while it was open; it has to be read again, and the events in the files that it lacks are applied then", path.display())]
    Overwritten {
        /// Path of the SQLite file.
        path: PathBuf,
    },
    /// A part of a segment is shorter than its name says. It may still be copied.
    #[error("{} has only {size} of the {expected} bytes that its name says, and is applied once it is complete; if it was truncated, move it to quarantine/ and run `tallyline process FILE` with the original file", path.display())]
    Incomplete {
        /// Path of the file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// The size that it should have.
        expected: u64,
    },
    /// The length of the file changed while it was read.
    #[error("{} changed while it was read; it is applied once it is complete", path.display())]
    Changed {
        /// Path of the file that is being applied.
        path: PathBuf,
    },
    /// The new database could not be built or put in place. The old one is unchanged.
    #[error("cannot rebuild the database: {0}")]
    NotRebuilt(String),
    /// A shutdown was requested while the database was locked.
    #[error("stopped before everything was applied; the rest is applied at the next start")]
    Stopped,
}

impl From<VerifyError> for ProcessError {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Store(error) => Self::Store(error),
            VerifyError::Io(error) => Self::Io(error),
        }
    }
}

impl ProcessError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| DataDirError::io(action, path)(source).into()
    }
}

/// The error and its causes, joined by colons, for readiness and the log.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The threads of a running processor.
pub struct Processor {
    progress: Arc<Progress>,
    clock: JoinHandle<()>,
    /// Returns why not everything was applied at the shutdown. `None` if the thread could not be started.
    worker: Option<JoinHandle<Option<String>>>,
}

impl Processor {
    /// Starts to apply; the caller holds `process.lock`. The database is opened in the background, and
    /// opened again after an error; meanwhile readiness reports the error under the topic `database`.
    pub fn start(
        mut config: ProcessorConfig,
        disk: Arc<dyn Disk>,
        journal: Journal,
        progress: Arc<Progress>,
        health: Arc<Health>,
    ) -> Result<Self, ProcessError> {
        config.directory = journal.directory();
        let pool = config.pool(&config.memory_budget(), &disk);
        let clock = start_clock(&config, &journal, &progress)?;
        let shared = Arc::clone(&progress);
        let worker = Builder::new()
            .name("process".to_owned())
            .spawn(move || worker::run(config, disk, journal, &shared, &health, pool));
        Self::started(progress, worker, clock)
    }

    /// Joins the two threads to a processor. If `worker` could not be started, the clock is stopped.
    fn started(
        progress: Arc<Progress>,
        worker: io::Result<JoinHandle<Option<String>>>,
        clock: JoinHandle<()>,
    ) -> Result<Self, ProcessError> {
        let (worker, error) = match worker {
            Ok(worker) => (Some(worker), None),
            Err(error) => (None, Some(error)),
        };
        let processor = Self {
            progress,
            clock,
            worker,
        };
        match error {
            None => Ok(processor),
            Some(error) => {
                processor.stop();
                Err(ProcessError::Thread(error))
            }
        }
    }

    /// Starts the threads of a server that does not apply (`--no-process`): they publish the ledger and the
    /// lag while another process applies. Changes nothing on disk.
    pub fn observe(
        mut config: ProcessorConfig,
        disk: Arc<dyn Disk>,
        journal: Journal,
        readers: Readers,
        progress: Arc<Progress>,
        health: Arc<Health>,
    ) -> Result<Self, ProcessError> {
        config.directory = journal.directory();
        let clock = start_clock(&config, &journal, &progress)?;
        let shared = Arc::clone(&progress);
        let observer = Builder::new()
            .name("process-observe".to_owned())
            .spawn(move || {
                observer::run(&config, disk, &journal, &readers, &shared, &health);
                None // Another process applies.
            });
        Self::started(progress, observer, clock)
    }

    /// Applies everything durable, ends the waits, and closes the database to a single file, unless another
    /// program has it open. The journal and the [`Readers`] must be closed before. Returns why not everything
    /// was applied, such as a database that stays locked; `None` if everything was.
    pub fn stop(self) -> Option<String> {
        self.progress.stop();
        let panicked = || "a thread of the processor panicked; its uncommitted events are applied at the next start";
        let worker = self.worker.map(JoinHandle::join);
        if self.clock.join().is_err() {
            tracing::error!("{}", panicked());
        }
        worker?.unwrap_or_else(|_| Some(panicked().to_owned()))
    }
}

/// How often the durable end is read for the lag, at least.
const CLOCK_INTERVAL: Duration = Duration::from_millis(200);

fn start_clock(
    config: &ProcessorConfig,
    journal: &Journal,
    progress: &Arc<Progress>,
) -> Result<JoinHandle<()>, ProcessError> {
    let (journal, progress) = (journal.clone(), Arc::clone(progress));
    let every = CLOCK_INTERVAL.min(config.flush_interval);
    Builder::new()
        .name("process-clock".to_owned())
        .spawn(move || {
            progress.run_clock(every, &|| journal.tail().end());
        })
        .map_err(ProcessError::Thread)
}
