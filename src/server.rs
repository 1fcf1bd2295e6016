//! The composition root: starts the parts in order, stops and joins them in reverse.
//!
//! Locks, then the journal (which recovers), then the processor, then the port. Stopping: http
//! first, so that nothing new comes in and all that was accepted is answered; then the journal,
//! which seals; then the processor, which applies what is left and closes the database.
//!
//! How to have a [`Server`] in a test of your own: see the front page of the [library](crate).

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use crossbeam_channel::{Receiver, select};

use crate::backup;
use crate::cli::config::{Access, Processing, ServeConfig};
use crate::cli::logging;
use crate::data_dir::disk::{self, Disk, DiskFile, Lock, MeteredDisk, UsageThread};
use crate::data_dir::{DIRECTORY_FILE, Directory, PROCESS_LOCK, SERVE_LOCK};
use crate::health::Health;
use crate::http;
use crate::journal::{Committer, JournalConfig};
use crate::processor::{self, ProcessConfig, Processor};
use crate::progress::{Applies, Progress};
use crate::shutdown::Shutdown;
use crate::store::{self, DATABASE_FILE, Readers};
use crate::systemd;

/// Bytes that may wait for the disk; past them clients are asked to come again.
const QUEUE_BYTES_MAX: u64 = 64 << 20;
/// How often the journal looks at its path and the disk when nothing else happens.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Reading connections: more would only wait for the same two cores.
const READERS_MAX: u32 = 8;

/// A running server, in this process. Dropping it stops it, as [`Server::stop`] does. It catches no
/// signals: the `serve` command does.
pub struct Server {
    address: SocketAddr,
    parts: Parts,
    /// Released last.
    _locks: Locks,
}

/// What keeps others out of the data directory.
struct Locks {
    serve: Arc<Lock>,
    _process: Option<Lock>,
}

/// What runs, or as much of it as has been started. Dropping it stops that in order, so that nothing
/// runs after a start that failed.
#[derive(Default)]
struct Parts {
    http: Option<http::Server>,
    committer: Option<Committer>,
    processor: Option<Processor>,
    readers: Option<Readers>,
    port_file: Option<PortFile>,
    usage: Option<UsageThread>,
}

impl Server {
    /// Starts everything; when it returns, the port answers.
    ///
    /// An error says what was tried: a directory that cannot be written, one that another server
    /// or processor holds, an address in use, a token file that cannot be read. Nothing runs then.
    pub fn start(config: &ServeConfig) -> anyhow::Result<Self> {
        if let Some(path) = &config.port_file {
            remove_port_file(path)?;
        }
        let dir = &config.data_dir;
        expect_id(config)?;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let locks = lock(dir, config.processing)?;
        backup::refuse_unfinished(dir)?;
        backup::refuse_backup(dir)?;
        warn_of_file_system(dir);
        let mut parts = Parts::default();
        let address = parts.start(config, &locks)?;
        tracing::info!("serving {} on http://{address}", dir.display());
        Ok(Self {
            address,
            parts,
            _locks: locks,
        })
    }

    /// The address it listens on, with the port that was picked where port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until somebody asks to stop; SIGHUP reads the tokens again meanwhile.
    pub fn until(&self, stop: &Shutdown, reloads: &Receiver<()>) {
        loop {
            select! {
                recv(stop.channel()) -> _ => break,
                recv(reloads) -> _ => self.parts.reload_tokens(),
            }
        }
        systemd::stopping();
        tracing::info!("stopping: answering what was accepted, sealing, applying");
    }

    /// Stops in order, and returns when all its threads have ended: nothing acknowledged is lost,
    /// what was taken is applied, and one database file is left.
    pub fn stop(self) {
        drop(self);
        tracing::info!("stopped");
    }
}

impl Parts {
    /// Starts all parts; the caller holds the locks. After an error those that run are stopped by
    /// dropping this.
    fn start(&mut self, config: &ServeConfig, locks: &Locks) -> anyhow::Result<SocketAddr> {
        let dir = &config.data_dir;
        let database = dir.join(DATABASE_FILE);
        // Before anything is opened: from here on the database's files are opened by SQLite alone.
        let readers = Readers::new(&database, READERS_MAX);
        self.readers = Some(readers.clone());
        let metered = MeteredDisk::new(dir, store::files_of(&database));
        if config.max_disk_bytes.is_some() {
            // The bound holds from the first event on.
            metered
                .walk()
                .with_context(|| format!("cannot add up the files in {}", dir.display()))?;
        }
        let usage = metered
            .start()
            .context("cannot start the thread that adds up the files")?;
        self.usage = Some(usage);
        let disk: Arc<dyn Disk> = Arc::new(metered);
        let health = Arc::new(Health::default());
        let journal = journal_config(config, locks);
        let (journal, committer) = processor::open_journal(dir, &disk, journal, &health)?;
        self.committer = Some(committer);
        let directory = journal.directory();

        let applies = match config.processing {
            Processing::Here => Applies::Here,
            Processing::Elsewhere => Applies::Elsewhere,
        };
        let progress = Arc::new(Progress::new(applies));
        let process_config = process_config(config);
        let (on, of) = (Arc::clone(&progress), Arc::clone(&health));
        let seen_disk = Arc::clone(&disk);
        let processor = match config.processing {
            Processing::Here => Processor::start(process_config, disk, journal.clone(), on, of)?,
            Processing::Elsewhere => Processor::observe(
                process_config,
                disk,
                journal.clone(),
                readers.clone(),
                on,
                of,
            )?,
        };
        self.processor = Some(processor);
        let app = http::App {
            journal,
            readers,
            progress,
            health,
            disk: seen_disk,
            data_dir: dir.clone(),
            lost_log_lines: logging::lost_lines,
            directory,
        };
        let http = self
            .http
            .insert(http::Server::start(http_config(config), app)?);
        let address = http.local_addr();
        if let Some(path) = &config.port_file {
            self.port_file = Some(PortFile::write(path, address)?);
        }
        systemd::ready();
        Ok(address)
    }

    fn reload_tokens(&self) {
        let Some(http) = &self.http else { return };
        match http.reload_tokens() {
            Ok(None) => tracing::info!("SIGHUP: no token file to read again"),
            Ok(Some(count)) => tracing::info!("SIGHUP: {count} tokens are in force now"),
            Err(error) => tracing::error!(
                "SIGHUP: {:#}; the tokens stay as they were",
                anyhow::Error::from(error)
            ),
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // Before the port is closed: no one is to find a port that does not answer.
        drop(self.port_file.take());
        if let Some(http) = self.http.take() {
            http.stop();
        }
        if let Some(committer) = self.committer.take() {
            committer.stop();
        }
        if let Some(readers) = self.readers.take() {
            readers.close();
        }
        if let Some(processor) = self.processor.take() {
            processor.stop();
        }
        drop(self.usage.take());
    }
}

/// Removes the port file of a server that is gone: until the port answers there is no file. That of a
/// server that runs is left alone.
pub fn remove_port_file(path: &Path) -> anyhow::Result<()> {
    // What cannot be opened is no file that a server holds.
    if disk::is_held(path).unwrap_or(false) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error)
            .with_context(|| format!("cannot remove the old --port-file {}", path.display())),
        _ => Ok(()),
    }
}

/// The port number, in a file that is locked (flock) as long as the port answers; dropping this removes
/// it, unless another file lies there by now.
struct PortFile {
    path: PathBuf,
    held: Arc<dyn DiskFile>,
}

impl PortFile {
    /// Written whole: a reader sees all of it or no file.
    fn write(path: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        let written = if disk::is_held(path).unwrap_or(false) {
            Err(io::Error::other(
                "it belongs to another server that runs; give each a file of its own",
            ))
        } else {
            disk::put_held(path, format!("{}\n", address.port()).as_bytes())
        };
        let held =
            written.with_context(|| format!("cannot write --port-file {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            held,
        })
    }
}

impl Drop for PortFile {
    fn drop(&mut self) {
        let ours = self.held.stat().ok().map(|stat| stat.identity);
        if ours.is_some() && disk::RealDisk.identity(&self.path).ok().flatten() == ours {
            drop(fs::remove_file(&self.path));
        }
    }
}

/// A database on some file systems may lose what was committed.
fn warn_of_file_system(dir: &Path) {
    match disk::unsafe_for_wal(dir) {
        Ok(None) => {}
        Ok(Some(name)) => tracing::warn!(
            "{} is on a file system of type {name}: SQLite's write-ahead log is not safe there, so {DATABASE_FILE} may be corrupted; use a local disk for --data-dir",
            dir.display()
        ),
        Err(error) => tracing::debug!(%error, "cannot determine the type of the file system"),
    }
}

/// Whether the data directory is the one that was asked for; asked before anything is created in it.
fn expect_id(config: &ServeConfig) -> anyhow::Result<()> {
    let Some(expected) = config.expect_id else {
        return Ok(());
    };
    let dir = &config.data_dir;
    let found = Directory::read(&disk::RealDisk, dir)
        .with_context(|| format!("cannot read {}", dir.join(DIRECTORY_FILE).display()))?;
    match found {
        Some(found) if found.id == expected => Ok(()),
        Some(found) => anyhow::bail!(
            "the data directory {} is {}, not {expected} as --expect-id says: another volume is mounted there",
            dir.display(),
            found.id
        ),
        None => anyhow::bail!(
            "{} is not the data directory {expected} that --expect-id names: it has no {DIRECTORY_FILE}; is its volume mounted?",
            dir.display()
        ),
    }
}

/// One writer, and one processor unless that is left to `process`.
fn lock(dir: &Path, processing: Processing) -> anyhow::Result<Locks> {
    let serve = Arc::new(Lock::take(&dir.join(SERVE_LOCK))?);
    let process = match processing {
        Processing::Here => Some(Lock::take(&dir.join(PROCESS_LOCK))?),
        Processing::Elsewhere => None,
    };
    Ok(Locks {
        serve,
        _process: process,
    })
}

fn http_config(config: &ServeConfig) -> http::HttpConfig {
    let access = match &config.access {
        Access::OpenOnLoopback => http::Access::Loopback,
        Access::OpenBeyondLoopback => http::Access::Anyone,
        Access::Tokens(path) => http::Access::TokenFile(path.clone()),
    };
    let body_bytes_max = usize::try_from(config.max_body_bytes).unwrap_or(usize::MAX);
    http::HttpConfig {
        listen: config.listen,
        host_name: config.listen_name.clone(),
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
    process.flush_interval = config.flush_interval.unwrap_or(process.flush_interval);
    process.retention = config.retention;
    process.dedup_window = config.dedup_window;
    process
}

fn journal_config(config: &ServeConfig, locks: &Locks) -> JournalConfig {
    JournalConfig {
        rotate_interval: config.rotate_interval,
        rotate_size: config.rotate_size,
        check_every: CHECK_EVERY.min(config.flush_interval.unwrap_or(CHECK_EVERY)),
        queue_bytes_max: QUEUE_BYTES_MAX,
        disk_reserve_bytes: config.disk_reserve_bytes,
        disk_bytes_max: config.max_disk_bytes,
        lock: Some(Arc::clone(&locks.serve)),
    }
}
