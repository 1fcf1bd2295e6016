//! Bounded over years: a start, a round of the processor and a scrape cost the same calls of the file
//! system however many segments were finished before.
//!
//! The journal, the processor and the HTTP server run on a simulated disk that records every call. The
//! files of the small and of the large directory differ only in their number, so the recorded calls
//! must be the same. `tests/bench/years.py` measures the time with 500,000 segments.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tallyline::data_dir::disk::{Disk, DiskLayer};
use tallyline::health::Health;
use tallyline::http::{Access, App, HttpConfig, Limits, Server};
use tallyline::journal::{Batch, Committer, Journal, JournalConfig};
use tallyline::processor::{Processor, ProcessorConfig, open_journal, run_once};
use tallyline::progress::{Processing, Progress};
use tallyline::store::{DATABASE_FILE, Database, Readers};

use super::harness::http::{Conn, Request};
use super::harness::{PATIENCE, event, until};
use super::sim_disk::SimDisk;

const FEW: usize = 40;
const MANY: usize = 1600;

/// Whether the server applies, or another process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Processor,
    Observer,
}

struct Running {
    journal: Journal,
    committer: Committer,
    processor: Processor,
    http: Server,
}

/// The recorded disk as a server has it: a `MeteredDisk` answers the size of the directory from its own
/// count, which a thread of its own corrects once a minute.
struct Metered(SimDisk);

impl DiskLayer for Metered {
    fn below(&self) -> &dyn Disk {
        &self.0
    }

    fn used_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(0)
    }
}

fn processing(dir: &Path) -> ProcessorConfig {
    let mut processing = ProcessorConfig::new(dir);
    processing.flush_interval = Duration::from_millis(10);
    processing.threads = 1;
    processing
}

fn start(dir: &Path, disk: &SimDisk, role: Role) -> Running {
    let shared: Arc<dyn Disk> = Arc::new(Metered(disk.clone()));
    let health = Arc::new(Health::default());
    let config = JournalConfig {
        // Calls that depend on the time are not compared.
        check_every: Duration::from_hours(1),
        ..JournalConfig::default()
    };
    let (journal, committer) =
        open_journal(dir, &Database::in_dir(dir), &shared, config, &health).unwrap();
    let readers = Readers::new(&dir.join(DATABASE_FILE), 1);
    let progress = Arc::new(Progress::new(match role {
        Role::Processor => Processing::Here,
        Role::Observer => Processing::Elsewhere,
    }));
    let (config, shared_disk) = (processing(dir), Arc::clone(&shared));
    let (shared_progress, shared_health) = (Arc::clone(&progress), Arc::clone(&health));
    let to_apply = journal.clone();
    let processor = match role {
        Role::Processor => Processor::start(
            config,
            shared_disk,
            to_apply,
            shared_progress,
            shared_health,
        ),
        Role::Observer => Processor::observe(
            config,
            shared_disk,
            to_apply,
            readers.clone(),
            shared_progress,
            shared_health,
        ),
    };
    let processor = processor.unwrap();
    let app = App {
        journal: journal.clone(),
        readers,
        progress,
        other_nodes: None,
        health,
        disk: shared,
        data_dir: dir.to_owned(),
        lost_log_lines: || 0,
        directory: journal.directory(),
    };
    let config = HttpConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        host_name: None,
        access: Access::Loopback,
        limits: Limits::default(),
    };
    Running {
        journal,
        committer,
        processor,
        http: Server::start(config, app).unwrap(),
    }
}

impl Running {
    /// Appends one event and seals its segment.
    fn write_segment(&self) {
        let (done, answered) = mpsc::channel();
        let bytes = event("u", 1).into_bytes();
        self.journal.append(
            Batch { bytes },
            Box::new(move |answer| {
                drop(done.send(answer.map(|_| ())));
                None
            }),
        );
        answered.recv_timeout(PATIENCE).unwrap().unwrap();
        let (done, answered) = mpsc::channel();
        self.journal
            .rotate(Box::new(move |answer| drop(done.send(answer.map(|_| ())))));
        answered.recv_timeout(PATIENCE).unwrap().unwrap();
    }

    fn get(&self, target: &str) -> String {
        let mut connection = Conn::open(self.http.local_addr().port());
        connection.ask(&Request::new("GET", target)).text()
    }

    /// Waits until the ledger of the whole directory is published, and reads everything that is read
    /// regularly.
    fn scrape(&self, lines: usize) {
        let all = format!("\"lines\":{lines},\"applied\":{lines},");
        until(PATIENCE, "ready", || {
            let status = self.get("/status");
            (status.contains(&all) && status.contains("\"ready\":true")).then_some(())
        });
        for target in [
            "/metrics",
            "/readyz",
            "/status",
            "/segments",
            "/rejected",
            "/",
        ] {
            self.get(target);
        }
    }

    fn stop(self) {
        self.http.stop();
        self.committer.stop();
        self.processor.stop();
    }
}

/// A data directory with this many applied and archived segments.
fn directory_of(segments: usize) -> (tempfile::TempDir, SimDisk) {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    };
    let disk = SimDisk::with_dir(dir.path());
    let running = start(dir.path(), &disk, Role::Processor);
    (0..segments).for_each(|_| running.write_segment());
    let archive = dir.path().join("applied");
    until(PATIENCE, "everything is archived", || {
        let files = disk.files();
        let archived = files.iter().filter(|path| path.starts_with(&archive));
        (archived.count() == segments).then_some(())
    });
    running.stop();
    let disk = disk.kill();
    (dir, disk)
}

/// The different calls that a start, a second round and the regular reads make. A call that is repeated
/// is listed once, because the number of rounds depends on the time.
fn calls(segments: usize, role: Role) -> BTreeSet<String> {
    let (dir, disk) = directory_of(segments);
    let running = start(dir.path(), &disk, role);
    running.scrape(segments);
    running.scrape(segments);
    let log = disk.log();
    running.stop();
    different(&log)
}

fn different(log: &[String]) -> BTreeSet<String> {
    log.iter().cloned().collect()
}

/// Paths and inodes differ between two directories; the number of different calls must not.
fn assert_equal(few: &BTreeSet<String>, many: &BTreeSet<String>) {
    let shown: Vec<&String> = many.iter().take(60).collect();
    assert_eq!(few.len(), many.len(), "with {MANY} segments: {shown:#?}");
}

#[test]
fn a_start_and_a_scrape_read_no_finished_segment() {
    // Fails if recovery, the startup scan, a round, a scrape or a listing opens, examines or reads a
    // file for each segment that was finished before.
    let few = calls(FEW, Role::Processor);
    assert_equal(&few, &calls(MANY, Role::Processor));
}

#[test]
fn a_server_that_does_not_apply_reads_no_finished_segment() {
    // Fails if the observer does.
    let few = calls(FEW, Role::Observer);
    assert_equal(&few, &calls(MANY, Role::Observer));
}

#[test]
fn a_batch_run_reads_no_finished_segment() {
    // Fails if `tallyline process` does.
    let calls = |segments| {
        let (dir, disk) = directory_of(segments);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        run_once(&processing(dir.path()), &shared, &[], &mut |_| {}).unwrap();
        different(&disk.log())
    };
    assert_equal(&calls(FEW), &calls(MANY));
}

#[test]
fn a_line_that_no_request_brought_is_unaccounted() {
    // Fails if accepted events are not compared with the lines of the journal. Only here a line reaches
    // the journal beside the HTTP server.
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path(), &SimDisk::with_dir(dir.path()), Role::Processor);
    until(PATIENCE, "ready", || {
        (running.get("/readyz") == "{\"ready\":true}").then_some(())
    });
    running.write_segment();
    let ready = running.get("/readyz");
    let reason = "0 events were accepted and 1 lines appended in this run: 1 are unaccounted for";
    assert!(ready.contains(reason), "{ready}");
    let status = running.get("/status");
    assert!(status.contains("\"unaccounted\":-1,"), "{status}");
    let metrics = running.get("/metrics");
    assert!(
        metrics.contains("\ntallyline_unaccounted_lines -1\n"),
        "{metrics}"
    );
    running.stop();
}
