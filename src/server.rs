//! The composition root: starts the parts of a server in order, and stops and joins them.
//!
//! Start: the locks, the journal (which recovers the active segment), the processor, HTTP. Shutdown: HTTP
//! first, which stops accepting requests and answers those it has; then the journal, which seals the active
//! segment; then the processor, which applies the rest and closes the database. If a part cannot be
//! started, those that run are stopped in the same order.
//!
//! For a [`Server`] in a test, see the front page of the [library](crate).

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use crossbeam_channel::{Receiver, select};

use crate::backup;
use crate::cli::config::{Processing, ServeConfig};
use crate::cli::logging;
use crate::data_dir::disk::{self, Disk, DiskFile, Lock, MeteredDisk, UsageThread};
use crate::data_dir::{DIRECTORY_FILE, Directory, PROCESS_LOCK, SERVE_LOCK};
use crate::health::Health;
use crate::http;
use crate::journal::{Committer, JournalConfig};
use crate::other_nodes::OtherNodes;
use crate::processor::{self, Processor, ProcessorConfig};
use crate::progress::Progress;
use crate::shutdown::Shutdown;
use crate::store::{self, DATABASE_FILE, Readers};
use crate::systemd;

/// Most bytes of batches that wait to be written; beyond that, requests are answered with 503.
const QUEUE_BYTES_MAX: u64 = 64 << 20;
/// How often an idle journal checks the path of the active file and the free disk space.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long a start with `--max-disk` waits for the size of the data directory. The walk of hundreds of
/// thousands of files takes longer and continues beside the server.
const FIRST_WALK_MAX: Duration = Duration::from_millis(500);
/// Most reading connections to the database.
const READERS_MAX: u32 = 8;

/// A running server in this process. Dropping it stops it, as [`Server::stop`] does. It does not catch
/// signals; the `serve` command does.
pub struct Server {
    address: SocketAddr,
    parts: Parts,
    /// Released last.
    _locks: Locks,
}

/// The locks that keep other processes out of the data directory.
struct Locks {
    serve: Arc<Lock>,
    _process: Option<Lock>,
}

/// The parts that have been started. Dropping it stops them in order, so that no part keeps running after a
/// failed start.
#[derive(Default)]
struct Parts {
    http: Option<http::Server>,
    committer: Option<Committer>,
    processor: Option<Processor>,
    readers: Option<Readers>,
    other_nodes: Option<OtherNodes>,
    port_file: Option<PortFile>,
    usage: Option<UsageThread>,
}

impl Server {
    /// Starts a server. When this returns, the port accepts connections.
    ///
    /// Fails if the data directory cannot be written or is locked by another server or processor, if the
    /// address is in use, or if the token file cannot be read. After an error nothing is left running.
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
        if config.database_url.is_none() {
            warn_of_file_system(dir);
        }
        let mut parts = Parts::default();
        let address = parts.start(config, &locks)?;
        tracing::info!("serving {} on http://{address}", dir.display());
        Ok(Self {
            address,
            parts,
            _locks: locks,
        })
    }

    /// The address that the server listens on. If port 0 was configured, it has the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is requested. Each message on `reloads` reads the token file again.
    pub fn until(&self, stop: &Shutdown, reloads: &Receiver<()>) {
        loop {
            select! {
                recv(stop.channel()) -> _ => break,
                recv(reloads) -> _ => self.parts.reload_tokens(),
            }
        }
        systemd::stopping();
        tracing::info!(
            "stopping: answering accepted requests, sealing the active segment, applying the rest"
        );
    }

    /// Stops all parts in order and returns when their threads have ended. Everything acknowledged is then
    /// applied, and the database is a single file.
    ///
    /// Fails if the active segment could not be sealed, or if acknowledged events could not be applied, for
    /// example because another program has the database locked. All threads have ended then, too, and no
    /// acknowledged event is lost: the next start recovers and applies them.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let left = self.parts.stop();
        drop(self);
        anyhow::ensure!(left.is_empty(), "{}", left.join("; "));
        tracing::info!("stopped");
        Ok(())
    }
}

impl Parts {
    /// Starts all parts; the caller holds the locks. After an error, dropping `self` stops those that run.
    fn start(&mut self, config: &ServeConfig, locks: &Locks) -> anyhow::Result<SocketAddr> {
        let dir = &config.data_dir;
        let database = config.database();
        // First: from here on, only SQLite opens the files of the database.
        let readers = Readers::of(&database, READERS_MAX);
        self.readers = Some(readers.clone());
        let metered = MeteredDisk::new(dir, store::files_of(&dir.join(DATABASE_FILE)));
        let usage = metered
            .start()
            .context("cannot start the thread that computes the size of the data directory")?;
        self.usage = Some(usage);
        if config.max_disk_bytes.is_some() {
            // So that the limit applies from the first event. If the walk takes longer, events are answered
            // with 503 until the size is known.
            metered.await_first_walk(FIRST_WALK_MAX).with_context(|| {
                format!("cannot compute the size of the files in {}", dir.display())
            })?;
        }
        let disk: Arc<dyn Disk> = Arc::new(metered);
        let health = Arc::new(Health::default());
        let journal = journal_config(config, locks);
        let (journal, committer) =
            processor::open_journal(dir, &database, &disk, journal, &health)?;
        self.committer = Some(committer);
        let directory = journal.directory();
        readers.belong_to(directory);

        if readers.is_shared() {
            let others = OtherNodes::start(readers.clone());
            let others = others
                .context("cannot start the thread that waits for positions of other nodes")?;
            self.other_nodes = Some(others);
        }
        let app = http::App {
            journal,
            readers,
            progress: Arc::new(Progress::new(config.processing)),
            other_nodes: self.other_nodes.as_ref().map(OtherNodes::waits),
            health,
            disk,
            data_dir: dir.clone(),
            lost_log_lines: logging::lost_lines,
            directory,
        };
        self.processor = Some(start_processor(config, &app)?);
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
            Ok(None) => tracing::info!("SIGHUP: no token file is configured"),
            Ok(Some(count)) => tracing::info!("SIGHUP: {count} tokens are in force now"),
            Err(error) => tracing::error!(
                "SIGHUP: {:#}; the previous tokens stay in force",
                anyhow::Error::from(error)
            ),
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        for left in self.stop() {
            tracing::error!("{left}");
        }
    }
}

impl Parts {
    /// Stops all parts in order. Returns what could not be completed; a second call does nothing.
    fn stop(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        // First, so that the file never names a port that does not answer.
        drop(self.port_file.take());
        if let Some(http) = self.http.take() {
            http.stop();
        }
        if let Some(committer) = self.committer.take() {
            left.extend(committer.stop());
        }
        drop(self.other_nodes.take());
        if let Some(readers) = self.readers.take() {
            readers.close();
        }
        if let Some(processor) = self.processor.take() {
            left.extend(processor.stop());
        }
        drop(self.usage.take());
        left
    }
}

/// Starts the processor, or with `--no-process` the observer of the one in another process.
fn start_processor(config: &ServeConfig, app: &http::App) -> anyhow::Result<Processor> {
    let process_config = process_config(config);
    let disk = Arc::clone(&app.disk);
    let journal = app.journal.clone();
    let (progress, health) = (Arc::clone(&app.progress), Arc::clone(&app.health));
    Ok(match config.processing {
        Processing::Here => Processor::start(process_config, disk, journal, progress, health)?,
        Processing::Elsewhere => {
            let readers = app.readers.clone();
            Processor::observe(process_config, disk, journal, readers, progress, health)?
        }
    })
}

/// Removes the port file that a server left behind, so that no file exists until the port answers. The
/// file of a running server is kept.
pub fn remove_port_file(path: &Path) -> anyhow::Result<()> {
    // A file that cannot be opened is not held by a server.
    if disk::is_held(path).unwrap_or(false) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error)
            .with_context(|| format!("cannot remove the old --port-file {}", path.display())),
        _ => Ok(()),
    }
}

/// The file with the port number. It is locked with `flock` while the port answers. Dropping this removes
/// the file, unless another one has replaced it.
struct PortFile {
    path: PathBuf,
    held: Arc<dyn DiskFile>,
}

impl PortFile {
    /// Writes the file atomically: a reader sees the complete number or no file.
    fn write(path: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        let written = if disk::is_held(path).unwrap_or(false) {
            Err(io::Error::other(
                "it belongs to another running server; give each server its own file",
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

/// Warns if the data directory is on a file system on which SQLite's write-ahead log is not safe.
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

/// Checks that the data directory has the id of `--expect-id`. Called before anything is created in it.
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

/// Locks the data directory as its only writer, and as its only processor unless `--no-process` is given.
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
    let body_bytes_max = usize::try_from(config.max_body_bytes).unwrap_or(usize::MAX);
    http::HttpConfig {
        listen: config.listen,
        host_name: config.listen_name.clone(),
        access: config.access.clone(),
        limits: http::Limits {
            body_bytes_max,
            // Four bodies of the largest size, but at least 16 MiB.
            bodies_bytes_max: body_bytes_max.saturating_mul(4).max(16 << 20),
            keep_alive: config.keep_alive,
            ..http::Limits::default()
        },
    }
}

fn process_config(config: &ServeConfig) -> ProcessorConfig {
    let mut process = ProcessorConfig::new(&config.data_dir);
    process.memory_bytes = usize::try_from(config.memory_bytes).unwrap_or(usize::MAX);
    process.flush_interval = config.flush_interval.unwrap_or(process.flush_interval);
    process.database = config.database();
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
