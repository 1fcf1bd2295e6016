//! The composition root: starts the parts in order, stops and joins them in reverse.
//!
//! Locks, then the journal (which recovers), then the processor, then the port. Stopping: http
//! first, so that nothing new comes in and all that was accepted is answered; then the journal,
//! which seals; then the processor, which applies what is left and closes the database.
//!
//! How to have a [`Server`] in a test of your own: see the front page of the [library](crate).

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use crossbeam_channel::{Receiver, select};

use crate::config::{Access, Processing, ServeConfig};
use crate::exit::Exit;
use crate::fs::{Disk, Lock, RealDisk};
use crate::health::Health;
use crate::http;
use crate::journal::{Committer, Journal, JournalConfig, KnownSegment, Recovery};
use crate::notify;
use crate::process::{ProcessConfig, Processor};
use crate::stop::{self, Stop};
use crate::store::{self, Applies, DATABASE_FILE, Progress, Readers, SegmentState};

/// Held by the one that appends.
pub const SERVE_LOCK: &str = "serve.lock";
/// Held by the one that applies.
pub const PROCESS_LOCK: &str = "process.lock";
/// Bytes that may wait for the disk; past them clients are asked to come again.
const QUEUE_BYTES_MAX: u64 = 64 << 20;
/// Reading connections: more would only wait for the same two cores.
const READERS_MAX: u32 = 8;

/// `tallyline serve`: serves until SIGINT or SIGTERM.
pub fn run(config: &ServeConfig) -> anyhow::Result<Exit> {
    let stop = Stop::on_signals().context("cannot catch SIGINT and SIGTERM")?;
    let reloads = stop::reloads().context("cannot catch SIGHUP")?;
    let server = Server::start(config)?;
    server.until(&stop, &reloads);
    server.stop();
    Ok(Exit::Done)
}

/// A running server, in this process. Dropping it without [`Server::stop`] leaves its threads
/// running. It catches no signals: [`run`] does.
pub struct Server {
    http: http::Server,
    committer: Committer,
    processor: Processor,
    readers: Readers,
    port_file: Option<PathBuf>,
    _locks: Vec<Lock>,
}

impl Server {
    /// Starts everything; when it returns, the port answers.
    ///
    /// An error says what was tried: a directory that cannot be written, one that another server
    /// or processor holds, an address in use, a token file that cannot be read. Nothing runs then.
    pub fn start(config: &ServeConfig) -> anyhow::Result<Self> {
        let dir = &config.data_dir;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let locks = lock(dir, config.processing)?;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let health = Arc::new(Health::default());
        let database = dir.join(DATABASE_FILE);
        let (journal, committer) = open_journal(dir, &disk, journal_config(config), &health)?;

        let readers = Readers::new(&database, READERS_MAX);
        let applies = match config.processing {
            Processing::Here => Applies::Here,
            Processing::Elsewhere => Applies::Elsewhere,
        };
        let progress = Arc::new(Progress::new(applies));
        let process = process_config(config);
        let (on, of) = (Arc::clone(&progress), Arc::clone(&health));
        let seen_disk = Arc::clone(&disk);
        let processor = match config.processing {
            Processing::Here => Processor::start(process, disk, journal.clone(), on, of)?,
            Processing::Elsewhere => {
                Processor::observe(process, disk, journal.clone(), readers.clone(), on, of)?
            }
        };
        let app = http::App {
            journal,
            readers: readers.clone(),
            progress,
            health,
            disk: seen_disk,
            data_dir: dir.clone(),
        };
        let http = http::Server::start(http_config(config), app)?;
        let server = Self {
            http,
            committer,
            processor,
            readers,
            port_file: config.port_file.clone(),
            _locks: locks,
        };
        server.write_port_file()?;
        notify::ready();
        tracing::info!("serving {} on http://{}", dir.display(), server.address());
        Ok(server)
    }

    /// The address it listens on, with the port that was picked where port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.http.local_addr()
    }

    /// Serves until somebody asks to stop; SIGHUP reads the tokens again meanwhile.
    pub fn until(&self, stop: &Stop, reloads: &Receiver<()>) {
        loop {
            select! {
                recv(stop.channel()) -> _ => break,
                recv(reloads) -> _ => match self.http.reload_tokens() {
                    Ok(None) => tracing::info!("SIGHUP: no token file to read again"),
                    Ok(Some(count)) => tracing::info!("SIGHUP: {count} tokens are in force now"),
                    Err(error) => tracing::error!("SIGHUP: {:#}; the tokens stay as they were", anyhow::Error::from(error)),
                },
            }
        }
        notify::stopping();
        tracing::info!("stopping: answering what was accepted, sealing, applying");
    }

    /// Stops in order, and returns when all its threads have ended: nothing acknowledged is lost,
    /// what was taken is applied, and one database file is left.
    pub fn stop(self) {
        if let Some(path) = &self.port_file {
            // Nobody is to find a port that does not answer.
            drop(fs::remove_file(path));
        }
        self.http.stop();
        self.committer.stop();
        self.readers.close();
        self.processor.stop();
        tracing::info!("stopped");
    }

    /// The port number, written whole: a reader sees all of it or no file.
    fn write_port_file(&self) -> anyhow::Result<()> {
        let Some(path) = &self.port_file else {
            return Ok(());
        };
        let part = path.with_extension("part");
        fs::write(&part, format!("{}\n", self.address().port()))
            .and_then(|()| fs::rename(&part, path))
            .with_context(|| format!("cannot write --port-file {}", path.display()))
    }
}

/// One writer, and one processor unless that is left to `process`.
fn lock(dir: &Path, processing: Processing) -> anyhow::Result<Vec<Lock>> {
    let mut locks = vec![Lock::take(&dir.join(SERVE_LOCK))?];
    if processing == Processing::Here {
        locks.push(Lock::take(&dir.join(PROCESS_LOCK))?);
    }
    Ok(locks)
}

fn http_config(config: &ServeConfig) -> http::HttpConfig {
    let access = match &config.access {
        Access::OpenOnLoopback => http::Access::Loopback,
        Access::OpenBeyondLoopback => http::Access::Anyone,
        Access::Tokens(path) => http::Access::TokenFile(path.clone()),
    };
    let body_bytes_max = usize::try_from(config.max_body_bytes).unwrap_or(usize::MAX);
    http::HttpConfig {
        listen: http::Listen::Address(config.listen),
        access,
        limits: http::Limits {
            body_bytes_max,
            // Four of the largest, and at least as many as small machines have memory for.
            bodies_bytes_max: body_bytes_max.saturating_mul(4).max(16 << 20),
            keep_alive: config.keep_alive,
            ..http::Limits::default()
        },
    }
}

fn process_config(config: &ServeConfig) -> ProcessConfig {
    let mut process = ProcessConfig::new(&config.data_dir);
    process.memory_bytes = usize::try_from(config.memory_bytes).unwrap_or(usize::MAX);
    process.flush_every = config.flush_every.unwrap_or(process.flush_every);
    process.retain_for = config.retain_for;
    process.keep_ids = config.keep_ids;
    process
}

fn journal_config(config: &ServeConfig) -> JournalConfig {
    JournalConfig {
        rotate_every: config.rotate_every,
        rotate_bytes: config.rotate_bytes,
        check_every: config.flush_every.unwrap_or(Duration::from_secs(1)),
        queue_bytes_max: QUEUE_BYTES_MAX,
        disk_reserve_bytes: config.disk_reserve_bytes,
        disk_bytes_max: config.max_disk_bytes,
    }
}

/// Recovers the directory and opens the journal; the caller holds `serve.lock`.
pub(crate) fn open_journal(
    dir: &Path,
    disk: &Arc<dyn Disk>,
    config: JournalConfig,
    health: &Arc<Health>,
) -> anyhow::Result<(Journal, Committer)> {
    let known = known(&dir.join(DATABASE_FILE));
    let (journal, committer, recovery) =
        Journal::open(Arc::clone(disk), dir, config, &known, Arc::clone(health))?;
    report(&recovery);
    Ok((journal, committer))
}

/// What the database knows of our segments. Taking does not wait for a database that can't be read.
fn known(database: &Path) -> Vec<KnownSegment> {
    let rows = store::read_segments(database).unwrap_or_else(|error| {
        tracing::warn!(
            "starting without the database: {:#}",
            anyhow::Error::from(error)
        );
        Vec::new()
    });
    let known = |row: store::SegmentRow| {
        let sealed = row.state != SegmentState::Active;
        Some(KnownSegment {
            number: row.id.number()?,
            applied_bytes: row.applied_bytes,
            sealed,
        })
    };
    rows.into_iter().filter_map(known).collect()
}

fn report(recovery: &Recovery) {
    if let Some((bytes, path)) = &recovery.torn {
        tracing::warn!(
            "{bytes} bytes of a torn, never acknowledged write are kept in {}",
            path.display()
        );
    }
    if let Some(number) = recovery.lost {
        tracing::error!("segment {number} is lost: events.jsonl was gone; see quarantine/");
    }
    if let Some(number) = recovery.untrusted {
        tracing::error!(
            "segment {number} is shorter than what was applied of it; it is set aside as untrusted"
        );
    }
}
