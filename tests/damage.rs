//! The damage matrix: what happens for each kind of damage to each kind of file.
//!
//! [`MATRIX`] has one row for each combination, with a sentence that documents the result. For each
//! row, a data directory as a server leaves it is damaged at many places, then recovered as
//! `tallyline process` does and checked as `tallyline verify` does, both in this process. Either
//! the damage is reported (an error, a finding, an entry in quarantine), or the totals are right; a
//! total is never silently wrong.
//!
//! `TALLYLINE_TEST_EVERY_BYTE=1` truncates at every byte of a file's last 4 KiB instead of at some.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use tallyline::data_dir::disk::{Disk, Lock, RealDisk};
use tallyline::data_dir::read_label;
use tallyline::data_dir::segment::sealed_file_name;
use tallyline::health::Health;
use tallyline::journal::{Journal, JournalConfig, KnownSegment, KnownSegments};
use tallyline::processor::{ProcessorConfig, run_once};
use tallyline::store::{SegmentRow, SegmentState, read_segments};
use tallyline::verify::{Finding, Target, verify};

use super::harness::recount::recount;
use super::harness::{
    Scratch, Server, Totals, append_to_active, database, files_below, scratch_dir,
};
use super::sim_disk::Choices;

const PAGE: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Active,
    Waiting,
    Archived,
    Database,
    Wal,
    Lock,
    Note,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    Truncated,
    Flipped,
    Zeroed,
    Deleted,
    Duplicated,
    Renamed,
    /// Replaced by a symlink to itself, which even root cannot open.
    Unreadable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// The totals are those without the damage, and nothing is reported that would not be reported
    /// without it.
    Right,
    /// The damage is reported, with this text.
    Reported(&'static str),
    /// Either of the two.
    RightOrReported,
    /// Reported, or the totals are those of the files as they are now: bytes that were not applied
    /// yet are protected only by the lines themselves.
    AsFilesOrReported,
}

use Damage::{Deleted, Duplicated, Flipped, Renamed, Truncated, Unreadable, Zeroed};
use Expect::{AsFilesOrReported, Reported, Right, RightOrReported};
use Kind::{Active, Archived, Database, Note, Waiting, Wal};

/// File, damage, documented result, expected result.
#[rustfmt::skip]
const MATRIX: [(Kind, Damage, &str, Expect); 49] = [
    (Active, Truncated, "a missing applied part is reported; a torn line is kept in quarantine; an unapplied end that is cut at a line end looks like one never written", AsFilesOrReported),
    (Active, Flipped, "in the applied part: reported, and nothing is applied behind it; after it: the line counts as it now reads, or is rejected", AsFilesOrReported),
    (Active, Zeroed, "in the applied part: reported; after it: rejected lines", AsFilesOrReported),
    (Active, Deleted, "the segment is marked as lost in quarantine and reported; ingestion continues under the next number", Reported("segment 3")),
    (Active, Duplicated, "a copy without the name of a segment is ignored", Right),
    (Active, Renamed, "as deleted: a file without the name of a segment is ignored", Reported("segment 3")),
    (Active, Unreadable, "an unreadable file is reported, and the start fails", Reported("events.jsonl")),
    (Waiting, Truncated, "as for the active file, but no tail is truncated: a last line without a newline counts", AsFilesOrReported),
    (Waiting, Flipped, "in the applied part: reported, and nothing more is applied; after it: counts as it now reads, or is rejected", AsFilesOrReported),
    (Waiting, Zeroed, "in the applied part: reported; after it: rejected lines", AsFilesOrReported),
    (Waiting, Deleted, "reported as missing, by number; as it is the highest one, the active file is compared with it and found to differ", Reported("segment 3")),
    (Waiting, Duplicated, "one of the two files with that number is counted, once; the other is not moved", Right),
    (Waiting, Renamed, "only the number in the name matters, the time does not", Right),
    (Waiting, Unreadable, "reported; nothing of it is applied until it can be read", Reported("000003")),
    (Archived, Truncated, "totals are unchanged; verify reports it", Reported("000001")),
    (Archived, Flipped, "totals are unchanged; verify reports it", Reported("000001")),
    (Archived, Zeroed, "totals are unchanged; verify reports it", Reported("000001")),
    (Archived, Deleted, "totals are unchanged; verify reports it", Reported("000001")),
    (Archived, Duplicated, "a copy of the same number is never counted", Right),
    (Archived, Renamed, "only the number in the name matters, the time does not", Right),
    (Archived, Unreadable, "totals are unchanged; verify reports it", Reported("000001")),
    (Database, Truncated, "rejected as malformed, or rebuilt from the files", RightOrReported),
    (Database, Flipped, "rejected as malformed, found by verify, or in unused bytes", RightOrReported),
    (Database, Zeroed, "rejected as malformed, found by verify, or in an unused page", RightOrReported),
    (Database, Deleted, "rebuilt from the files: the same totals", Right),
    (Database, Duplicated, "a copy is ignored", Right),
    (Database, Renamed, "as deleted: rebuilt from the files", Right),
    (Database, Unreadable, "rejected and reported", Reported("revenue.db")),
    (Wal, Truncated, "complete commits at its end are lost; the files are applied again from there", Right),
    (Wal, Flipped, "it ends at the first wrong checksum; the files are applied again from there", Right),
    (Wal, Zeroed, "it ends at the first wrong checksum; the files are applied again from there", Right),
    (Wal, Deleted, "the database is as of its last checkpoint; the files are applied again from there", Right),
    (Wal, Duplicated, "a copy is ignored", Right),
    (Wal, Renamed, "as deleted", Right),
    (Wal, Unreadable, "rejected and reported", Reported("revenue.db")),
    (Kind::Lock, Truncated, "its content is only informational", Right),
    (Kind::Lock, Flipped, "its content is only informational", Right),
    (Kind::Lock, Zeroed, "its content is only informational", Right),
    (Kind::Lock, Deleted, "created again", Right),
    (Kind::Lock, Duplicated, "a copy is ignored", Right),
    (Kind::Lock, Renamed, "created again", Right),
    (Kind::Lock, Unreadable, "the start fails without the lock, which is reported", Reported("process.lock")),
    (Note, Truncated, "its name alone marks the segment as lost", Right),
    (Note, Flipped, "its name alone marks the segment as lost", Right),
    (Note, Zeroed, "its name alone marks the segment as lost", Right),
    (Note, Deleted, "the number and row of the segment still show that it is missing", Right),
    (Note, Duplicated, "a copy is ignored", Right),
    (Note, Renamed, "as deleted", Right),
    (Note, Unreadable, "its name alone marks the segment as lost", Right),
];

/// Lines for user `user`: with and without ids, with fractions, and one that subtracts.
fn lines(user: &str, count: usize) -> String {
    (0..count)
        .map(|n| match n % 3 {
            0 => format!("{{\"userId\":\"{user}\",\"name\":\"add_revenue\",\"value\":{n}.25}}\n"),
            1 => format!("{{\"userId\":\"{user}\",\"name\":\"subtract_revenue\",\"value\":{n}}}\n"),
            _ => format!("{{\"userId\":\"user9\",\"name\":\"add_revenue\",\"value\":{n},\"id\":\"{user}-{n}\"}}\n"),
        })
        .collect()
}

/// Data directories as a server leaves them.
struct Left {
    _scratch: Scratch,
    /// After kill -9: segments 1 and 2 archived, 3 active and applied, with a -wal.
    killed: PathBuf,
    /// After SIGTERM: three segments archived, one database file.
    stopped: PathBuf,
}

static LEFT: LazyLock<Left> = LazyLock::new(|| {
    let scratch = Scratch::new();
    let [killed, stopped] = ["killed", "stopped"].map(|name| {
        let dir = scratch.path().join(name);
        let server = Server::with(&dir, &["--flush-interval", "10ms"]);
        for user in ["user1", "user2"] {
            server.accept(lines(user, 100));
            server.flush();
        }
        let position = server.accept(lines("user3", 60));
        let shown = server.get(&format!("/userEvents/user3?after={position}&wait=50s"));
        shown.expect(200);
        if name == "killed" {
            server.kill();
        } else {
            server.stop().expect(0);
        }
        dir
    });
    assert!(killed.join("revenue.db-wal").exists(), "kill -9 leaves it");
    Left {
        _scratch: scratch,
        killed,
        stopped,
    }
});

fn copy(from: &Path, to: &Path) {
    for path in files_below(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&path, &target).unwrap();
    }
}

/// Prepares in `dir` what the rows of this kind start from; returns the file to damage.
fn set_up(kind: Kind, dir: &Path) -> PathBuf {
    let from = if kind == Database {
        &LEFT.stopped
    } else {
        &LEFT.killed
    };
    copy(from, dir);
    let active = dir.join("events.jsonl");
    match kind {
        Note => {
            fs::remove_file(&active).unwrap();
            let (_, committer, recovery) = open_journal(dir).unwrap();
            assert_eq!(recovery.missing, Some(3));
            committer.stop();
        }
        Waiting => {
            append_to_active(dir, &lines("user4", 20));
            let label = read_label(&*RealDisk.open_read(&active).unwrap())
                .unwrap()
                .unwrap();
            assert_eq!(label.number, 3);
            fs::rename(
                &active,
                dir.join(sealed_file_name(label, SystemTime::now())),
            )
            .unwrap();
        }
        _ => {}
    }
    // Acknowledged, not applied yet.
    append_to_active(dir, &lines("user5", 40));
    let sealed = |dir: &Path| {
        let mut found = files_below(dir).into_iter();
        found
            .find(|path| path.to_str().unwrap().contains("Z-00000"))
            .unwrap()
    };
    match kind {
        Active => active,
        Waiting => dir.join(
            fs::read_dir(dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .find(|name| name.contains("Z-000003-"))
                .unwrap(),
        ),
        Archived => sealed(&dir.join("applied")),
        Database => dir.join("revenue.db"),
        Wal => dir.join("revenue.db-wal"),
        Kind::Lock => dir.join("process.lock"),
        Note => dir.join("quarantine/missing-000003"),
    }
}

type Opened = (
    Journal,
    tallyline::journal::Committer,
    tallyline::journal::Recovery,
);

fn open_journal(dir: &Path) -> anyhow::Result<Opened> {
    let known = |row: SegmentRow| {
        Some(KnownSegment {
            number: row.id.number()?,
            tag: row.tag,
            applied_bytes: row.applied_bytes,
            checksum: Some(row.checksum),
            sealed: row.state != SegmentState::Active,
        })
    };
    // As in `serve`, the journal opens even if the database cannot be read.
    let rows = read_segments(&dir.join("revenue.db")).unwrap_or_default();
    let known = KnownSegments {
        segments: rows.into_iter().filter_map(known).collect(),
        ..KnownSegments::default()
    };
    let health = Arc::new(Health::default());
    Ok(Journal::open(
        Arc::new(RealDisk),
        dir,
        JournalConfig::default(),
        &known,
        health,
    )?)
}

/// Seals, applies and verifies, as `process` and `verify` do; returns what was reported.
fn bring_up(dir: &Path) -> BTreeSet<String> {
    let mut reports = Vec::new();
    if let Err(error) = apply(dir, &mut reports) {
        reports.push(format!("{error:#}"));
    }
    let mut target = Target::new(dir);
    target.threads = 1;
    let mut found = Vec::new();
    let mut on_finding = |finding: &Finding| match finding {
        Finding::Mismatch(text) | Finding::Inconclusive(text) => found.push(text.clone()),
        Finding::Note(_) => {}
    };
    match verify(&target, &RealDisk, &mut on_finding, &mut |_, _| {}) {
        Ok(Some(verdict)) => assert_eq!(verdict.agrees(), found.is_empty(), "{found:?}"),
        Ok(None) => reports.push("there is no database".to_owned()),
        Err(error) => reports.push(format!("{:#}", anyhow::Error::from(error))),
    }
    reports.extend(found);
    let here = dir.to_str().unwrap();
    reports
        .into_iter()
        .map(|text| text.replace(here, ""))
        .collect()
}

fn apply(dir: &Path, reports: &mut Vec<String>) -> anyhow::Result<()> {
    let _process = Lock::take(&dir.join("process.lock"))?;
    let _serve = Lock::take(&dir.join("serve.lock"))?;
    let (journal, committer, recovery) = open_journal(dir)?;
    if let Some((bytes, kept)) = recovery.torn {
        reports.push(format!(
            "{bytes} bytes of a torn write are in {}",
            kept.display()
        ));
    }
    for number in [recovery.missing, recovery.corrupt].into_iter().flatten() {
        reports.push(format!("segment {number} is lost or corrupt"));
    }
    committer.stop();
    drop(journal);
    let mut config = ProcessorConfig::new(dir);
    config.threads = 1;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let summary = run_once(&config, &disk, &[], &mut |_| {})?;
    for refused in summary.refused {
        reports.push(format!("{}: {}", refused.path.display(), refused.reason));
    }
    reports.extend(
        summary
            .missing
            .iter()
            .map(|number| format!("segment {number} is missing")),
    );
    Ok(())
}

/// Offsets at which a file of this length is damaged.
fn places(kind: Kind, damage: Damage, length: u64) -> Vec<u64> {
    let mut choices = Choices::new(length);
    let samples = if kind == Database { 40 } else { 12 };
    let mut some = |from: u64, to: u64| -> Vec<u64> {
        let room = usize::try_from(to - from).unwrap();
        (0..samples)
            .map(|_| from + choices.below(room) as u64)
            .collect()
    };
    let tail = length.saturating_sub(PAGE);
    match damage {
        Truncated if std::env::var_os("TALLYLINE_TEST_EVERY_BYTE").is_some() => {
            (tail..length).collect()
        }
        Truncated => [some(tail, length), vec![0, tail, length - 1]].concat(),
        Flipped => [some(0, length), vec![0, length - 1]].concat(),
        Zeroed => {
            let pages = length.div_ceil(PAGE);
            let step = usize::try_from(pages.div_ceil(16)).unwrap();
            (0..pages).step_by(step).map(|page| page * PAGE).collect()
        }
        _ => vec![0],
    }
}

fn inflict(damage: Damage, file: &Path, place: u64) {
    let name = file.file_name().unwrap().to_str().unwrap();
    // The new name has the same number if the file is a segment, and no meaning otherwise.
    let other = match name.rsplit_once("Z-") {
        Some((_, number)) => format!("events-2001-01-01T00-00-00.000Z-{number}"),
        None => format!("{name}.mine"),
    };
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(file)
            .unwrap()
    };
    match damage {
        Truncated => open().set_len(place).unwrap(),
        Flipped => {
            let mut byte = [0];
            open().read_exact_at(&mut byte, place).unwrap();
            open()
                .write_all_at(&[byte[0] ^ 1 << (place % 8)], place)
                .unwrap();
        }
        Zeroed => {
            let length = fs::metadata(file).unwrap().len();
            let zeros = vec![0; usize::try_from(PAGE.min(length - place)).unwrap()];
            open().write_all_at(&zeros, place).unwrap();
        }
        Deleted => fs::remove_file(file).unwrap(),
        Duplicated => drop(fs::copy(file, file.with_file_name(other)).unwrap()),
        Renamed => fs::rename(file, file.with_file_name(other)).unwrap(),
        Unreadable => {
            fs::remove_file(file).unwrap();
            symlink(name, file).unwrap();
        }
    }
}

/// Checks every row of the matrix for this kind.
fn check(kind: Kind) {
    let sound = scratch_dir();
    set_up(kind, sound.path());
    let usual = bring_up(sound.path());
    let right = database(sound.path());
    assert!(kind == Note || usual.is_empty(), "{usual:?}");
    assert!(kind == Note || right == recount(sound.path()).users);
    let mut wrong = Vec::new();
    for (_, damage, sentence, expect) in MATRIX.iter().filter(|row| row.0 == kind) {
        let length = fs::metadata(set_up(kind, scratch_dir().path())).map_or(0, |file| file.len());
        for place in places(kind, *damage, length) {
            let dir = scratch_dir();
            let file = set_up(kind, dir.path());
            inflict(*damage, &file, place);
            let reported: BTreeSet<_> = bring_up(dir.path()).difference(&usual).cloned().collect();
            if let Err(why) = judge(*expect, dir.path(), &reported, &right) {
                wrong.push(format!("{kind:?} {damage:?} at {place} of {length}: {why}\n  reported: {reported:?}\n  documented: {sentence}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} cases:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn judge(
    expect: Expect,
    dir: &Path,
    reported: &BTreeSet<String>,
    right: &Totals,
) -> Result<(), String> {
    match expect {
        Reported(name) if reported.iter().any(|text| text.contains(name)) => Ok(()),
        Reported(name) => Err(format!("{name} is not reported")),
        Right if !reported.is_empty() => Err("a false alarm".to_owned()),
        RightOrReported | AsFilesOrReported if !reported.is_empty() => Ok(()),
        Right | RightOrReported if database(dir) == *right => Ok(()),
        AsFilesOrReported if database(dir) == recount(dir).users => Ok(()),
        _ => Err("totals are silently wrong".to_owned()),
    }
}

#[test]
fn the_matrix_has_a_row_for_each_kind_and_damage() {
    // Fails if a combination has no row because another one has two.
    let rows: BTreeSet<_> = MATRIX.iter().map(|row| (row.0, row.1)).collect();
    assert_eq!(rows.len(), 7 * 7);
}

// Each of these fails if damage to that kind of file makes a total silently wrong, or stops more
// than its sentence documents.

#[test]
fn a_damaged_active_file() {
    check(Active);
}

#[test]
fn a_damaged_waiting_file() {
    check(Waiting);
}

#[test]
fn a_damaged_archived_file() {
    check(Archived);
}

#[test]
fn a_damaged_database() {
    check(Database);
}

#[test]
fn a_damaged_write_ahead_log() {
    check(Wal);
}

#[test]
fn a_damaged_lock_file() {
    check(Kind::Lock);
}

#[test]
fn a_damaged_note_in_quarantine() {
    check(Note);
}
