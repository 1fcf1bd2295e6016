//! The processor: from committed bytes to exact totals.
//!
//! One thread, the coordinator, owns the store's writer and all state. It follows the active
//! segment up to the journal's durable end, every flush interval or when somebody waits, and the
//! sealed ones by listing the directory: ours in number order, files from elsewhere by name. A
//! range is cut at line ends, aggregate by a pool of threads into sums per user, and given to
//! [`Writer::apply`](crate::store::Writer::apply): one transaction. Wholly applied files move to
//! `applied/YYYY-MM/`, a convenience for people; no step decides by where a file lies.
//!
//! # Many small segments
//! Segments of up to 256 KiB that wait at the same time are applied together, at most 256 of them:
//! 1. open each; 2. make what is seen of them durable: one `syncfs` where the file system is known to
//!    report errors to it, else an fdatasync of each file; 3. confirm and read each to its end; its
//!    length must be the same after that; 4. one transaction, in which each row moves from its own
//!    `from` to its own end together with its own totals, ids and rejected lines, in the order of the
//!    segments; 5. move memory; 6. make the archive's directories durable, rename each file, sync the
//!    directories.
//!
//! A crash before the commit leaves every row as it was, and a crash after it every row at its end:
//! the argument for one range holds for each of them. A range whose user might overflow is done again
//! by itself, within the transaction.
//!
//! # Invariants
//! - Never reads past the durable end: a power cut could otherwise leave totals for lines that are
//!   gone. A file found by listing is fsynced, and its directory, before its first byte counts.
//! - The prefix that the database says is applied is confirmed by its checksum before work goes on
//!   from there; what comes after it, by the length and checksum in a sealed file's name, before any of
//!   it is applied. If either is another, the file is marked corrupt, loudly, and the rest goes on.
//! - A number with neither a file, nor a row that is whole, nor a place in `pruned` is missing. A file in
//!   the quarantine does not stand for it unless it is empty, which is how events are given up.
//! - Totals do not depend on threads, chunks, or where ranges are cut.
//! - Memory follows the commit, never precedes it; after any error it is read from the rows anew.
//!
//! # Failure
//! A broken or locked database turns readiness red and is tried again with growing pauses; the
//! journal goes on taking. A file that can't be read turns readiness red under its name; the others
//! go on.

mod accounting;
mod applier;
mod archive;
mod batch;
mod clock;
mod import;
mod observer;
mod rebuild;
mod retention;
mod seal;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

pub use self::batch::{Refused, RunProgress, Step, Summary, run_once};
use self::clock::Clock;
pub use self::rebuild::{Rebuilt, rebuild};
pub use self::seal::{open_journal, seal};
use crate::aggregate::memory_budget::MemoryBudget;
use crate::aggregate::pool::Pool;
use crate::data_dir::disk::Disk;
use crate::data_dir::segment::{DirectoryTag, Position};
use crate::data_dir::{DataDirError, Directory, directory_tag};
use crate::health::Health;
use crate::journal::Journal;
use crate::progress::Progress;
use crate::store::{DATABASE_FILE, Readers, StoreError, read_directory};
use crate::verify::{self, VerifyError};
use uuid::Uuid;

/// How the processor behaves.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The most time between an acknowledgement and its place in the totals; at least 10 ms.
    pub flush_interval: Duration,
    /// Scanning threads, at least 1.
    pub threads: usize,
    /// The most memory that applying may hold, in bytes. From 32 MiB on that is kept; below, a
    /// range ends after its first chunk.
    pub memory_bytes: usize,
    /// Prune whole segments this long after they were applied; `None`: never. The server's
    /// processor only.
    pub retention: Option<Duration>,
    /// Let ids go this long after they were applied; `None`: never. The server's processor only.
    pub dedup_window: Option<Duration>,
    /// The database file; default `revenue.db` in the data directory.
    pub database: PathBuf,
    /// The UUID of the data directory; nil until it has been read.
    pub directory: Uuid,
    /// The time, as far as it is to be believed.
    pub(crate) clock: Arc<Clock>,
}

impl ProcessConfig {
    /// Flushes each second, a thread a core, 384 MiB, nothing let go.
    pub fn new(data_dir: &Path) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            flush_interval: Duration::from_secs(1),
            threads: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            memory_bytes: 384 << 20,
            retention: None,
            dedup_window: None,
            database: data_dir.join(DATABASE_FILE),
            directory: Uuid::nil(),
            clock: Arc::default(),
        }
    }

    /// What the names of native segments carry of the data directory's UUID.
    fn directory_tag(&self) -> DirectoryTag {
        directory_tag(self.directory)
    }

    /// With the UUID that `directory.json` says, which is made where it is missing; the caller holds
    /// `process.lock`.
    fn established(&self, disk: &dyn Disk) -> Result<Self, ProcessError> {
        let known = read_directory(&self.database)?;
        let directory = Directory::establish(disk, &self.data_dir, known, 0)?;
        Ok(Self {
            directory: directory.id,
            ..self.clone()
        })
    }

    fn target(&self) -> verify::Target {
        verify::Target {
            data_dir: self.data_dir.clone(),
            database: self.database(),
            directory: self.directory,
            memory_bytes: self.memory_bytes,
            threads: self.threads,
        }
    }

    fn shares(&self) -> MemoryBudget {
        MemoryBudget::of(self.memory_bytes, self.threads)
    }

    /// Where the database lies.
    pub fn database(&self) -> PathBuf {
        self.database.clone()
    }
}

/// Why the processor did not start, or `process` did not get done.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No thread could be started.
    #[error("cannot start the processor's threads")]
    Thread(#[source] std::io::Error),
    /// The database did not do what was asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file or directory could not be read or written.
    #[error(transparent)]
    Io(#[from] DataDirError),
    /// A file that is wholly applied could not be moved to the archive.
    #[error(
        "{}: its events are counted, but the file cannot be moved to {}: {cause}. It is moved once that directory can be written and is on the same file system; do not import it under another name, which would count its events twice",
        path.display(),
        archive.display()
    )]
    NotArchived {
        /// The file.
        path: PathBuf,
        /// The directory of the archive.
        archive: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Somebody else applied the same segment at the same time.
    #[error(
        "segment {segment}: another processor applied it at the same time; only one may run in a data directory"
    )]
    Raced {
        /// Which.
        segment: String,
    },
    /// Another file lies at the path of the database or of one of its files now.
    #[error("database {}: {what} while the server had it open; how far the files are applied is read from what is there now, and the rest is applied", path.display())]
    Replaced {
        /// The database file.
        path: PathBuf,
        /// What happened, such as `revenue.db-wal was removed`.
        what: String,
    },
    /// Another program wrote into the database.
    #[error("database {}: another program changed it; how far the files are applied is read from it anew", path.display())]
    ChangedByOthers {
        /// The database file.
        path: PathBuf,
    },
    /// Another program wrote to the database file itself.
    #[error("database {}: another program wrote over the file in place while the server had it open; it is read anew, and what the files of events hold beyond it is applied", path.display())]
    Overwritten {
        /// The database file.
        path: PathBuf,
    },
    /// The file's length changed while it was read.
    #[error("{} changed while it was read; it is applied once it is complete", path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// The new database could not be made or put in place; the old one is as it was.
    #[error("not rebuilt: {0}")]
    NotRebuilt(String),
    /// Told to stop.
    #[error("stopped before it was done; what was not applied is applied next time")]
    Stopped,
}

impl From<VerifyError> for ProcessError {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Store(error) => Self::Store(error),
            VerifyError::Io(error) => Self::Io(error),
            VerifyError::Thread(error) => Self::Thread(error),
        }
    }
}

impl ProcessError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| DataDirError::io(action, path)(source).into()
    }
}

/// The error and its causes in one sentence, for readiness.
fn describe(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

/// The running processor.
pub struct Processor {
    progress: Arc<Progress>,
    threads: Vec<JoinHandle<()>>,
}

impl Processor {
    /// Starts applying; the caller holds `process.lock`. The database is opened in the background,
    /// and again whenever it breaks: readiness tells, topic `database`.
    pub fn start(
        mut config: ProcessConfig,
        disk: Arc<dyn Disk>,
        journal: Journal,
        progress: Arc<Progress>,
        health: Arc<Health>,
    ) -> Result<Self, ProcessError> {
        config.directory = journal.directory();
        let pool = Pool::start(&config.shares()).map_err(ProcessError::Thread)?;
        let clock = start_clock(&config, &journal, &progress)?;
        let on = Arc::clone(&progress);
        let coordinator = Builder::new()
            .name("process".to_owned())
            .spawn(move || worker::run(config, disk, journal, &on, &health, pool));
        Self::started(progress, coordinator, clock)
    }

    /// Where one thread could not be started, the other is stopped.
    fn started(
        progress: Arc<Progress>,
        worker: io::Result<JoinHandle<()>>,
        clock: JoinHandle<()>,
    ) -> Result<Self, ProcessError> {
        let mut processor = Self {
            progress,
            threads: vec![clock],
        };
        match worker {
            Ok(worker) => {
                processor.threads.insert(0, worker);
                Ok(processor)
            }
            Err(error) => {
                processor.stop();
                Err(ProcessError::Thread(error))
            }
        }
    }

    /// For a server that does not apply: keeps the ledger and the lag truthful while another
    /// process applies now and then. Changes nothing.
    pub fn observe(
        mut config: ProcessConfig,
        disk: Arc<dyn Disk>,
        journal: Journal,
        readers: Readers,
        progress: Arc<Progress>,
        health: Arc<Health>,
    ) -> Result<Self, ProcessError> {
        config.directory = journal.directory();
        let clock = start_clock(&config, &journal, &progress)?;
        let on = Arc::clone(&progress);
        let observer = Builder::new()
            .name("process-observe".to_owned())
            .spawn(move || observer::run(&config, disk, &journal, &readers, &on, &health));
        Self::started(progress, observer, clock)
    }

    /// Applies what is durable, answers those who still wait, and leaves a single database file
    /// where nobody else has it open: close the [`Readers`] before, and the journal. A database
    /// that stays locked is left as it is; its files are applied next time.
    pub fn stop(self) {
        self.progress.stop();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!(
                    "a thread of the processor panicked; what it had not committed is applied next time"
                );
            }
        }
    }
}

/// How often the durable end is looked at for the lag.
const LOOK_EVERY: Duration = Duration::from_millis(200);

fn start_clock(
    config: &ProcessConfig,
    journal: &Journal,
    progress: &Arc<Progress>,
) -> Result<JoinHandle<()>, ProcessError> {
    let (journal, progress) = (journal.clone(), Arc::clone(progress));
    let every = LOOK_EVERY.min(config.flush_interval);
    Builder::new()
        .name("process-clock".to_owned())
        .spawn(move || {
            progress.run_clock(every, &|| {
                let tail = journal.tail();
                Position {
                    segment: tail.number,
                    offset: tail.durable_end,
                }
            });
        })
        .map_err(ProcessError::Thread)
}
