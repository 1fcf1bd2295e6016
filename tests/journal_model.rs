//! The journal on a simulated disk that loses unsynced data, compared with a simple model.
//!
//! The journal is appended to, rotated, killed, cut off from power and reopened, and calls fail.
//! After each open: every acknowledged batch is at its position; nothing that was rejected is in a
//! file; any other bytes are complete lines of a batch whose response was never received, or zeros
//! of a page that was not synced; numbers have no gap; positions only grow; no segment is reported
//! as missing; the length and checksum in the name of a sealed file are those of its content.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use tallyline::data_dir::disk::Disk;
use tallyline::data_dir::segment::{ACTIVE_FILE, Label, Position, label_in_name, seal_in_name};
use tallyline::data_dir::{DIRECTORY_FILE, Directory};
use tallyline::health::Health;
use tallyline::journal::{
    AppendError, Batch, Committer, Journal, JournalConfig, KnownSegment, KnownSegments, Recovery,
};

use super::harness::PATIENCE;
use super::sim_disk::{Call, Choices, SimDisk, for_seeds};

const DIR: &str = "data";
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Number of cases of the random walk.
const CASES: u64 = 10_000;

fn config() -> JournalConfig {
    JournalConfig {
        rotate_interval: None,
        rotate_size: 3000,
        // Nothing depends on the clock.
        check_every: Duration::from_hours(1),
        queue_bytes_max: 1 << 20,
        disk_reserve_bytes: 0,
        disk_bytes_max: None,
        lock: None,
    }
}

/// What was acknowledged, rejected and applied, independent of the state of the journal.
#[derive(Default)]
struct Model {
    /// Acknowledged batches by position.
    acknowledged: BTreeMap<Position, Vec<u8>>,
    /// Lines whose response reported that nothing was appended.
    refused: HashSet<Vec<u8>>,
    /// Lines without a response: they may be stored or not.
    unknown: HashSet<Vec<u8>>,
    /// The position up to which the database has applied; at most the last acknowledged one.
    applied: Option<Position>,
    /// CRC-32 of the bytes before that position when they were applied; `None` if their file was gone.
    checksum: Option<u32>,
    /// Segments of which another program has edited applied bytes before a start that read the
    /// database: the checksum in their sealed name must contradict their content.
    edited: HashSet<u64>,
    /// The id of the data directory at the last start.
    directory: Option<u32>,
    next_line: u64,
}

/// An end other than a shutdown.
#[derive(Clone, Copy)]
enum End {
    PowerCut,
    Kill,
}

struct Running {
    disk: SimDisk,
    journal: Journal,
    committer: Committer,
}

type Answer = Result<Position, AppendError>;

fn done() -> (Box<dyn FnOnce(Answer) + Send>, Receiver<Answer>) {
    let (answer, answered) = mpsc::channel();
    (Box::new(move |result| drop(answer.send(result))), answered)
}

impl Model {
    /// The rows of a database that has applied up to this position.
    fn known(&self) -> KnownSegments {
        let Some(applied) = self.applied else {
            return KnownSegments::default();
        };
        let segments = (1..=applied.segment)
            .map(|number| KnownSegment {
                number,
                tag: None,
                applied_bytes: if number == applied.segment {
                    applied.offset
                } else {
                    1
                },
                checksum: self.checksum.filter(|_| number == applied.segment),
                sealed: number < applied.segment,
            })
            .collect();
        KnownSegments {
            segments,
            ..KnownSegments::default()
        }
    }

    fn open(&self, disk: &SimDisk) -> Option<Running> {
        let opened = Journal::open(
            Arc::new(disk.clone()) as Arc<dyn Disk>,
            Path::new(DIR),
            config(),
            &self.known(),
            Arc::new(Health::default()),
        );
        let (journal, committer, recovery) = opened.ok()?;
        self.check(disk, &recovery);
        Some(Running {
            disk: disk.clone(),
            journal,
            committer,
        })
    }

    /// One or two new lines, some longer than a sector.
    fn batch(&mut self, choices: &mut Choices) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..=choices.below(2) {
            self.next_line += 1;
            bytes.extend(format!("line {} ", self.next_line).bytes());
            bytes.resize(bytes.len() + choices.below(700), b'x');
            bytes.push(b'\n');
        }
        bytes
    }

    /// Appends several batches at once and records the result of each.
    fn append(&mut self, running: &Running, count: usize, choices: &mut Choices) {
        let waiting: Vec<_> = (0..count)
            .map(|_| {
                let bytes = self.batch(choices);
                let (done, answered) = done();
                let batch = Batch {
                    bytes: bytes.clone(),
                };
                let done = |result| {
                    done(result);
                    None
                };
                running.journal.append(batch, Box::new(done));
                (bytes, answered)
            })
            .collect();
        for (bytes, answered) in waiting {
            match answered.recv_timeout(PATIENCE).expect("answered, once") {
                Ok(position) => {
                    let last = self.acknowledged.keys().next_back();
                    assert!(last.is_none_or(|last| *last < position), "positions grow");
                    self.acknowledged.insert(position, bytes);
                }
                Err(AppendError::Unknown(_)) => self.unknown.extend(lines_of(&bytes)),
                Err(_) => self.refused.extend(lines_of(&bytes)),
            }
        }
    }

    /// Simulates the processor: `applied` becomes an acknowledged position at or after the last
    /// one, with the checksum of the bytes before it.
    fn apply(&mut self, disk: &SimDisk, choices: &mut Choices) {
        let later: Vec<_> = self
            .acknowledged
            .keys()
            .filter(|position| self.applied.is_none_or(|applied| applied <= **position))
            .copied()
            .collect();
        if !later.is_empty() {
            self.apply_to(disk, later[choices.below(later.len())]);
        }
    }

    fn apply_to(&mut self, disk: &SimDisk, position: Position) {
        if self.edited.contains(&position.segment) {
            return; // The processor marks it as corrupt and applies no more of it.
        }
        let end = usize::try_from(position.offset).unwrap();
        let content = content_of(disk, position.segment);
        let applied = content.as_ref().and_then(|content| content.get(..end));
        self.checksum = applied.map(crc32fast::hash);
        self.applied = Some(position);
    }

    /// The checksum in a sealed name must be that of the content, unless the content was edited.
    fn check_seals(&self, disk: &SimDisk) {
        let directory = active_label(disk).tag.directory;
        for (path, content) in disk.contents() {
            let name = path.file_name().unwrap().to_str().unwrap();
            let label = label_in_name(name).filter(|label| label.tag.directory == directory);
            if let (Some(label), Some(seal)) = (label, seal_in_name(name)) {
                assert_eq!(seal.bytes, content.len() as u64, "{name}");
                let same = seal.checksum == crc32fast::hash(&content);
                assert_eq!(same, !self.edited.contains(&label.number), "{name}");
            }
        }
    }

    fn check(&self, disk: &SimDisk, recovery: &Recovery) {
        self.check_seals(disk);
        assert_eq!((recovery.missing, recovery.corrupt), (None, None));
        assert_eq!(recovery.contradiction, None);
        let segments = segments(disk);
        let numbers: Vec<_> = segments.keys().copied().collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
        for (position, bytes) in &self.acknowledged {
            let segment = segments
                .get(&position.segment)
                .unwrap_or_else(|| panic!("{position} was acknowledged: no such segment"));
            let end = usize::try_from(position.offset).unwrap() - Label::BYTES;
            let found = segment.get(end - bytes.len()..end);
            assert!(
                found == Some(bytes),
                "{position} was acknowledged: other bytes are there"
            );
        }
        let mut seen = HashSet::new();
        for found in imported(disk) {
            // Complete lines of a first write that was cut short may be present.
            let lines = lines_of(&found).filter(|line| line.ends_with(b"\n") && !line.contains(&0));
            for line in lines {
                assert!(!self.refused.contains(&line), "rejected, yet imported");
                assert!(seen.insert(line), "a line twice, one imported");
            }
        }
        for (number, segment) in &segments {
            assert!(
                segment.is_empty() || segment.ends_with(b"\n"),
                "whole lines"
            );
            for line in lines_of(segment).filter(|line| !line.contains(&0)) {
                assert!(!self.refused.contains(&line), "rejected, yet in {number}");
                assert!(seen.insert(line), "a line twice, in {number}");
            }
        }
        let acknowledged: HashSet<_> = self
            .acknowledged
            .values()
            .flat_map(|b| lines_of(b))
            .collect();
        for line in seen.difference(&acknowledged) {
            assert!(self.unknown.contains(line), "a line that was never sent");
        }
    }
}

fn lines_of(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    bytes
        .split_inclusive(|&byte| byte == b'\n')
        .map(<[u8]>::to_vec)
}

/// The bytes of every native segment by number, without the label at the start of each.
fn segments(disk: &SimDisk) -> BTreeMap<u64, Vec<u8>> {
    let mut segments = BTreeMap::new();
    let directory = active_label(disk).tag.directory;
    for path in disk.files() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let content = disk.content(&path).unwrap();
        let label = match label_in_name(name) {
            Some(label) if label.tag.directory == directory => label,
            None if name == ACTIVE_FILE => active_label(disk),
            _ => continue, // imported, or no segment
        };
        let twice = segments.insert(label.number, unlabelled(content, label));
        assert!(twice.is_none(), "two files claim number {}", label.number);
    }
    let active = disk.content(&Path::new(DIR).join(ACTIVE_FILE));
    assert!(active.is_some(), "an active segment after each open");
    segments
}

/// The bytes of a native segment, wherever its file is.
fn content_of(disk: &SimDisk, number: u64) -> Option<Vec<u8>> {
    let active = active_label(disk);
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        match label_in_name(name) {
            Some(label) => label.number == number && label.tag.directory == active.tag.directory,
            None => name == ACTIVE_FILE && number == active.number,
        }
    };
    let path = disk.files().into_iter().find(is_it)?;
    disk.content(&path)
}

/// The label of the active segment according to `directory.json`.
fn active_label(disk: &SimDisk) -> Label {
    let directory = Directory::read(&disk.copy(), Path::new(DIR)).unwrap();
    directory.expect("a directory has an id").label()
}

#[track_caller]
fn unlabelled(mut bytes: Vec<u8>, label: Label) -> Vec<u8> {
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
        assert!(bytes.is_empty(), "whole lines");
        return bytes;
    };
    assert_eq!(Label::of_line(&bytes[..end]), Some(label));
    bytes.drain(end - Label::BYTES..end);
    bytes
}

/// The bytes of imported files.
fn imported(disk: &SimDisk) -> Vec<Vec<u8>> {
    let directory = active_label(disk).tag.directory;
    let is_imported = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let other = |label: Label| label.tag.directory != directory;
        name.starts_with("events_found") || label_in_name(name).is_some_and(other)
    };
    disk.files()
        .into_iter()
        .filter(is_imported)
        .map(|path| disk.content(&path).unwrap())
        .collect()
}

fn new_disk() -> SimDisk {
    SimDisk::with_dir(Path::new(DIR))
}

impl Running {
    fn rotate(&self) -> Answer {
        let (done, answered) = done();
        self.journal.rotate(done);
        answered.recv_timeout(PATIENCE).expect("answered, once")
    }

    /// A power cut or a kill; returns the disk as the next start finds it.
    fn crash(self, seed: u64, end: End) -> SimDisk {
        let next = match end {
            End::PowerCut => self.disk.power_cut(seed),
            End::Kill => self.disk.kill(),
        };
        self.committer.stop();
        next
    }
}

/// Several runs of the journal, each with some work and an end.
fn walk(seed: u64) {
    let choices = &mut Choices::new(seed);
    let mut model = Model::default();
    let mut disk = new_disk();
    for life in 0..4 {
        // Some recoveries are interrupted, too.
        if choices.below(3) == 0 {
            disk.power_off_at(choices.below(25) as u64);
        }
        let Some(running) = model.open(&disk) else {
            disk = disk.power_cut(seed ^ life);
            continue;
        };
        if choices.below(2) == 0 {
            let off = disk.steps() + choices.below(40) as u64;
            disk.power_off_at(off);
        }
        for _ in 0..choices.below(8) {
            match choices.below(10) {
                0 | 1 => drop(running.rotate()),
                2 => model.apply(&running.disk, choices),
                3 => {
                    let calls = [
                        Call::Write,
                        Call::SyncData,
                        Call::SetLen,
                        Call::Create,
                        Call::Rename,
                        Call::SyncDir,
                    ];
                    let errno = [EIO, ENOSPC][choices.below(2)];
                    let call = calls[choices.below(calls.len())];
                    disk.fail(call, choices.below(3) as u64, errno);
                }
                _ => model.append(&running, 1 + choices.below(3), choices),
            }
        }
        disk = match choices.below(5) {
            0 => {
                running.committer.stop();
                disk.kill()
            }
            1 => running.crash(seed ^ life, End::Kill),
            _ => running.crash(seed ^ life, End::PowerCut),
        };
    }
    let running = model.open(&disk).expect("opens on a sound disk");
    model.append(&running, 1, choices);
    running.committer.stop();
    model
        .open(&disk.kill())
        .expect("and again")
        .committer
        .stop();
}

#[test]
fn acknowledged_batches_survive_any_crash() {
    // Fails if any sync is left out, any two steps of append, rotate or recover are exchanged, or
    // if an error is reported as a definite failure although its outcome is unknown, or the
    // reverse.
    for_seeds(CASES, walk);
}

/// What another program does to the directory between two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExternalChange {
    /// An older events.jsonl replaces the current one.
    PutBack,
    /// events.jsonl is deleted, or emptied.
    Delete,
    Empty,
    /// An older directory.json is restored, as in a copy made while segments changed.
    OldIdentity,
    /// directory.json is deleted.
    NoIdentity,
    /// The highest sealed file is moved away for one run.
    MoveAway,
    /// A sealed file is copied to the path of the active one.
    SealedAsActive,
    /// A byte of events.jsonl is changed.
    Edit,
}

const EXTERNAL_CHANGES: [ExternalChange; 8] = [
    ExternalChange::PutBack,
    ExternalChange::Delete,
    ExternalChange::Empty,
    ExternalChange::OldIdentity,
    ExternalChange::NoIdentity,
    ExternalChange::MoveAway,
    ExternalChange::SealedAsActive,
    ExternalChange::Edit,
];

/// Older versions of the two files, and the file that was moved away.
#[derive(Default)]
struct Kept {
    active: Vec<Vec<u8>>,
    identity: Vec<Vec<u8>>,
    away: Option<(PathBuf, Vec<u8>)>,
}

impl Kept {
    fn note(&mut self, disk: &SimDisk) {
        self.active.extend(disk.content(&at(ACTIVE_FILE)));
        self.identity.extend(disk.content(&at(DIRECTORY_FILE)));
    }

    /// Makes the change if the files that it needs exist.
    fn apply(&mut self, change: ExternalChange, disk: &SimDisk, choices: &mut Choices) {
        let (active, identity) = (at(ACTIVE_FILE), at(DIRECTORY_FILE));
        let sealed: Vec<PathBuf> = disk
            .files()
            .into_iter()
            .filter(|path| label_in_name(path.file_name().unwrap().to_str().unwrap()).is_some())
            .collect();
        let mut one_of = |of: &[Vec<u8>]| match of.len() {
            0 => None,
            count => Some(of[choices.below(count)].clone()),
        };
        match change {
            ExternalChange::PutBack => {
                if let Some(bytes) = one_of(&self.active) {
                    disk.put(&active, &bytes);
                }
            }
            ExternalChange::Delete => disk.take_away(&active),
            ExternalChange::Empty => disk.put(&active, b""),
            ExternalChange::OldIdentity => {
                if let Some(bytes) = one_of(&self.identity) {
                    disk.put(&identity, &bytes);
                }
            }
            ExternalChange::NoIdentity => disk.take_away(&identity),
            ExternalChange::MoveAway => {
                if let Some(path) = sealed.last() {
                    self.away = Some((path.clone(), disk.content(path).unwrap()));
                    disk.take_away(path);
                }
            }
            ExternalChange::SealedAsActive => {
                if let Some(path) = sealed.last() {
                    disk.put(&active, &disk.content(path).unwrap());
                }
            }
            ExternalChange::Edit => {
                let bytes = disk.content(&active).unwrap_or_default();
                let padding: Vec<usize> =
                    (0..bytes.len()).filter(|&at| bytes[at] == b'x').collect();
                if !padding.is_empty() {
                    let mut bytes = bytes;
                    bytes[padding[choices.below(padding.len())]] = b'y';
                    disk.put(&active, &bytes);
                }
            }
        }
    }
}

fn at(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Several runs, ended by a shutdown or a kill, with a change by another program between them. The
/// database has applied everything that was acknowledged, as it does with a processor that keeps
/// up, and can be read at most starts.
fn walk_with_changes(seed: u64) {
    let choices = &mut Choices::new(seed);
    let mut model = Model::default();
    let disk = new_disk();
    let mut kept = Kept::default();
    for _ in 0..4 {
        kept.note(&disk);
        let change = EXTERNAL_CHANGES[choices.below(EXTERNAL_CHANGES.len())];
        kept.apply(change, &disk, choices);
        let Running {
            journal, committer, ..
        } = model.open_after_change(&disk, change, choices.below(3) > 0);
        let running = Running {
            disk: disk.clone(),
            journal,
            committer,
        };
        if change == ExternalChange::NoIdentity {
            // The directory may have a new id now: older versions of directory.json belong to
            // another directory.
            kept.identity.clear();
        }
        for _ in 0..choices.below(6) {
            match choices.below(4) {
                0 => drop(running.rotate()),
                _ => model.append(&running, 1, choices),
            }
            kept.note(&disk);
        }
        let killed = choices.below(2) == 0;
        if killed {
            // The shutdown of the committer must not change the disk that the next run finds.
            let found = disk.copy();
            running.committer.stop();
            for path in disk.files() {
                disk.take_away(&path);
            }
            for (path, bytes) in found.contents() {
                disk.put(&path, &bytes);
            }
        } else {
            running.committer.stop();
        }
        if let Some((path, bytes)) = kept.away.take() {
            disk.put(&path, &bytes);
        }
        if let Some(&last) = model.acknowledged.keys().next_back() {
            model.apply_to(&disk, last);
        }
    }
}

impl Model {
    /// Opens the journal and asserts that every acknowledged batch is at its position or its
    /// segment is reported, that no line is in two native segments, and that no two of them have
    /// the same number.
    fn open_after_change(
        &mut self,
        disk: &SimDisk,
        change: ExternalChange,
        readable: bool,
    ) -> Running {
        let before = disk.copy();
        let health = Arc::new(Health::default());
        let (journal, committer, recovery) = Journal::open(
            Arc::new(disk.clone()) as Arc<dyn Disk>,
            Path::new(DIR),
            config(),
            &if readable {
                self.known_by_label(disk)
            } else {
                KnownSegments::default()
            },
            health,
        )
        .expect("opens");
        let segments = segments(disk);
        let notes: Vec<String> = disk
            .files()
            .iter()
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
            .collect();
        let reported = |number: u64| {
            notes.contains(&format!("missing-{number:06}"))
                || recovery.corrupt == Some(number)
                || recovery.contradiction.is_some()
        };
        let imported: HashSet<Vec<u8>> = imported(disk)
            .iter()
            .flat_map(|bytes| lines_of(bytes))
            .map(|line| line.trim_ascii_end().to_vec())
            .collect();
        let mut gone = Vec::new();
        for (position, bytes) in &self.acknowledged {
            let mut lines = lines_of(bytes);
            if lines.all(|line| imported.contains(line.trim_ascii_end())) {
                continue;
            }
            let end = usize::try_from(position.offset).unwrap() - Label::BYTES;
            let found = segments
                .get(&position.segment)
                .and_then(|segment| segment.get(end - bytes.len()..end));
            if found == Some(bytes) {
                continue;
            }
            // An older copy of the active file is the same segment. If the database has applied
            // more of it, the journal seals it and the segment is reported; if the database has
            // applied less, or other content, only the checksum of the processor can detect it, if
            // anything can.
            if change == ExternalChange::PutBack && position.segment == journal.tail().number {
                gone.push(*position);
                continue;
            }
            // The processor compares the applied bytes with the row before it applies more. The name
            // that the journal gives the segment later must not hide the edit.
            if change == ExternalChange::Edit && position.segment == journal.tail().number {
                gone.push(*position);
                continue;
            }
            let missing = !segments.contains_key(&position.segment);
            let named = journal.tail().number > position.segment;
            assert!(
                reported(position.segment) || (missing && named),
                "{change:?}: {position} is missing and not reported: {recovery:?} {:?} {:?}",
                before.files(),
                disk.files(),
            );
            gone.push(*position);
        }
        let directory = active_label(disk).tag.directory;
        if self
            .directory
            .replace(directory)
            .is_some_and(|before| before != directory)
        {
            // Neither directory.json nor the database contained the id of the directory: the
            // existing files are imported, and numbers start at 1 again.
            self.acknowledged.clear();
            self.applied = None;
            self.edited.clear();
        }
        self.note_edit(disk, journal.tail().number, readable);
        self.check_seals(disk);
        // What was reported once is not checked again.
        if change != ExternalChange::MoveAway {
            for position in &gone {
                self.acknowledged.remove(position);
            }
        }
        let mut seen = HashSet::new();
        for (number, segment) in &segments {
            for line in lines_of(segment) {
                assert!(seen.insert(line), "{change:?}: a line twice, in {number}");
            }
        }
        Running {
            disk: disk.clone(),
            journal,
            committer,
        }
    }

    /// Determines whether the applied bytes of the active segment are those that were applied. If the
    /// database could not be read at this start, the journal has no other checksum than the file's.
    fn note_edit(&mut self, disk: &SimDisk, active: u64, readable: bool) {
        self.edited.remove(&active);
        let applied = self.applied.filter(|applied| applied.segment == active);
        if let (Some(applied), Some(checksum), true) = (applied, self.checksum, readable) {
            let content = content_of(disk, active).unwrap();
            let end = usize::try_from(applied.offset).unwrap();
            if crc32fast::hash(&content[..end]) != checksum {
                self.edited.insert(active);
            }
        }
    }

    /// The rows of a database that has applied everything, with the tags of the files.
    fn known_by_label(&self, disk: &SimDisk) -> KnownSegments {
        let mut known = self.known();
        let files = disk.files();
        let names = files.iter().filter_map(|path| path.file_name()?.to_str());
        let labels: Vec<Label> = names.filter_map(label_in_name).collect();
        for row in &mut known.segments {
            let label = labels.iter().find(|label| label.number == row.number);
            row.tag = label.map(|label| label.tag);
        }
        known
    }
}

#[test]
fn any_change_by_another_program_is_exact_or_reported() {
    // Fails if the active segment is guessed after an older file was restored, the file was deleted
    // or emptied, directory.json is old or missing, or a file was moved away and restored; or if the
    // name of a sealed file hides that applied bytes were edited.
    for_seeds(CASES, walk_with_changes);
}

/// The sequence of every server: append, append, rotate, append, shutdown.
fn script(model: &mut Model, running: &Running, choices: &mut Choices) {
    model.append(running, 1, choices);
    model.append(running, 2, choices);
    drop(running.rotate());
    model.append(running, 1, choices);
    drop(running.rotate());
    model.append(running, 2, choices);
    model.apply(&running.disk, choices);
}

#[test]
fn a_crash_at_any_step_and_at_any_step_of_the_recovery_loses_nothing() {
    // Fails if a power cut at one boundary of append, rotate or recover loses data. All boundaries
    // are tried, not a sample.
    let disk = new_disk();
    let mut model = Model::default();
    let running = model.open(&disk).unwrap();
    script(&mut model, &running, &mut Choices::new(0));
    running.committer.stop();
    let steps = disk.steps();
    assert!(steps > 30, "{:?}", disk.log());
    for off in 0..=steps {
        for seed in 0..6 {
            for again in 0..30 {
                let choices = &mut Choices::new(seed);
                let disk = new_disk();
                disk.power_off_at(off);
                let mut model = Model::default();
                let found = match model.open(&disk) {
                    None => disk.power_cut(seed),
                    Some(running) => {
                        script(&mut model, &running, choices);
                        running.crash(seed, End::PowerCut)
                    }
                };
                found.power_off_at(again);
                let found = match model.open(&found) {
                    None => found.power_cut(seed + 1),
                    Some(running) => running.crash(seed + 1, End::PowerCut),
                };
                let running = model.open(&found).expect("opens on a sound disk");
                model.append(&running, 1, choices);
                running.committer.stop();
            }
        }
    }
}

#[test]
fn a_torn_tail_is_kept_in_quarantine() {
    // Fails if recovery deletes bytes: they were never acknowledged, but a client sent them.
    let disk = new_disk();
    let model = Model::default();
    model.open(&disk).unwrap().committer.stop();
    let file = disk.open(&Path::new(DIR).join(ACTIVE_FILE)).unwrap();
    file.write_all_at(b"half a li", 0).unwrap();
    let disk = disk.kill();
    model.open(&disk).unwrap().committer.stop();
    let kept: Vec<_> = disk
        .files()
        .into_iter()
        .filter_map(|path| disk.content(&path))
        .collect();
    assert!(kept.contains(&b"half a li".to_vec()), "{:?}", disk.files());
}
