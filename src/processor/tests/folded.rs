//! Large files that wait together: their sums are added up and committed in one transaction. The result is that of
//! applying each file by itself.

use super::spilled::{Result, expected, many_users, mixed_line, spills};
use super::*;
use crate::data_dir::disk::{DiskLayer, FileLayer};
use crate::store::Counts;

/// So little memory that files from 4 KiB on are large, and sums are written to temporary files.
const LITTLE: usize = 1;

fn config(dir: &TempDir, memory_bytes: usize) -> ProcessorConfig {
    let mut config = ProcessorConfig::new(dir.path());
    config.memory_bytes = memory_bytes;
    config.threads = 2;
    config
}

/// Applies these files, all in one run or each in a run of its own; the result, the counts and the number of
/// commits.
fn apply(files: &[String], together: bool, memory_bytes: usize) -> (Result, Counts, usize) {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(&dir, memory_bytes);
    let mut counts = Counts::default();
    let mut commits = 0;
    for (number, text) in files.iter().enumerate() {
        write(&dir, &format!("events_{number:03}.jsonl"), text);
        if !together || number + 1 == files.len() {
            let summary = run_once(&config, &disk(), &[], &mut |_| commits += 1).expect("it runs");
            assert_eq!(summary.refused.len(), 0, "{:?}", summary.refused);
            counts.add(&summary.counts);
        }
    }
    assert_eq!(archived(&dir).len(), files.len(), "every file is archived");
    assert_eq!(spills(&dir), [""; 0]);
    (Result::of(&dir), counts, commits)
}

#[test]
fn users_of_many_large_files_are_written_once() {
    // Fails if each large file gets a transaction of its own, which writes all of its users again.
    let files: Vec<String> = (0..5).map(|n| many_users(700 + n * 100)).collect();
    for memory_bytes in [LITTLE, 384 << 20] {
        // With much memory, they are small files.
        let (result, _, commits) = apply(&files, true, memory_bytes);
        assert_eq!(commits, 1);
        assert_eq!(result.totals, expected(&files.concat()));
        assert_eq!(result, apply(&files, false, memory_bytes).0);
    }
}

#[test]
fn files_with_ids_that_fill_the_memory_are_applied_in_parts() {
    let line = |n: u32| {
        format!(
            "{{\"userId\":\"u{}\",\"name\":\"add_revenue\",\"value\":1,\"id\":\"{}-{:08x}\"}}\n",
            n % 700 % 3,
            n % 700,
            (n % 700).wrapping_mul(2_654_435_761)
        )
    };
    let files: Vec<String> = (0..4)
        .map(|file| (file * 300..file * 300 + 500).map(line).collect())
        .collect();
    let (together, counts, commits) = apply(&files, true, LITTLE);
    let (alone, ..) = apply(&files, false, LITTLE);
    assert_eq!(together, alone);
    assert_eq!((counts.events, counts.duplicates), (700, 1300));
    assert!(commits > 2, "{commits}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Invalid lines, ids that occur in several files, and totals that overflow.
    #[test]
    fn files_that_are_applied_together_give_what_each_gives_by_itself(
        files in prop::collection::vec(prop::collection::vec(mixed_line(), 1..120), 2..7),
        repeat in 1usize..4,
    ) {
        // A file that begins with something else is not taken for JSON Lines.
        let text = |lines: &Vec<String>| line("first", 1) + &lines.concat().repeat(repeat);
        let files: Vec<String> = files.iter().map(text).collect();
        let (together, counts, _) = apply(&files, true, LITTLE);
        let (alone, counts_alone, _) = apply(&files, false, LITTLE);
        prop_assert_eq!(together, alone);
        prop_assert_eq!(counts, counts_alone);
    }
}

/// The real disk, on which something happens while one file is scanned, some bytes after its start.
struct OnScan {
    name: &'static str,
    then: Then,
}

type Then = fn(&Path) -> io::Result<()>;

struct OnScanFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    then: Then,
}

impl DiskLayer for OnScan {
    fn below(&self) -> &dyn Disk {
        &RealDisk
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = RealDisk.open_read(path)?;
        if !path.ends_with(self.name) {
            return Ok(file);
        }
        Ok(Arc::new(OnScanFile {
            file,
            path: path.to_owned(),
            then: self.then,
        }))
    }
}

impl FileLayer for OnScanFile {
    fn below(&self) -> &dyn DiskFile {
        &*self.file
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        // Only the scan of a chunk, which reads less than the search for the last line end.
        if (9000..20_000).contains(&offset) && buf.len() <= 4097 {
            (self.then)(&self.path)?;
        }
        self.file.read_at(buf, offset)
    }
}

#[test]
fn a_file_that_cannot_be_read_does_not_change_the_sums_of_the_others() {
    // Fails if lines of the file that were added up before the error are committed with the others.
    let dir = tempfile::tempdir().expect("a directory");
    let files: Vec<String> = (0..5).map(|n| many_users(1000 + n)).collect();
    for (number, text) in files.iter().enumerate() {
        write(&dir, &format!("events_{number}.jsonl"), text);
    }
    let disk: Arc<dyn Disk> = Arc::new(OnScan {
        name: "events_2.jsonl",
        then: |_| Err(io::Error::other("a damaged sector")),
    });
    let summary = run_once(&config(&dir, LITTLE), &disk, &[], &mut |_| {}).expect("it runs");
    let refused: Vec<_> = summary
        .refused
        .iter()
        .map(|refused| &refused.reason)
        .collect();
    assert!(
        matches!(refused[..], [reason] if reason.contains("events_2.jsonl") && reason.contains("a damaged sector")),
        "{refused:?}"
    );
    let others = [&files[..2], &files[3..]].concat().concat();
    assert_eq!(Result::of(&dir).totals, expected(&others));
    assert_eq!(archived(&dir).len(), 4);
    run(&dir, &[]);
    assert_eq!(Result::of(&dir).totals, expected(&files.concat()));
}

#[test]
fn a_file_that_grows_while_it_is_added_up_is_applied_when_it_is_complete() {
    // Fails if the file is recorded as fully applied, although lines were added that are not in the sums.
    let dir = tempfile::tempdir().expect("a directory");
    for number in 0..5 {
        write(
            &dir,
            &format!("events_{number}.jsonl"),
            &many_users(1000 + number),
        );
    }
    let grown = dir.path().join("events_2.jsonl");
    let disk: Arc<dyn Disk> = Arc::new(OnScan {
        name: "events_2.jsonl",
        then: |path| {
            let mut file = fs::OpenOptions::new().append(true).open(path)?;
            io::Write::write_all(&mut file, many_users(1).as_bytes())
        },
    });
    let summary = run_once(&config(&dir, LITTLE), &disk, &[], &mut |_| {}).expect("it runs");
    assert_eq!(summary.refused.len(), 1, "{:?}", summary.refused);
    assert_eq!(archived(&dir).len(), 4);
    let text = fs::read_to_string(grown).expect("it is there");
    run(&dir, &[]);
    assert_eq!(archived(&dir).len(), 5);
    let others: String = [0, 1, 3, 4]
        .map(|number| many_users(1000 + number))
        .concat();
    assert_eq!(Result::of(&dir).totals, expected(&(text + &others)));
}

#[test]
fn a_server_commits_large_segments_that_wait_together() {
    let dir = tempfile::tempdir().expect("a directory");
    let files: Vec<String> = (0..3).map(|n| many_users(6000 + n)).collect();
    for (number, text) in (1..).zip(&files) {
        let path = write_sealed(dir.path(), number, text);
        assert!(
            fs::metadata(path).expect("it is there").len() > 300 << 10,
            "large"
        );
    }
    let running = Running::start(&dir);
    let last = Position {
        segment: 3,
        offset: 1,
    };
    assert_eq!(running.wait(last), WaitOutcome::Applied);
    running.stop();
    let db = Connection::open(dir.path().join(DATABASE_FILE)).expect("it opens");
    let times = "SELECT count(DISTINCT applied_at_ms) FROM segment WHERE state = 'applied'";
    let times: i64 = db.query_row(times, [], |row| row.get(0)).expect("a row");
    assert_eq!(times, 1, "one transaction");
    assert_eq!(Result::of(&dir).totals, expected(&files.concat()));
}
