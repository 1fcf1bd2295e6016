//! `cargo bench`: the cost of each stage on this machine, as a table.
//!
//! Each row is the median of several runs of the same work, with their spread. Times depend on the
//! machine and its load: compare rows of one run, or run two builds in turn.
#![expect(clippy::print_stdout, reason = "its output is a table on stdout")]
#![expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run must fail")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tallyline::cli::config::{SendConfig, ServeConfig};
use tallyline::client;
use tallyline::data_dir::disk::{Disk, RealDisk};
use tallyline::event::Event;
use tallyline::health::Health;
use tallyline::journal::{Batch, Journal, JournalConfig, KnownSegments};
use tallyline::processor::{self, ProcessorConfig};
use tallyline::server::Server;
use tallyline::shutdown::Shutdown;

const RUNS: usize = 5;

fn main() {
    // `cargo test --benches` and `cargo bench -- FILTER` pass arguments; a filter chooses rows.
    let filter = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .unwrap_or_default();
    println!(
        "{:<44}{:>14}{:>16}{:>10}",
        "stage", "each", "a second", "spread"
    );
    let mut table = Table { filter };
    parse(&mut table);
    append(&mut table);
    apply(&mut table);
    end_to_end(&mut table);
}

struct Table {
    filter: String,
}

impl Table {
    /// Runs `work` several times; each run handles `count` of the row's unit.
    fn row(&mut self, name: &str, count: u64, mut work: impl FnMut()) {
        if !name.contains(&self.filter) {
            return;
        }
        work(); // warm-up
        let mut times: Vec<Duration> = (0..RUNS)
            .map(|_| {
                let began = Instant::now();
                work();
                began.elapsed()
            })
            .collect();
        times.sort();
        let median = times[RUNS / 2].as_secs_f64();
        let spread = (times[RUNS - 1].as_secs_f64() - times[0].as_secs_f64()) / median * 100.0;
        let (each, rate) = (median / count as f64 * 1e9, count as f64 / median);
        println!("{name:<44}{each:>11.0} ns{rate:>16.0}{spread:>9.0}%");
    }
}

fn lines(count: u64) -> String {
    let mut text = String::new();
    for i in 0..count {
        let (user, value) = (i * 7919 % 1000, i % 1000 + 1);
        writeln!(
            text,
            r#"{{"userId": "user{user}", "name": "add_revenue", "value": {value}}}"#
        )
        .unwrap();
    }
    text
}

fn parse(table: &mut Table) {
    let plain = lines(200_000);
    let other = plain.replace("\"value\"", "\"note\": \"caf\\u00e9\", \"value\"");
    for (name, text) in [
        ("parse: a plain line", &plain),
        ("parse: a line with an escape and a field more", &other),
    ] {
        table.row(name, 200_000, || {
            for line in text
                .as_bytes()
                .split(|&b| b == b'\n')
                .filter(|line| !line.is_empty())
            {
                black_box(Event::parse(line).unwrap());
            }
        });
    }
}

fn append(table: &mut Table) {
    for (group, lines_each) in [(1, 1), (8, 1), (64, 1), (8, 1000)] {
        let dir = tempfile::tempdir_in(target_dir()).unwrap();
        let config = JournalConfig {
            rotate_interval: None,
            rotate_size: 256 << 20,
            check_every: Duration::from_secs(1),
            queue_bytes_max: 64 << 20,
            disk_reserve_bytes: 0,
            disk_bytes_max: None,
            lock: None,
        };
        let (journal, committer, _) = Journal::open(
            Arc::new(RealDisk),
            dir.path(),
            config,
            &KnownSegments::default(),
            Arc::new(Health::default()),
        )
        .unwrap();
        let text = lines(lines_each);
        let rounds = 300;
        let name = format!("append, durable: {group} waiting x {lines_each} lines");
        table.row(&name, rounds * group * lines_each, || {
            for _ in 0..rounds {
                let (sender, answers) = mpsc::channel();
                for _ in 0..group {
                    let sender = sender.clone();
                    let batch = Batch {
                        bytes: text.clone().into_bytes(),
                    };
                    journal.append(
                        batch,
                        Box::new(move |answer| {
                            sender.send(answer.unwrap()).unwrap();
                            None
                        }),
                    );
                }
                drop(sender);
                assert_eq!(answers.iter().count() as u64, group);
            }
        });
        committer.stop();
    }
}

/// `process` of a sealed file into a new database.
fn apply(table: &mut Table) {
    const LINES: u64 = 1_000_000;
    let text = lines(LINES);
    table.row("apply: a file of a million lines", LINES, || {
        let dir = tempfile::tempdir_in(target_dir()).unwrap();
        std::fs::write(dir.path().join("events_1.jsonl"), &text).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let config = ProcessorConfig::new(dir.path());
        let summary = processor::run_once(&config, &disk, &[], &mut |_| {}).unwrap();
        assert_eq!(summary.counts.events, LINES);
    });
}

/// `send` to a server, until the totals include the last event.
fn end_to_end(table: &mut Table) {
    const LINES: u64 = 200_000;
    let dir = tempfile::tempdir_in(target_dir()).unwrap();
    let input = dir.path().join("input.jsonl");
    std::fs::write(&input, lines(LINES)).unwrap();
    let server = Server::start(&ServeConfig::at(dir.path().join("data"))).unwrap();
    let url = format!("http://{}", server.address());
    table.row("end to end: send, ingest, apply, GET", LINES, || {
        let config = SendConfig::of_file(input.clone(), url.clone());
        let summary = client::send(&config, &Shutdown::default());
        assert_eq!(summary.counts.accepted, LINES);
        assert_eq!(client::totals(&url).unwrap().len(), 1000);
    });
    server.stop().expect("it stops");
}

/// The target directory, which is on the disk of the project; /tmp may be in memory.
fn target_dir() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}
