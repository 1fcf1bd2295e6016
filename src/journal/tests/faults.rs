//! Writes, syncs and rotations that fail.

use super::*;

/// A disk whose next calls fail: each counter is the number of calls that still fail.
#[derive(Default)]
struct Faults {
    write: AtomicUsize,
    /// Writes that fail with an error other than a full disk.
    broken: AtomicUsize,
    sync: AtomicUsize,
    cut: AtomicUsize,
    rename: AtomicUsize,
    open_dir: AtomicUsize,
    sync_dir: AtomicUsize,
    create: AtomicUsize,
    /// The number of successful syncs.
    synced: AtomicUsize,
}

fn fault(counter: &AtomicUsize) -> io::Result<()> {
    let due = counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
        left.checked_sub(1)
    });
    if due.is_ok() {
        Err(io::Error::from(io::ErrorKind::StorageFull))
    } else {
        Ok(())
    }
}

struct FaultyDisk(Arc<Faults>);
struct FaultyFile(Arc<dyn DiskFile>, Arc<Faults>);
struct FaultyDir(Box<dyn DiskDir>, Arc<Faults>);

impl crate::data_dir::disk::DiskLayer for FaultyDisk {
    fn below(&self) -> &dyn Disk {
        &RealDisk
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        fault(&self.0.create)?;
        Ok(Arc::new(FaultyFile(
            RealDisk.create_new(path)?,
            Arc::clone(&self.0),
        )))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(FaultyFile(
            RealDisk.open(path)?,
            Arc::clone(&self.0),
        )))
    }
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        fault(&self.0.rename)?;
        RealDisk.rename_new(from, to)
    }
    fn open_dir(&self, dir: &Path) -> io::Result<Box<dyn DiskDir>> {
        fault(&self.0.open_dir)?;
        let dir = RealDisk.open_dir(dir)?;
        Ok(Box::new(FaultyDir(dir, Arc::clone(&self.0))))
    }
}

impl DiskDir for FaultyDir {
    fn sync(&self) -> io::Result<()> {
        fault(&self.1.sync_dir)?;
        self.0.sync()
    }
}

impl crate::data_dir::disk::FileLayer for FaultyFile {
    fn below(&self) -> &dyn DiskFile {
        &*self.0
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if fault(&self.1.broken).is_err() {
            return Err(io::Error::other("broken"));
        }
        if let Err(error) = fault(&self.1.write) {
            self.0.write_all_at(&bytes[..bytes.len() / 2], offset)?; // half of it is written
            return Err(error);
        }
        self.0.write_all_at(bytes, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        fault(&self.1.sync)?;
        self.1.synced.fetch_add(1, Ordering::SeqCst);
        self.0.sync_data()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        fault(&self.1.cut)?;
        self.0.set_len(len)
    }
}

fn faulty(dir: &Path) -> (Open, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let open = open_with(
        Arc::new(FaultyDisk(Arc::clone(&faults))),
        dir,
        config(),
        &[],
    );
    append(&open.journal, "kept\n").expect("appended");
    (open, faults)
}

/// The content of the active file without the label.
#[test]
fn a_failed_write_or_sync_keeps_nothing_and_ingestion_continues() {
    for which in ["write", "sync"] {
        let dir = TempDir::new().expect("a directory");
        let (open, faults) = faulty(dir.path());
        let counter = if which == "write" {
            &faults.write
        } else {
            &faults.sync
        };
        counter.store(1, Ordering::SeqCst);
        assert!(
            matches!(
                append(&open.journal, "refused\n"),
                Err(AppendError::DiskFull(_))
            ),
            "{which}"
        );
        assert_eq!(content(dir.path()), "kept\n", "{which}");
        assert_eq!(
            append(&open.journal, "next\n").expect("appended"),
            at(1, LABEL + 10),
            "{which}"
        );
        until("readiness is green", || open.health.reasons().is_empty());
    }
}

#[test]
fn without_traffic_a_sync_restores_readiness() {
    // Fails if the periodic check reports the disk as healthy without a sync.
    let dir = TempDir::new().expect("a directory");
    let (open, faults) = faulty(dir.path());
    let before = faults.synced.load(Ordering::SeqCst);
    faults.broken.store(1, Ordering::SeqCst);
    let refused = append(&open.journal, "refused\n");
    assert!(matches!(refused, Err(AppendError::Failed(_))));
    until("readiness is green", || open.health.reasons().is_empty());
    let synced = faults.synced.load(Ordering::SeqCst) - before;
    assert_eq!(synced, 2, "the undo and the periodic check");
}

#[test]
fn a_failed_write_that_cannot_be_undone_poisons() {
    let dir = TempDir::new().expect("a directory");
    let (open, faults) = faulty(dir.path());
    faults.sync.store(1, Ordering::SeqCst);
    faults.cut.store(1, Ordering::SeqCst);
    assert!(matches!(
        append(&open.journal, "unknown\n"),
        Err(AppendError::Unknown(_))
    ));
    assert!(matches!(
        append(&open.journal, "after\n"),
        Err(AppendError::Failed(_))
    ));
    assert_eq!(open.health.reasons().len(), 1);
}

#[test]
fn a_rotation_that_fails_at_each_step() {
    // 1, or no descriptor for 2: the journal keeps the file and retries.
    for which in ["open_dir", "rename"] {
        let dir = TempDir::new().expect("a directory");
        let (open, faults) = faulty(dir.path());
        let counter = if which == "rename" {
            &faults.rename
        } else {
            &faults.open_dir
        };
        counter.store(1, Ordering::SeqCst);
        assert!(matches!(rotate(&open.journal), Err(AppendError::Failed(_))));
        assert_eq!(
            append(&open.journal, "next\n").expect("appended"),
            at(1, LABEL + 10),
            "{which}"
        );
        until("it is sealed", || open.journal.tail().number == 2);
        assert!(open.health.reasons().is_empty(), "{which}");
    }

    // 2: poisoned.
    let dir = TempDir::new().expect("a directory");
    let (open, faults) = faulty(dir.path());
    faults.sync_dir.store(1, Ordering::SeqCst);
    assert!(rotate(&open.journal).is_err());
    assert!(matches!(
        append(&open.journal, "x\n"),
        Err(AppendError::Failed(_))
    ));

    // 3: the acknowledged events are sealed; appends fail until the next file exists.
    let dir = TempDir::new().expect("a directory");
    let (open, faults) = faulty(dir.path());
    faults.create.store(1, Ordering::SeqCst);
    assert_eq!(rotate(&open.journal).expect("sealed"), at(1, LABEL + 5));
    assert!(matches!(
        append(&open.journal, "x\n"),
        Err(AppendError::DiskFull(_))
    ));
    until("the next file is created", || {
        append(&open.journal, "x\n").is_ok()
    });
    assert_eq!(open.journal.tail().number, 2);
}
