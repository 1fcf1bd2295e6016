//! Sums that do not fit into memory: spilled runs give the same result, whatever happens to their files.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::scans::{any_line, model};
use super::*;
use crate::aggregate::Sums;
use crate::aggregate::spill::SpillDir;
use crate::data_dir::disk::{DiskLayer, FileLayer, MeteredDisk};

fn is_spill(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "spill")
}

pub(super) fn spills(dir: &TempDir) -> Vec<String> {
    let mut names = names(dir.path());
    names.retain(|name| is_spill(Path::new(name)));
    names
}

/// Any rejected line, as (segment, offset, code, reason, line).
type RejectedRow = (String, u64, String, String, String);

/// Everything that must not depend on the memory: users, rejected lines, and the sums of the segments.
#[derive(Debug, PartialEq)]
pub(super) struct Result {
    pub(super) totals: Vec<(String, i64, i64)>,
    rejected: Vec<RejectedRow>,
    segments: Vec<(String, i64, i64, i64, i64, i64)>,
}

impl Result {
    pub(super) fn of(dir: &TempDir) -> Self {
        let db = Connection::open(dir.path().join(DATABASE_FILE)).expect("it opens");
        let mut select = db
            .prepare("SELECT user_id, revenue_micros, events FROM user_total ORDER BY user_id")
            .expect("a table");
        let totals = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        let totals = totals.expect("rows").map(|row| row.expect("a row"));
        let mut select = db
            .prepare("SELECT segment, offset, code, reason, line FROM rejected_line ORDER BY 1, 2")
            .expect("a table");
        let rejected = select.query_map([], |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
            ))
        });
        let rejected = rejected.expect("rows").map(|row| row.expect("a row"));
        let mut select = db
            .prepare("SELECT name, applied_bytes, checksum, events, rejected, net_check FROM segment ORDER BY 1")
            .expect("a table");
        let segments = select.query_map([], |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
                row.get(5)?,
            ))
        });
        let segments = segments.expect("rows").map(|row| row.expect("a row"));
        Self {
            totals: totals.collect(),
            rejected: rejected.collect(),
            segments: segments.collect(),
        }
    }
}

/// Applies the text with `memory_bytes`; the result, the summary, and the number of commits.
fn apply_with(
    memory_bytes: usize,
    disk: &Arc<dyn Disk>,
    dir: &TempDir,
    text: &str,
) -> (Result, BatchSummary, usize) {
    write(dir, "events_a.jsonl", text);
    let mut config = ProcessorConfig::new(dir.path());
    config.memory_bytes = memory_bytes;
    config.threads = 2;
    let mut commits = 0;
    let summary = run_once(&config, disk, &[], &mut |_| commits += 1).expect("it runs");
    (Result::of(dir), summary, commits)
}

/// Many users, each of whom occurs in many places, some with long ids that have a common prefix.
pub(super) fn many_users(lines: u32) -> String {
    let mut text = String::new();
    for number in 0..lines {
        let user = number.wrapping_mul(7919) % 3001;
        let amount = i64::from(number % 17) - 5;
        text += &match user % 10 {
            0 => line(
                &format!("https://example.com/users/of/the/shop/{user}"),
                amount,
            ),
            1 => line(&format!("twenty-four-characters-{user}"), amount),
            _ => line(&format!("user{user}"), amount),
        };
    }
    text
}

/// As [`many_users`], with the sums computed in the simplest way.
pub(super) fn expected(text: &str) -> Vec<(String, i64, i64)> {
    let (users, _, _) = model(text.as_bytes());
    let signed = |micros: u128| i64::try_from(micros).expect("it fits");
    users
        .into_iter()
        .map(|(user, (added, subtracted, events))| {
            let events = i64::try_from(events).expect("it fits");
            (user, signed(added) - signed(subtracted), events)
        })
        .collect()
}

#[test]
fn each_user_of_a_range_is_written_once_and_in_order() {
    // Fails if a range ends when the memory is full of users.
    let dir = tempfile::tempdir().expect("a directory");
    let text = many_users(20_000);
    let (result, summary, commits) = apply_with(1, &disk(), &dir, &text);
    assert_eq!(commits, 1, "one range");
    assert_eq!(summary.counts.events, 20_000);
    assert_eq!(result.totals, expected(&text));
    assert_eq!(spills(&dir), [""; 0]);
}

fn any_amount() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => -1000i64..1000,
        1 => Just(1_000_000_000_000),
        1 => Just(-1_000_000_000_000),
    ]
}

/// A line of one of several kinds; amounts so large that totals overflow.
pub(super) fn mixed_line() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => (0u32..200, any_amount()).prop_map(|(user, amount)| line(&format!("u{user}"), amount)),
        2 => (0u32..3, Just(1_000_000_000_000)).prop_map(|(user, amount)| line(&format!("rich{user}"), amount)),
        2 => (0u32..50, any_amount()).prop_map(|(user, amount)| {
            line(&format!("a-long-id-with-a-common-prefix-{user}"), amount)
        }),
        1 => "[ -~]{0,40}".prop_map(|junk| junk + "\n"),
        1 => (0u32..100, 0i64..50).prop_map(|(id, value)| format!(
            "{{\"userId\":\"u{}\",\"name\":\"add_revenue\",\"value\":{value},\"id\":\"e{id}\"}}\n", id % 20
        )),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Little memory changes neither totals nor rejected lines, nor which lines overflow a total.
    #[test]
    fn the_memory_does_not_change_the_result(
        lines in prop::collection::vec(mixed_line(), 1..800),
        repeat in 1usize..4,
    ) {
        let text = lines.concat().repeat(repeat);
        let [large, small] = [384 << 20, 1].map(|memory| {
            let dir = tempfile::tempdir().expect("a directory");
            let (result, summary, _) = apply_with(memory, &disk(), &dir, &text);
            assert_eq!(spills(&dir), [""; 0]);
            (result, summary.counts)
        });
        prop_assert_eq!(large, small);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// The sums of a scan that spills after any number of bytes are those of one in memory.
    #[test]
    fn a_scan_that_spills_gives_the_same_sums(
        lines in prop::collection::vec(any_line(), 0..120),
        chunk_bytes in 1u64..400,
        threads in 1usize..4,
        range_bytes in 0usize..20_000,
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        let text = lines.concat().into_bytes();
        let file = tempfile::tempfile().expect("a file");
        DiskFile::write_all_at(&file, &text, 0).expect("it is written");
        let file: Arc<dyn DiskFile> = Arc::new(file);
        let budget = MemoryBudget { threads, cache_bytes: 0, range_bytes };
        let mut pool = Pool::new(&budget)
            .with_chunk_bytes(chunk_bytes)
            .spilling_to(SpillDir::new(disk(), dir.path()));
        let mut sums = BTreeMap::<String, Sums>::new();
        let (mut at, mut counted) = (0, 0);
        while at < text.len() as u64 {
            let aggregate = pool.scan(&file, at, text.len() as u64).expect("it scans");
            let users = aggregate.users.to_vec().expect("they are read");
            prop_assert!(users.is_sorted_by(|a, b| a.0 < b.0), "each once, in order");
            let again = aggregate.users.to_vec().expect("they are read again");
            prop_assert_eq!(&users, &again);
            for (user, more) in users {
                sums.entry(user).or_default().add(&more);
            }
            counted += aggregate.partial.lines;
            at = aggregate.to;
        }
        prop_assert_eq!(names(dir.path()), [""; 0], "every file is removed");
        let (users, lines, _) = model(&text);
        let sums: BTreeMap<_, _> = sums
            .into_iter()
            .map(|(user, sums)| (user, (sums.added(), sums.subtracted(), sums.events())))
            .collect();
        prop_assert_eq!((sums, counted), (users, lines));
    }
}

/// Calls of the temporary files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Create,
    Write,
    Read,
    Remove,
}

/// The real disk; `before` is called before each call on a temporary file, and may make it fail.
struct Watched {
    before: Arc<dyn Fn(Call) -> io::Result<()> + Send + Sync>,
}

struct WatchedFile {
    file: Arc<dyn DiskFile>,
    before: Arc<dyn Fn(Call) -> io::Result<()> + Send + Sync>,
}

impl DiskLayer for Watched {
    fn below(&self) -> &dyn Disk {
        &RealDisk
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if !is_spill(path) {
            return RealDisk.create_new(path);
        }
        (self.before)(Call::Create)?;
        Ok(Arc::new(WatchedFile {
            file: RealDisk.create_new(path)?,
            before: Arc::clone(&self.before),
        }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if is_spill(path) {
            (self.before)(Call::Remove)?;
        }
        RealDisk.remove(path)
    }
}

impl FileLayer for WatchedFile {
    fn below(&self) -> &dyn DiskFile {
        &*self.file
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        (self.before)(Call::Write)?;
        self.file.write_all_at(bytes, offset)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (self.before)(Call::Read)?;
        self.file.read_at(buf, offset)
    }
}

fn watched(before: impl Fn(Call) -> io::Result<()> + Send + Sync + 'static) -> Arc<dyn Disk> {
    Arc::new(Watched {
        before: Arc::new(before),
    })
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("created");
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            copy_dir(&from, &to);
        } else {
            fs::copy(from, to).expect("copied");
        }
    }
}

#[test]
fn after_a_crash_at_any_call_on_a_temporary_file_each_line_counts_once() {
    // The directory is copied before each call, as a kill at this moment would leave it: while runs are
    // written and merged, and while they are read within the transaction.
    let dir = tempfile::tempdir().expect("a directory");
    let images = tempfile::tempdir().expect("a directory");
    let text = many_users(2000);
    // The sums of three files are committed together; one file is small.
    write(&dir, "events_0.jsonl", &many_users(1500));
    write(&dir, "events_1.jsonl", &many_users(20));
    let calls = Arc::new(Mutex::new(Vec::new()));
    let (data, into, noted) = (
        dir.path().to_owned(),
        images.path().to_owned(),
        Arc::clone(&calls),
    );
    let disk = watched(move |call| {
        let mut calls = noted.lock().expect("no panic");
        // Every kind of call often enough, but not all reads.
        let of_kind = calls.iter().filter(|other| **other == call).count();
        if of_kind < 4 || of_kind % 37 == 0 {
            copy_dir(&data, &into.join(calls.len().to_string()));
        }
        calls.push(call);
        Ok(())
    });
    let (result, _, commits) = apply_with(1, &disk, &dir, &text);
    assert_eq!(commits, 1, "one transaction");
    let kinds = [Call::Create, Call::Write, Call::Read, Call::Remove];
    let calls = calls.lock().expect("no panic");
    assert!(kinds.iter().all(|kind| calls.contains(kind)), "{calls:?}");
    let mut left_over = BTreeSet::new();
    for image in names(images.path()) {
        let path = images.path().join(&image);
        left_over.extend(
            names(&path)
                .into_iter()
                .filter(|name| is_spill(Path::new(name))),
        );
        let mut config = ProcessorConfig::new(&path);
        config.memory_bytes = 1;
        run_once(&config, &super::disk(), &[], &mut |_| {}).expect("it recovers");
        let again = tempfile::tempdir().expect("a directory");
        copy_dir(&path, again.path());
        assert_eq!(Result::of(&again), result, "image {image}");
        assert_eq!(spills(&again), [""; 0], "image {image}");
    }
    assert!(
        left_over.len() > 3,
        "images with temporary files: {left_over:?}"
    );
}

#[test]
fn a_full_disk_while_spilling_loses_nothing() {
    // Fails if sums are lost that could not be written, or counted twice.
    let text = many_users(8000);
    for room in [0, 1, 5, 17, 40] {
        let dir = tempfile::tempdir().expect("a directory");
        let written = AtomicUsize::new(0);
        let disk = watched(move |call| {
            let is_full =
                call == Call::Write && written.fetch_add(1, Ordering::Relaxed) % (room + 1) == room;
            let full = || io::Error::from(io::ErrorKind::StorageFull);
            if is_full { Err(full()) } else { Ok(()) }
        });
        let (result, _, commits) = apply_with(1, &disk, &dir, &text);
        assert_eq!(result.totals, expected(&text), "{room}");
        assert!(commits > 1, "the range ended: {commits}");
        assert_eq!(spills(&dir), [""; 0]);
    }
}

#[test]
fn a_run_that_cannot_be_read_applies_nothing_and_names_the_file() {
    // Fails if a damaged run is a wrong total, or the range is committed without it.
    let text = many_users(8000);
    for damage in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        write(&dir, "events_a.jsonl", &text);
        let mut config = ProcessorConfig::new(dir.path());
        config.memory_bytes = 1;
        let (data, reads) = (dir.path().to_owned(), AtomicUsize::new(0));
        let disk = watched(move |call| {
            if call != Call::Read || reads.fetch_add(1, Ordering::Relaxed) < 20 {
                return Ok(());
            }
            if !damage {
                return Err(io::Error::other("unreadable"));
            }
            for name in names(&data).iter().filter(|name| is_spill(Path::new(name))) {
                let mut bytes = fs::read(data.join(name))?;
                // The last user's subtracted amount: all else is still right.
                if let [.., subtracted, _events] = &mut bytes[..] {
                    *subtracted ^= 1;
                }
                fs::write(data.join(name), bytes)?;
            }
            Ok(())
        });
        let error = run_once(&config, &disk, &[], &mut |_| {}).expect_err("a run is unreadable");
        let error = describe(&error);
        assert!(
            error.contains("totals-") && error.contains(".spill"),
            "{error}"
        );
        assert_eq!(totals(&dir), [], "nothing is applied");
        assert_eq!(spills(&dir), [""; 0]);
        run(&dir, &[]);
        assert_eq!(Result::of(&dir).totals, expected(&text));
    }
}

#[test]
fn temporary_files_count_against_max_disk_until_they_are_removed() {
    // Fails if runs are written past the disk that the server counts its files with.
    let dir = tempfile::tempdir().expect("a directory");
    let text = many_users(4000);
    let path = write(&dir, "events_a.jsonl", &text);
    let metered = MeteredDisk::new(dir.path(), Vec::new());
    metered.walk().expect("it is counted");
    let disk: Arc<dyn Disk> = Arc::new(metered);
    let used = || disk.used_bytes(dir.path()).expect("it is known");
    let before = used();
    let budget = MemoryBudget {
        threads: 2,
        cache_bytes: 0,
        range_bytes: 0,
    };
    let mut pool = Pool::new(&budget)
        .with_chunk_bytes(4096)
        .spilling_to(SpillDir::new(Arc::clone(&disk), dir.path()));
    let file = disk.open_read(&path).expect("it opens");
    let aggregate = pool.scan(&file, 0, text.len() as u64).expect("it scans");
    let on_disk: u64 = spills(&dir)
        .iter()
        .map(|name| {
            fs::metadata(dir.path().join(name))
                .expect("it is there")
                .len()
        })
        .sum();
    assert!(on_disk > 0);
    assert_eq!(used() - before, on_disk);
    drop(aggregate);
    assert_eq!((used(), spills(&dir).len()), (before, 0));
}

#[test]
fn temporary_files_of_a_crash_are_removed_at_the_start_of_a_server_and_of_a_run() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in [
        "totals-0.spill",
        "totals-17.spill",
        "totals-x.spill",
        "totals-1.spill.txt",
    ] {
        write(&dir, name, "left over");
    }
    let running = Running::start(&dir);
    assert_eq!(spills(&dir), ["totals-x.spill"], "only its own files");
    running.stop();
    assert!(dir.path().join("totals-1.spill.txt").exists());
    write(&dir, "totals-3.spill", "left over");
    run(&dir, &[]);
    assert_eq!(spills(&dir), ["totals-x.spill"]);
}

#[test]
fn an_overflow_replay_of_many_lines_divides_the_range() {
    // Fails if the memory for the lines of a replay is unbounded.
    let dir = tempfile::tempdir().expect("a directory");
    let rich = line("rich", 1_000_000_000_000);
    let poor = line("rich", -1_000_000_000_000);
    // 9 fit, 3 do not; then as many again are subtracted as were added.
    let text = (rich.repeat(12) + &poor.repeat(9)).repeat(5000);
    let (result, summary, commits) = apply_with(1, &disk(), &dir, &text);
    assert!(commits > 1, "{commits}");
    assert_eq!(
        (summary.counts.events, summary.counts.rejected),
        (5000 * 18, 5000 * 3)
    );
    assert_eq!(result.totals, [("rich".to_owned(), 0, 90_000)]);
}
