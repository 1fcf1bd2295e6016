//! What a server with `--no-process` publishes while segments are sealed.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::data_dir::disk::{DiskLayer, FileLayer};
use crate::data_dir::segment::label_in_name;
use crate::store::Ledger;

const LINES: u64 = 3;

/// The disk of the observer: seals the active segment at the first listing, and counts the bytes that are
/// read from sealed files.
struct Sealing {
    /// Taken at the first listing.
    journal: Mutex<Option<Journal>>,
    listings: AtomicU64,
    sealed_bytes_read: Arc<AtomicU64>,
}

impl DiskLayer for Sealing {
    fn below(&self) -> &dyn Disk {
        &RealDisk
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(String, bool)>> {
        self.listings.fetch_add(1, Ordering::Relaxed);
        let journal = self.journal.lock().expect("not poisoned").take();
        if let Some(journal) = journal {
            let (sender, receiver) = mpsc::channel();
            journal.rotate(Box::new(move |result| sender.send(result).expect("sent")));
            receiver.recv().expect("an answer").expect("sealed");
        }
        RealDisk.list(dir)
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = RealDisk.open_read(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if label_in_name(&name).is_none() {
            return Ok(file);
        }
        Ok(Arc::new(Counted {
            file,
            bytes_read: Arc::clone(&self.sealed_bytes_read),
        }))
    }
}

struct Counted {
    file: Arc<dyn DiskFile>,
    bytes_read: Arc<AtomicU64>,
}

impl FileLayer for Counted {
    fn below(&self) -> &dyn DiskFile {
        &*self.file
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.file.read_at(buf, offset)?;
        self.bytes_read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// An observer of a directory with [`LINES`] acknowledged lines, whose segment is sealed during its first
/// round.
struct Observing {
    dir: TempDir,
    journal: Journal,
    committer: Committer,
    observer: Processor,
    disk: Arc<Sealing>,
    progress: Arc<Progress>,
    health: Arc<Health>,
}

impl Observing {
    fn start(flush_interval: Duration) -> Self {
        let dir = TempDir::new().expect("a directory");
        let health = Arc::new(Health::default());
        let (journal, committer, _) = Journal::open(
            disk(),
            dir.path(),
            JournalConfig::default(),
            &KnownSegments::default(),
            Arc::clone(&health),
        )
        .expect("the journal opens");
        let (sender, receiver) = mpsc::channel();
        let count = usize::try_from(LINES).expect("few");
        let batch = Batch {
            bytes: line("u", 1).repeat(count).into(),
        };
        journal.append(
            batch,
            Box::new(move |done| {
                drop(sender.send(done));
                None
            }),
        );
        receiver.recv().expect("an answer").expect("durable");
        let disk = Arc::new(Sealing {
            journal: Mutex::new(Some(journal.clone())),
            listings: AtomicU64::new(0),
            sealed_bytes_read: Arc::default(),
        });
        let mut config = ProcessorConfig::new(dir.path());
        config.flush_interval = flush_interval;
        let progress = Arc::new(Progress::new(Processing::Elsewhere));
        let readers = Readers::of(&config.database, 1);
        let shared: Arc<dyn Disk> = Arc::clone(&disk) as Arc<dyn Disk>;
        let observer = Processor::observe(
            config,
            shared,
            journal.clone(),
            readers,
            Arc::clone(&progress),
            Arc::clone(&health),
        )
        .expect("the observer starts");
        Self {
            dir,
            journal,
            committer,
            observer,
            disk,
            progress,
            health,
        }
    }

    fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        until(&self.health, what, || done(self));
    }

    fn ledger(&self) -> Ledger {
        self.progress.ledger(|| self.journal.tail().lines).0
    }

    fn stop(self) {
        assert_eq!(self.health.reasons(), Vec::<String>::new());
        assert_eq!(self.committer.stop(), None);
        assert_eq!(self.observer.stop(), None);
    }
}

#[test]
fn a_segment_that_is_sealed_during_a_round_is_counted_once() {
    // Fails if the round is published: the lines of the segment are in its file and in the tail that was read
    // before. Fails, too, if it is not repeated at once: the next one begins a minute later.
    let observing = Observing::start(Duration::from_mins(1));
    observing.until("published", |one| one.progress.is_published());
    let ledger = observing.ledger();
    assert_eq!((ledger.lines, ledger.pending), (LINES, LINES));
    assert_eq!(ledger.unaccounted, 0);
    assert_eq!(observing.journal.tail().number, 2, "sealed meanwhile");
    observing.stop();
}

#[test]
fn a_sealed_file_is_read_once() {
    // Fails if each round reads the sealed files, or if one pass counts the lines and another one compares
    // the file with the seal in its name.
    let observing = Observing::start(Duration::from_millis(10));
    let rounds = |one: &Observing| one.disk.listings.load(Ordering::Relaxed) > 10;
    observing.until("ten listings", rounds);
    let is_sealed = |name: &String| label_in_name(name).is_some();
    let sealed = names(observing.dir.path()).into_iter().find(is_sealed);
    let sealed = observing.dir.path().join(sealed.expect("a sealed file"));
    let size = fs::metadata(sealed).expect("a file").len();
    let read = observing.disk.sealed_bytes_read.load(Ordering::Relaxed);
    assert_eq!(read, size);
    assert_eq!(observing.ledger().pending, LINES);
    observing.stop();
}
