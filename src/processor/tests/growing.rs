//! A file that another program still writes is applied when it is complete.

use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::data_dir::disk::DiskLayer;

/// Appends a line to a file when it is opened, the first few times.
struct Growing {
    path: PathBuf,
    left: AtomicU64,
}

impl DiskLayer for Growing {
    fn below(&self) -> &dyn Disk {
        &RealDisk
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let left = self.left.load(Ordering::Relaxed);
        if path == self.path && left > 0 {
            self.left.store(left - 1, Ordering::Relaxed);
            let mut file = fs::File::options().append(true).open(path)?;
            file.write_all(line("u", 1).as_bytes())?;
        }
        RealDisk.open_read(path)
    }
}

#[test]
fn an_imported_file_is_applied_once_its_size_stays_the_same() {
    // Fails if a file is applied and archived while it is still copied: its further lines would be refused
    // as a change of an applied file.
    const GROWS: u64 = 4;
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("events_grow.jsonl");
    fs::write(&path, line("u", 1)).expect("written");
    let disk: Arc<dyn Disk> = Arc::new(Growing {
        path,
        left: AtomicU64::new(GROWS),
    });
    let health = Arc::new(Health::default());
    let (journal, committer, _) = Journal::open(
        Arc::clone(&disk),
        dir.path(),
        JournalConfig::default(),
        &KnownSegments::default(),
        Arc::clone(&health),
    )
    .expect("the journal opens");
    let mut config = ProcessorConfig::new(dir.path());
    config.flush_interval = Duration::from_millis(10);
    let progress = Arc::new(Progress::new(Processing::Here));
    let processor = Processor::start(config, disk, journal.clone(), progress, Arc::clone(&health));
    let processor = processor.expect("the processor starts");
    let deadline = Instant::now() + Duration::from_secs(30);
    // Reading fails while the database is created.
    while !read_segments(&dir.path().join(DATABASE_FILE))
        .is_ok_and(|rows| rows.iter().any(|row| row.state == SegmentState::Applied))
    {
        assert!(Instant::now() < deadline, "{:?}", health.reasons());
        std::thread::yield_now();
    }
    committer.stop();
    processor.stop();
    let all = i64::try_from(GROWS + 1).expect("few");
    assert_eq!(totals(&dir), [total("u", all, GROWS + 1)]);
    assert_eq!(health.reasons(), Vec::<String>::new());
}
