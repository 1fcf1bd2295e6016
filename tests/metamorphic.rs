//! Metamorphic tests: the same events, delivered in another way, must give the same result.
//!
//! Events are shuffled, cut into batches of any size, re-sent if they have an id, appended to a
//! journal that rotates at any size, and applied by 1 to 8 threads with very little memory, in one
//! run or several. Totals, and every column of the ledger except the duplicates, must be those of a
//! plain run; the duplicates must be exactly what was re-sent. No two events with the same id
//! contradict each other: the first applied one would win, so the order would matter.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, mpsc};

use tallyline::data_dir::disk::{Disk, RealDisk};
use tallyline::health::Health;
use tallyline::journal::{Batch, Journal, JournalConfig, KnownSegments};
use tallyline::processor::{ProcessorConfig, run_once};
use tallyline::store::read_segments;
use tallyline::verify::{Target, verify};

use super::harness::{PATIENCE, Totals, database};
use super::sim_disk::{Choices, for_seeds};

const EVENTS: usize = 120;

/// Number of cases; each creates two databases.
const CASES: u64 = 24;

/// The line of an event, and whether it has an id.
type Line = (String, bool);

/// Generates events and invalid lines.
fn made(choices: &mut Choices) -> Vec<Line> {
    // With many users, little memory is full of their sums, which are then spilled.
    let users = [9, 1000][choices.below(2)];
    (0..EVENTS)
        .map(|n| {
            let user = choices.below(users);
            let name = ["add_revenue", "add_revenue", "subtract_revenue"][choices.below(3)];
            let value = format!("{}.{:06}", choices.below(5000), choices.below(1_000_000));
            let padding = "x".repeat(choices.below(200));
            match choices.below(8) {
                0 => (format!("{{\"userId\":\"u{user}\",\"value\":-{value}}}\n"), false),
                1..=3 => (
                    format!("{{\"id\":\"{n}\",\"userId\":\"u{user}\",\"name\":\"{name}\",\"value\":{value},\"more\":\"{padding}\"}}\n"),
                    true,
                ),
                4 => (format!("{{\"userId\":\"u{user}\\u00e9\",\"name\":\"{name}\",\"value\":{value}}}\n"), false),
                _ => (format!("{{\"value\":{value},\"name\":\"{name}\",\"userId\":\"u{user}\"}}\n"), false),
            }
        })
        .collect()
}

fn shuffle<T>(items: &mut [T], choices: &mut Choices) {
    for last in (1..items.len()).rev() {
        items.swap(last, choices.below(last + 1));
    }
}

/// How the events are delivered.
struct Way {
    lines: Vec<String>,
    batch_lines_max: usize,
    rotate_size: u64,
    threads: usize,
    memory_bytes: usize,
    /// How often the directory is closed and processed in between.
    runs: usize,
}

/// The result.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    totals: Totals,
    events: u64,
    rejected: u64,
    duplicates: u64,
}

impl Way {
    fn go(&self, choices: &mut Choices) -> Outcome {
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() {
            memory.to_owned()
        } else {
            std::env::temp_dir()
        };
        let dir = tempfile::tempdir_in(root).unwrap();
        for part in self.lines.chunks(self.lines.len().div_ceil(self.runs)) {
            self.append(dir.path(), part, choices);
            self.apply(dir.path());
        }
        let rows = read_segments(&dir.path().join("revenue.db")).unwrap();
        let sum =
            |of: fn(&tallyline::store::Counts) -> u64| rows.iter().map(|row| of(&row.counts)).sum();
        Outcome {
            totals: database(dir.path()),
            events: sum(|counts| counts.events),
            rejected: sum(|counts| counts.rejected),
            duplicates: sum(|counts| counts.duplicates),
        }
    }

    /// Through the journal, in batches of any size up to the bound; sealed at the end.
    fn append(&self, dir: &Path, lines: &[String], choices: &mut Choices) {
        let config = JournalConfig {
            rotate_size: self.rotate_size,
            ..JournalConfig::default()
        };
        let known = read_segments(&dir.join("revenue.db")).unwrap();
        assert!(
            known.iter().all(|row| row.completed_at_ms.is_some()),
            "all sealed and applied"
        );
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let health = Arc::new(Health::default());
        let (journal, committer, _) =
            Journal::open(disk, dir, config, &KnownSegments::default(), health).unwrap();
        let mut rest = lines;
        while !rest.is_empty() {
            let (now, later) =
                rest.split_at(1 + choices.below(self.batch_lines_max.min(rest.len())));
            rest = later;
            let batch = Batch {
                bytes: now.concat().into_bytes(),
            };
            let (done, answered) = mpsc::channel();
            journal.append(
                batch,
                Box::new(move |answer| {
                    drop(done.send(answer));
                    None
                }),
            );
            answered.recv_timeout(PATIENCE).unwrap().expect("appended");
        }
        committer.stop();
    }

    fn apply(&self, dir: &Path) {
        let mut config = ProcessorConfig::new(dir);
        config.threads = self.threads;
        config.memory_bytes = self.memory_bytes;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let summary = run_once(&config, &disk, &[], &mut |_| {}).unwrap();
        assert!(
            summary.refused.is_empty() && summary.missing.is_empty(),
            "{summary:?}"
        );
        let mut findings = Vec::new();
        let mut target = Target::new(dir);
        target.threads = self.threads;
        target.memory_bytes = self.memory_bytes;
        let verdict = verify(
            &target,
            &RealDisk,
            &mut |finding| findings.push(finding.clone()),
            &mut |_, _| {},
        );
        assert!(verdict.unwrap().unwrap().agrees(), "{findings:?}");
    }
}

fn both_ways(seed: u64) {
    let choices = &mut Choices::new(seed);
    let lines = made(choices);
    let plain = Way {
        lines: lines.iter().map(|(line, _)| line.clone()).collect(),
        batch_lines_max: EVENTS,
        rotate_size: 1 << 30,
        threads: 1,
        memory_bytes: 256 << 20,
        runs: 1,
    };
    let expected = plain.go(choices);
    assert_eq!(expected.duplicates, 0);
    assert_eq!(expected.events + expected.rejected, EVENTS as u64);

    let mut again = lines.clone();
    again.retain(|(_, with_id)| *with_id && choices.below(2) == 0);
    let resent = again.len() as u64;
    let mut lines = [lines, again].concat();
    shuffle(&mut lines, choices);
    let other = Way {
        lines: lines.into_iter().map(|(line, _)| line).collect(),
        batch_lines_max: 1 + choices.below(20),
        rotate_size: 100 + choices.below(20_000) as u64,
        threads: 1 + choices.below(8),
        memory_bytes: [1, 2000, 256 << 20][choices.below(3)],
        runs: 1 + choices.below(3),
    };
    let found = other.go(choices);
    assert_eq!(
        found,
        Outcome {
            duplicates: resent,
            ..expected
        }
    );
}

#[test]
fn totals_and_ledger_do_not_depend_on_how_events_are_delivered() {
    // Fails if a total depends on order, on how files, batches or ranges are cut, on the number of
    // threads or their memory, or on whether an event with an id was sent twice.
    for_seeds(CASES, both_ways);
}

#[test]
fn imported_files_give_the_same_totals() {
    // Fails if imported files are parsed by other rules than native ones.
    let choices = &mut Choices::new(7);
    let lines = made(choices);
    let mut outcomes = Vec::new();
    for cut in [EVENTS, 50, 7] {
        let dir = tempfile::tempdir().unwrap();
        for (number, part) in lines.chunks(cut).enumerate() {
            let text: String = part.iter().map(|(line, _)| line.as_str()).collect();
            // The last newline of such a file may be missing.
            let text = if number % 2 == 0 {
                text.trim_end()
            } else {
                &text
            };
            std::fs::write(dir.path().join(format!("events_{number:03}.jsonl")), text).unwrap();
        }
        let config = ProcessorConfig::new(dir.path());
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let summary = run_once(&config, &disk, &[], &mut |_| {}).unwrap();
        outcomes.push((
            database(dir.path()),
            summary.counts.events,
            summary.counts.rejected,
        ));
    }
    let totals: BTreeMap<_, _> = outcomes[0].0.clone();
    assert!(totals.len() > 9 && outcomes[0].2 > 0, "{outcomes:?}");
    assert!(
        outcomes.iter().all(|outcome| *outcome == outcomes[0]),
        "{outcomes:?}"
    );
}
