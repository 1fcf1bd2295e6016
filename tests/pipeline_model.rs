//! Journal, processor and database on a simulated disk, compared with a simple model.
//!
//! The database is on a real disk and keeps every commit, as SQLite does with `synchronous=FULL`;
//! the event files are on the simulated one. After each end (a power cut or a kill, with a second
//! one during the recovery), no segment is reported as missing or corrupt, which would mean that
//! totals contain lines that are gone. Once everything is applied, totals and ledger equal an
//! independent recount of the files, and everything acknowledged counts once. In some runs
//! retention is on: then the recount includes the removed files, which must be exactly those that
//! the database lists as pruned. In some runs there is so little memory that the sums are written to
//! temporary files, and segments that wait are added up and committed together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tallyline::data_dir::disk::Disk;
use tallyline::data_dir::segment::{Position, label_in_name, seal_in_name};
use tallyline::health::Health;
use tallyline::journal::{Batch, Committer, Journal, JournalConfig, KnownSegment, KnownSegments};
use tallyline::processor::{Processor, ProcessorConfig, rebuild, run_once};
use tallyline::progress::{Processing, Progress, WaitOutcome};
use tallyline::store::{SegmentState, read_kept, read_segments};

use super::harness::recount::{Recount, database_at, recount_bytes};
use super::harness::{PATIENCE, until};
use super::sim_disk::{Call, Choices, SimDisk, for_seeds};

const EIO: i32 = 5;
const FAILING: [Call; 8] = [
    Call::Write,
    Call::SyncData,
    Call::Create,
    Call::Rename,
    Call::SyncDir,
    Call::CreateDir,
    Call::Open,
    Call::Remove,
];

/// Segments pruned in all cases together: the model tests nothing if there are none.
static PRUNED: AtomicU64 = AtomicU64::new(0);

/// Temporary files written in all cases together.
static SPILLED: AtomicU64 = AtomicU64::new(0);

/// Numbers of cases of the three random walks, 10,000 in all; each case starts several processors.
const CASES: u64 = 5000;
const CASES_AMONG_OTHERS: u64 = 3000;
const CASES_SMALL_FILES: u64 = 2000;
/// One case in this many rebuilds the database at its end.
const REBUILT: u64 = 4;

/// One case in this many has little memory and larger segments.
const LITTLE_MEMORY: u64 = 4;
/// With little memory, segments from 4 KiB on are large.
const LARGE_SEGMENT_BYTES: u64 = 9000;
/// Lines without an id in each batch then, each of another user.
const PLAIN_LINES: u64 = 120;

/// Whether applied segments are pruned at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Retention {
    Off,
    On,
}

/// One run of the three together.
struct Life {
    disk: SimDisk,
    journal: Journal,
    committer: Committer,
    processor: Processor,
    progress: Arc<Progress>,
    health: Arc<Health>,
}

struct World {
    dir: tempfile::TempDir,
    /// Acknowledged ids: each must be counted once.
    acknowledged: Vec<u64>,
    sent: u64,
    /// Whether the sums of a segment do not fit into the memory.
    little_memory: bool,
}

impl World {
    fn new() -> Self {
        // Commits in memory are fast; this test is about the disk of the files.
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() {
            memory.to_owned()
        } else {
            std::env::temp_dir()
        };
        Self {
            dir: tempfile::tempdir_in(root).unwrap(),
            acknowledged: Vec::new(),
            sent: 0,
            little_memory: false,
        }
    }

    fn database(&self) -> PathBuf {
        self.dir.path().join("revenue.db")
    }

    /// What the database knows, read on a single connection: parsing the schema is most of the cost.
    fn known(&self) -> KnownSegments {
        if !self.database().exists() {
            return KnownSegments::default();
        }
        let db = rusqlite::Connection::open(self.database()).unwrap();
        db.busy_timeout(PATIENCE).unwrap();
        let uuid = "SELECT uuid, (SELECT number FROM pruned) FROM directory";
        let one = db.query_row(uuid, [], |row| {
            Ok((row.get::<_, Option<String>>(0)?, row.get::<_, u64>(1)?))
        });
        // A life may end before the tables are created.
        let Ok((directory, pruned)) = one else {
            return KnownSegments::default();
        };
        let native =
            "SELECT name, tag, applied_bytes, checksum, state FROM segment WHERE tag IS NOT NULL";
        let mut rows = db.prepare(native).unwrap();
        let rows = rows.query_map([], |row| {
            let name: String = row.get(0)?;
            let tag: String = row.get(1)?;
            Ok(KnownSegment {
                number: name.strip_prefix("events-").unwrap().parse().unwrap(),
                tag: Some(tag.parse().unwrap()),
                applied_bytes: row.get(2)?,
                checksum: Some(row.get(3)?),
                sealed: row.get::<_, String>(4)? != "active",
            })
        });
        KnownSegments {
            directory: directory.map(|uuid| uuid.parse().unwrap()),
            segments: rows.unwrap().map(Result::unwrap).collect(),
            pruned,
            ..KnownSegments::default()
        }
    }

    fn processing(&self) -> ProcessorConfig {
        let mut processing = ProcessorConfig::new(self.dir.path());
        processing.flush_interval = Duration::from_millis(10);
        processing.threads = 1;
        if self.little_memory {
            processing.memory_bytes = 1;
        }
        processing
    }

    fn open(&self, disk: &SimDisk, retention: Retention) -> Option<Life> {
        self.open_looking_around(disk, retention, Duration::from_hours(1))
    }

    /// With a journal that retries failed operations at this interval.
    fn open_looking_around(
        &self,
        disk: &SimDisk,
        retention: Retention,
        check_every: Duration,
    ) -> Option<Life> {
        let health = Arc::new(Health::default());
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let config = JournalConfig {
            rotate_interval: None,
            rotate_size: if self.little_memory {
                LARGE_SEGMENT_BYTES
            } else {
                700
            },
            check_every,
            queue_bytes_max: 1 << 20,
            disk_reserve_bytes: 0,
            disk_bytes_max: None,
            lock: None,
        };
        let opened = Journal::open(
            Arc::clone(&shared),
            self.dir.path(),
            config,
            &self.known(),
            Arc::clone(&health),
        );
        let (journal, committer, recovery) = opened.ok()?;
        assert_eq!((recovery.missing, recovery.corrupt), (None, None));
        let progress = Arc::new(Progress::new(Processing::Here));
        let mut processing = self.processing();
        processing.retention = (retention == Retention::On).then_some(Duration::ZERO);
        let processor = Processor::start(
            processing,
            shared,
            journal.clone(),
            Arc::clone(&progress),
            Arc::clone(&health),
        );
        Some(Life {
            disk: disk.clone(),
            journal,
            committer,
            processor: processor.unwrap(),
            progress,
            health,
        })
    }

    /// A few events, each with a new id or that of an earlier one, sent as one batch; most of the
    /// ids are numbers of three senders.
    fn append(&mut self, life: &Life, choices: &mut Choices) -> Option<Position> {
        let mut bytes = Vec::new();
        let mut ids = Vec::new();
        for _ in 0..=choices.below(3) {
            let id = if self.sent > 0 && choices.below(4) == 0 {
                choices.below(usize::try_from(self.sent).unwrap()) as u64
            } else {
                self.sent += 1;
                self.sent - 1
            };
            ids.push(id);
            // The payload depends on the id: an event sent again is the same event.
            let (user, value) = (id % 5, id * 7 % 1000);
            let padding = "x".repeat(usize::try_from(id % 300).unwrap());
            bytes.extend(
                format!("{{\"userId\":\"u{user}\",\"name\":\"add_revenue\",\"value\":{value}.25,\"id\":\"{}\",\"padding\":\"{padding}\"}}\n", id_text(id))
                    .bytes(),
            );
        }
        if self.little_memory {
            for line in 0..PLAIN_LINES {
                let user = (self.sent * 31 + line) % 500;
                bytes.extend(
                    format!(
                        "{{\"userId\":\"plain{user}\",\"name\":\"add_revenue\",\"value\":{line}}}\n"
                    )
                    .bytes(),
                );
            }
        }
        let (done, answered) = mpsc::channel();
        life.journal.append(
            Batch { bytes },
            Box::new(move |answer| {
                drop(done.send(answer));
                None
            }),
        );
        let answer = answered.recv_timeout(PATIENCE).expect("answered, once");
        let position = answer.ok()?;
        self.acknowledged.extend(ids);
        Some(position)
    }

    /// Waits until everything is applied, then compares with the files.
    fn check(&self, life: &Life) {
        let tail = life.journal.tail();
        let end = Position {
            segment: tail.number,
            offset: tail.durable_end,
        };
        let waited = life.progress.wait_applied(end, Instant::now() + PATIENCE);
        assert_eq!(waited, WaitOutcome::Applied, "{:?}", life.health.reasons());
        let (count, gone) = recount_disk(&life.disk);
        let pruned = read_kept(&self.database()).unwrap().1;
        assert!(
            gone.iter().all(|number| *number <= pruned.number),
            "{gone:?} are gone, {pruned:?}"
        );
        let totals = database_at(&self.database());
        assert_eq!(totals, count.users, "totals");
        let (ledger, _) = life.progress.ledger(|| tail.lines);
        assert_eq!(ledger.unaccounted, 0);
        let found = (ledger.lines, ledger.applied, ledger.duplicates);
        assert_eq!(found, (count.lines, count.applied, count.duplicates));
        assert_eq!(ledger.rejected, count.rejected, "rejected");
        assert_eq!((ledger.pending, ledger.corrupt), (0, 0));
        let mut ids = self.acknowledged.clone();
        ids.sort_unstable();
        ids.dedup();
        assert!(
            count.applied >= ids.len() as u64,
            "each acknowledged id once"
        );
        for id in ids {
            assert!(
                count.ids.contains_key(&id_text(id)),
                "{id} was acknowledged"
            );
        }
        assert_eq!(life.health.reasons(), Vec::<String>::new());
    }
}

/// The text of an id: in four of five cases the next number of one of three senders, which start a
/// little before the end of a block of 128.
fn id_text(id: u64) -> String {
    match id % 5 {
        4 => id.to_string(),
        sender => format!("sender{}-{:06}", sender % 3, 124 + id / 5 * 2 + sender / 3),
    }
}

/// Recounts the files on the simulated disk, in the order of their numbers, together with those
/// that were removed; returns the numbers of the removed ones, too.
fn recount_disk(disk: &SimDisk) -> (Recount, Vec<u64>) {
    let number = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        let native = label_in_name(name).map(|label| label.number);
        native.or_else(|| (name == "events.jsonl").then_some(u64::MAX - 1))
    };
    let mut segments = BTreeMap::new();
    let mut imported = Vec::new();
    for (path, bytes) in disk.contents() {
        if let Some(number) = number(&path) {
            let twice = segments.insert(number, bytes);
            assert!(twice.is_none(), "two files claim number {number}");
        } else if path
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("events_found")
        {
            // A first write that was cut short.
            imported.push(bytes);
        }
    }
    let mut gone = Vec::new();
    for (path, bytes) in disk.removed() {
        if let Some(number) = number(&path) {
            // A power cut may have restored it.
            let kept = segments.entry(number).or_insert_with(|| {
                gone.push(number);
                bytes.clone()
            });
            assert!(*kept == bytes, "{number} was removed as something else");
        }
    }
    let files = segments.values().chain(&imported);
    let count = recount_bytes(files.map(Vec::as_slice));
    (count, gone)
}

impl Life {
    fn rotate(&self) {
        let (done, answered) = mpsc::channel();
        self.journal
            .rotate(Box::new(move |answer| drop(done.send(answer))));
        let _may_fail = answered.recv_timeout(PATIENCE).expect("answered, once");
    }

    /// A shutdown in order, as by a server.
    fn stop(self) -> SimDisk {
        self.committer.stop();
        self.processor.stop();
        self.disk.kill()
    }

    /// The disk fails from one step on; earlier commits stay.
    fn crash(self, seed: u64, power: bool) -> SimDisk {
        let next = if power {
            self.disk.power_cut(seed)
        } else {
            self.disk.kill()
        };
        self.committer.stop();
        self.processor.stop();
        next
    }
}

fn walk(seed: u64) {
    let choices = &mut Choices::new(seed);
    let mut world = World::new();
    world.little_memory = seed % LITTLE_MEMORY == 1;
    let mut disk = SimDisk::with_dir(world.dir.path());
    for life in 0..3 {
        if choices.below(2) == 0 {
            disk.power_off_at(choices.below(60) as u64);
        }
        let retention = [Retention::Off, Retention::On][choices.below(2)];
        let Some(running) = world.open(&disk, retention) else {
            disk = disk.power_cut(seed ^ life);
            continue;
        };
        for _ in 0..choices.below(10) {
            match choices.below(6) {
                0 => running.rotate(),
                2 if choices.below(3) == 0 => {
                    let call = FAILING[choices.below(FAILING.len())];
                    disk.fail(call, choices.below(3) as u64, EIO);
                }
                1 => {
                    let off = disk.steps() + choices.below(60) as u64;
                    disk.power_off_at(off);
                }
                _ => {
                    let position = world.append(&running, choices);
                    if let (Some(position), 0) = (position, choices.below(3)) {
                        // Lets the processor continue, unless the power is off.
                        let soon = Instant::now() + Duration::from_millis(20);
                        running.progress.wait_applied(position, soon);
                    }
                }
            }
        }
        disk = match choices.below(5) {
            0 => running.stop(),
            1 => running.crash(seed ^ life, false),
            _ => running.crash(seed ^ life, true),
        };
    }
    let retention = [Retention::Off, Retention::On][choices.below(2)];
    let running = world.open(&disk, retention).expect("a sound disk");
    world.append(&running, choices).expect("a sound disk takes");
    world.check(&running);
    let disk = running.stop();
    PRUNED.fetch_add(world.pruned(), Ordering::Relaxed);
    let is_spill = |path: &Path| {
        path.extension()
            .is_some_and(|extension| extension == "spill")
    };
    assert!(
        !disk.files().iter().any(|path| is_spill(path)),
        "none is left"
    );
    let spilled = disk.removed();
    let spilled = spilled.iter().filter(|(path, _)| is_spill(path));
    SPILLED.fetch_add(spilled.count() as u64, Ordering::Relaxed);
    if seed.is_multiple_of(REBUILT) || world.little_memory && seed.is_multiple_of(3) {
        world.made_again(disk);
    }
}

impl World {
    /// How many segments retention has pruned.
    fn pruned(&self) -> u64 {
        read_kept(&self.database()).unwrap().1.segments
    }

    /// A deleted database is rebuilt with the same totals; if anything was pruned, by a rebuild
    /// that reads the old one.
    fn made_again(&self, disk: SimDisk) {
        let disk = if self.pruned() == 0 {
            std::fs::remove_file(self.database()).unwrap();
            disk
        } else {
            let shared: Arc<dyn Disk> = Arc::new(disk.clone());
            rebuild(&self.processing(), &shared, &mut |_| {}).unwrap();
            disk.kill()
        };
        let running = self.open(&disk, Retention::Off).expect("a sound disk");
        self.check(&running);
        running.stop();
    }
}

#[test]
fn totals_are_those_of_the_files_whatever_happens_to_the_disk() {
    // Fails if the processor applies a byte that a power cut can undo, applies one twice, skips
    // one, or uses its memory instead of the rows.
    let cases = for_seeds(CASES, walk);
    assert!(PRUNED.load(Ordering::Relaxed) > cases / 4 || cases < 100);
    assert!(SPILLED.load(Ordering::Relaxed) > cases / 8 || cases < 100);
}

/// A backup as made by `tallyline backup` (the database first, then the files), or a snapshot of the
/// file system: the files as a power failure at one moment would leave them.
struct Backup {
    database: PathBuf,
    files: SimDisk,
    acknowledged: Vec<u64>,
}

impl World {
    /// Made while the server runs: it contains what was acknowledged before. `snapshot` is the seed of
    /// what a snapshot has of the bytes that were not synced. The database is the state of a commit before
    /// that moment, which a snapshot of its files leaves, too.
    fn back_up(&self, life: &Life, name: &str, snapshot: Option<u64>) -> Option<Backup> {
        let database = self.dir.path().join(name);
        if !self.database().exists() {
            return None;
        }
        let acknowledged = self.acknowledged.clone();
        let db = rusqlite::Connection::open(self.database()).unwrap();
        db.busy_timeout(PATIENCE).unwrap();
        let made = db.execute("VACUUM INTO ?1", [database.to_str().unwrap()]);
        // Made so early that there are no tables yet.
        made.ok()?;
        Some(Backup {
            database,
            files: match snapshot {
                Some(seed) => life.disk.copy().power_cut(seed),
                None => life.disk.copy(),
            },
            acknowledged,
        })
    }

    /// Replaces the database by that of a backup.
    fn restore_database(&self, backup: &Backup) {
        for suffix in ["", "-wal", "-shm"] {
            let path = format!("{}{suffix}", self.database().display());
            drop(std::fs::remove_file(path));
        }
        std::fs::copy(&backup.database, self.database()).unwrap();
    }
}

impl World {
    /// Truncates a sealed file that is not fully applied at a line end; returns its former content,
    /// or `None` if there is no such file.
    fn cut_sealed(&self, disk: &SimDisk, choices: &mut Choices) -> Option<(PathBuf, Vec<u8>)> {
        let dir = self.dir.path();
        let rows = read_segments(&self.database()).unwrap();
        let whole = |number| {
            let mut whole = rows.iter().filter(|row| row.state == SegmentState::Applied);
            whole.any(|row| row.id.number() == Some(number))
        };
        let waits = |name: &str| {
            let label = label_in_name(name);
            seal_in_name(name).is_some() && label.is_some_and(|label| !whole(label.number))
        };
        let names = disk.list(dir).unwrap().into_iter();
        let mut names: Vec<String> = names
            .map(|(name, _)| name)
            .filter(|name| waits(name))
            .collect();
        names.sort();
        let path = dir.join(names.get(choices.below(names.len().max(1)))?);
        let file = disk.open(&path).unwrap();
        let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
        file.read_at(&mut bytes, 0).unwrap();
        let ends: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] == b'\n').collect();
        let lines = choices.below(ends.len());
        let end = if lines == 0 { 0 } else { ends[lines - 1] + 1 };
        file.set_len(end as u64).unwrap();
        file.sync_data().unwrap();
        Some((path, bytes))
    }
}

/// Sealed files that were truncated between two runs.
static CUT: AtomicU64 = AtomicU64::new(0);

/// Several runs. A backup or a snapshot is made in one of them and restored, completely or in part, before a
/// later one; a client opens and closes the database; the `-wal` of the database is deleted; and a
/// sealed file is shorter during a run than what was acknowledged in it.
fn walk_among_others(seed: u64) {
    let choices = &mut Choices::new(seed);
    let mut world = World::new();
    let mut disk = SimDisk::with_dir(world.dir.path());
    let mut backups: Vec<Backup> = Vec::new();
    for life in 0..3 {
        let running = world.open(&disk, Retention::Off).expect("a sound disk");
        for step in 0..choices.below(8) {
            match choices.below(6) {
                0 => running.rotate(),
                1 => {
                    let snapshot = (choices.below(2) == 0).then_some(seed ^ step as u64);
                    let name = format!("backup-{life}-{step}");
                    backups.extend(world.back_up(&running, &name, snapshot));
                }
                2 => {
                    let db = rusqlite::Connection::open(world.database()).unwrap();
                    let count = db.query_row("SELECT count(*) FROM user_total", [], |row| {
                        row.get::<_, u64>(0)
                    });
                    let _no_tables_yet = count;
                }
                _ => {
                    let position = world.append(&running, choices).expect("a sound disk");
                    if choices.below(2) == 0 {
                        let soon = Instant::now() + Duration::from_millis(20);
                        running.progress.wait_applied(position, soon);
                    }
                }
            }
        }
        disk = if choices.below(2) == 0 {
            running.stop()
        } else {
            running.crash(seed ^ life, true)
        };
        if choices.below(2) == 0
            && let Some((path, bytes)) = world.cut_sealed(&disk, choices)
        {
            CUT.fetch_add(1, Ordering::Relaxed);
            let running = world.open(&disk, Retention::Off).expect("a sound disk");
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            until(PATIENCE, "readiness names the file that was cut", || {
                let reasons = running.health.reasons();
                reasons
                    .iter()
                    .any(|reason| reason.contains(&name))
                    .then_some(())
            });
            disk = running.stop();
            let file = disk.open(&path).expect("nothing of it was applied");
            file.write_all_at(&bytes, 0).unwrap();
            file.sync_data().unwrap();
        }
        let which = choices.below(4);
        if let Some(backup) = backups.get(choices.below(backups.len().max(1))) {
            match which {
                // The database alone: what it lacks is in the files.
                0 => world.restore_database(backup),
                // Everything: the state of the backup.
                1 => {
                    world.restore_database(backup);
                    disk = backup.files.copy();
                    world.acknowledged.clone_from(&backup.acknowledged);
                }
                // The files alone, without the newer database.
                2 => {
                    drop(std::fs::remove_file(world.database()));
                    disk = backup.files.copy();
                    world.acknowledged.clone_from(&backup.acknowledged);
                }
                _ => {}
            }
            // Backups made after the restored one are not backups of what follows.
            if which == 1 || which == 2 {
                backups.clear();
            }
        }
    }
    let running = world.open(&disk, Retention::Off).expect("a sound disk");
    world.append(&running, choices).expect("a sound disk takes");
    world.check(&running);
    let disk = running.stop();
    PRUNED.fetch_add(world.pruned(), Ordering::Relaxed);
    if seed.is_multiple_of(REBUILT) {
        world.made_again(disk);
    }
}

#[test]
fn a_backup_restored_whole_or_in_part_comes_to_what_the_files_say() {
    // Fails if a restored database, directory or snapshot counts a line twice or never.
    let cases = for_seeds(CASES_AMONG_OTHERS, walk_among_others);
    assert!(CUT.load(Ordering::Relaxed) > cases / 50 || cases < 100);
}

/// A call of this kind, after `skip` others, fails while files are written, sealed, applied,
/// archived and pruned, and so does the next call of this kind. Afterwards the state must be as
/// without failures. Returns whether that needs a restart.
fn fails_twice(call: Call, skip: u64) -> bool {
    let case = format!("{call:?} {skip}");
    let choices = &mut Choices::new(skip);
    let mut world = World::new();
    let dir = world.dir.path().to_owned();
    let disk = SimDisk::with_dir(&dir);
    let often = Duration::from_millis(10);
    let running = world.open_looking_around(&disk, Retention::On, often);
    let running = running.expect("a sound disk");
    let position = world.append(&running, choices).expect("it takes");
    let deadline = Instant::now() + PATIENCE;
    running.progress.wait_applied(position, deadline);
    disk.fail(call, skip, EIO);
    // The next one fails too, and none after that.
    let mut skips = [0, u64::MAX].into_iter();
    let mut write_and_seal = || {
        for _ in 0..3 {
            let _may_fail = world.append(&running, choices);
            running.rotate();
        }
    };
    write_and_seal();
    let poisoned = until(PATIENCE, &format!("{case}: it recovers"), || {
        if disk.has_failed() {
            disk.fail(call, skips.next().expect("two fail"), EIO);
            write_and_seal();
        }
        // Of the sealed files only the newest is kept, in the archive, next to the active file and
        // directory.json.
        let files = disk.files();
        let archive = dir.join("applied");
        let archived = files
            .iter()
            .filter(|file| file.starts_with(&archive))
            .count();
        let reasons = running.health.reasons();
        if reasons.iter().any(|why| why.contains("is restarted")) {
            return Some(true);
        }
        (reasons.is_empty() && archived == 1 && files.len() == 3).then_some(false)
    });
    if !poisoned {
        disk.fail(call, u64::MAX, EIO); // In case there were fewer calls.
        world.append(&running, choices).expect(&case);
        world.check(&running);
    }
    running.stop();
    poisoned
}

#[test]
fn what_failed_is_tried_again_until_readiness_is_green() {
    // Fails if a reason stays in `/readyz` although everything was done in the end, or if the
    // journal stops although the outcome is known: it is only unknown if the sync of a directory
    // failed, after a rename or a creation.
    let cases = |call| (0..8).map(move |skip| (call, skip));
    std::thread::scope(|scope| {
        for (call, skip) in FAILING.into_iter().flat_map(cases) {
            scope.spawn(move || {
                let poisoned = fails_twice(call, skip);
                assert!(!poisoned || call == Call::SyncDir, "{call:?} {skip}");
            });
        }
    });
}

/// What the file of that number says: a few events, one of them with an id of the file before.
fn small_file(number: usize) -> (String, Vec<u8>) {
    let line = |n: usize| {
        let id = number * 2 + n;
        format!(
            "{{\"userId\":\"u{}\",\"name\":\"add_revenue\",\"value\":{}.5,\"id\":\"{id}\"}}\n",
            id % 5,
            id % 100
        )
    };
    let text: String = (0..3).map(line).collect();
    (format!("events_found_{number:03}.jsonl"), text.into_bytes())
}

/// Many small files that another program has just written and not synced are applied together by a
/// processor that runs once; the power goes, or a call fails, at any step.
fn many_small_files(seed: u64) {
    let choices = &mut Choices::new(seed);
    let world = World::new();
    let dir = world.dir.path();
    let mut disk = SimDisk::with_dir(dir);
    // Few files are synced one by one, many together.
    let files: Vec<_> = (0..=choices.below(37)).map(small_file).collect();
    for (name, bytes) in &files {
        let file = disk.create_new(&dir.join(name)).unwrap();
        file.write_all_at(bytes, 0).unwrap();
    }
    let mut calm = false;
    while !calm {
        calm = choices.below(3) == 0;
        let before = disk.log().len();
        if !calm {
            match choices.below(3) {
                0 => disk.fail(
                    FAILING[choices.below(FAILING.len())],
                    choices.below(9) as u64,
                    EIO,
                ),
                _ => disk.power_off_at(disk.steps() + choices.below(400) as u64),
            }
        }
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let ran = run_once(&world.processing(), &shared, &[], &mut |_| {});
        if calm {
            let summary = ran.unwrap();
            assert!(summary.refused.is_empty(), "{:?}", summary.refused);
            break;
        }
        // Of a file of another program whose sync failed, the page cache shows what is lost.
        let failed = disk.log()[before..].iter().any(|call| call == "FAULT");
        disk = match choices.below(3) {
            0 if !failed => disk.kill(),
            _ => disk.power_cut(choices.below(usize::MAX) as u64),
        };
        let rows = read_segments(&world.database()).unwrap();
        let found: BTreeMap<_, _> = disk
            .contents()
            .into_iter()
            .map(|(path, bytes)| (path.file_name().unwrap().to_owned(), bytes))
            .collect();
        for (name, bytes) in &files {
            let there = found.get(std::ffi::OsStr::new(name));
            if rows.iter().any(|row| row.file_name == *name) {
                assert_eq!(there, Some(bytes), "{name} is in the totals");
            } else {
                // The other program writes again what the power cut took.
                disk.put(&dir.join(name), bytes);
            }
        }
    }
    let count = recount_bytes(files.iter().map(|(_, bytes)| &bytes[..]));
    assert_eq!(database_at(&world.database()), count.users);
    let rows = read_segments(&world.database()).unwrap();
    let sum = |of: fn(&tallyline::store::Counts) -> u64| {
        rows.iter().map(|row| of(&row.counts)).sum::<u64>()
    };
    let counts = (
        sum(|it| it.events),
        sum(|it| it.duplicates),
        sum(|it| it.rejected),
    );
    assert_eq!(counts, (count.applied, count.duplicates, 0));
    assert!(rows.iter().all(|row| row.state == SegmentState::Applied));
}

#[test]
fn small_files_applied_together_count_once_whenever_the_power_goes() {
    // Fails if a file is applied before its bytes are durable, or one of a transaction without the others.
    for_seeds(CASES_SMALL_FILES, many_small_files);
}

#[test]
fn many_small_files_share_their_syncs_and_their_transactions() {
    // Fails if a file costs a sync or a transaction of its own.
    const FILES: usize = 600;
    let world = World::new();
    let disk = SimDisk::with_dir(world.dir.path());
    for (name, bytes) in (0..FILES).map(small_file) {
        disk.put(&world.dir.path().join(name), &bytes);
    }
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut commits = 0;
    let summary = run_once(&world.processing(), &shared, &[], &mut |_| commits += 1).unwrap();
    assert_eq!((summary.applied.len(), summary.refused.len()), (FILES, 0));
    let log = disk.log();
    let syncs = log.iter().filter(|call| call.starts_with("Sync")).count();
    // A commit is one sync of the database's, and one more now and then.
    assert!(
        syncs + 2 * commits <= FILES / 20,
        "{syncs} syncs, {commits} commits"
    );
    let left = disk
        .files()
        .iter()
        .filter(|path| path.parent() == Some(world.dir.path()))
        .count();
    assert_eq!(left, 1, "directory.json");
}
