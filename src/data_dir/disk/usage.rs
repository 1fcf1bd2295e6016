//! The size of a data directory, without a walk of the tree at each request.
//!
//! [`MeteredDisk`] counts the bytes that it writes and removes. The files of the database, which SQLite
//! writes, are examined with `stat` at each request. Changes by other programs are found by a walk of
//! the tree, which the thread `disk-usage` does once a minute; if the count changed during a walk, it
//! walks again soon. Neither a scrape of the metrics nor `--max-disk` walks a tree of hundreds of
//! thousands of files. A walk that fails is logged, and the count stays as it was.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::open::{OpenMode, open_file};
use super::walk::walk;
use super::{Disk, DiskFile, RealDisk};

/// The interval between walks.
const WALK_EVERY: Duration = Duration::from_mins(1);
/// The minimum interval when a walk was requested, or the last one was not exact.
const WALK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// The pause after a walk is at least this multiple of its duration.
const PAUSE_FACTOR: u32 = 50;

/// The real disk, with a count of the bytes in one directory.
#[derive(Clone)]
pub struct MeteredDisk {
    meter: Arc<Meter>,
}

struct Meter {
    dir: PathBuf,
    /// Files that are not written through this disk. They are examined at each request.
    others: Vec<PathBuf>,
    /// Bytes of all other files. Before `is_known` is set: only the changes made through this disk.
    bytes: AtomicI64,
    is_known: AtomicBool,
    /// The number of changes to `bytes` by this disk.
    changes: AtomicU64,
    asked: Mutex<Asked>,
    wake: Condvar,
}

#[derive(Default)]
struct Asked {
    walk: bool,
    stop: bool,
    /// The outcome of the first walk of the thread, until it is taken.
    first: Option<io::Result<()>>,
}

/// The thread that walks the tree. Dropping this ends the thread after the current walk.
pub struct UsageThread {
    meter: Arc<Meter>,
    thread: Option<JoinHandle<()>>,
}

impl MeteredDisk {
    /// Counts the files below `dir`; `others` are files there that are not written through this disk.
    pub fn new(dir: &Path, others: Vec<PathBuf>) -> Self {
        let meter = Meter {
            dir: dir.to_owned(),
            others,
            bytes: AtomicI64::new(0),
            is_known: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            asked: Mutex::default(),
            wake: Condvar::new(),
        };
        Self {
            meter: Arc::new(meter),
        }
    }

    /// Waits until the thread has completed its first walk, but at most so long. Returns whether it has; the
    /// error of the walk is returned once. The count is not known before.
    pub fn await_first_walk(&self, at_most: Duration) -> io::Result<bool> {
        let is_pending = |asked: &mut Asked| asked.first.is_none();
        let waited = self
            .meter
            .wake
            .wait_timeout_while(self.meter.lock(), at_most, is_pending);
        let (mut asked, _timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
        match asked.first.take() {
            Some(walked) => walked.map(|()| true),
            None => Ok(false),
        }
    }

    /// Walks the directory on the calling thread.
    #[cfg(test)]
    pub fn walk(&self) -> io::Result<()> {
        self.meter.walk().map(|_exact| ())
    }

    /// Starts the thread that walks the directory, at once and then periodically.
    pub fn start(&self) -> io::Result<UsageThread> {
        let meter = Arc::clone(&self.meter);
        let thread = Builder::new()
            .name("disk-usage".to_owned())
            .spawn(move || meter.run())?;
        Ok(UsageThread {
            meter: Arc::clone(&self.meter),
            thread: Some(thread),
        })
    }
}

impl Meter {
    fn add(&self, bytes: i64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Corrects the count. Returns whether it is exact, that is, nothing changed during the walk.
    fn walk(&self) -> io::Result<bool> {
        let changes = self.changes.load(Ordering::Relaxed);
        let before = self.bytes.load(Ordering::Relaxed);
        let before = if self.is_known.load(Ordering::Relaxed) {
            before
        } else {
            0
        };
        let found = signed(walk(&self.dir, &self.others)?);
        // A change during the walk may be counted twice; the next walk corrects that.
        let exact = self.changes.load(Ordering::Relaxed) == changes;
        self.bytes.fetch_add(found - before, Ordering::Relaxed);
        self.is_known.store(true, Ordering::Relaxed);
        Ok(exact)
    }

    fn run(&self) {
        let mut due = Instant::now();
        let mut not_before = due;
        let mut is_first = true;
        loop {
            let mut asked = self.lock();
            loop {
                if asked.stop {
                    return;
                }
                let now = Instant::now();
                let at = if asked.walk { not_before.min(due) } else { due };
                let Some(left) = at
                    .checked_duration_since(now)
                    .filter(|left| !left.is_zero())
                else {
                    break;
                };
                asked = self
                    .wake
                    .wait_timeout(asked, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            asked.walk = false;
            drop(asked);
            let began = Instant::now();
            let walked = self.walk();
            if let Err(error) = &walked {
                tracing::warn!(%error, "cannot determine the size of {}", self.dir.display());
            }
            let exact = *walked.as_ref().unwrap_or(&true);
            if std::mem::take(&mut is_first) {
                self.lock().first = Some(walked.map(|_exact| ()));
                self.wake.notify_all();
            }
            let pause = began.elapsed() * PAUSE_FACTOR;
            not_before = Instant::now() + pause.max(WALK_AGAIN_AFTER);
            due = if exact {
                Instant::now() + pause.max(WALK_EVERY)
            } else {
                not_before
            };
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UsageThread {
    fn drop(&mut self) {
        self.meter.lock().stop = true;
        self.meter.wake.notify_all();
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("the disk-usage thread panicked");
        }
    }
}

impl super::DiskLayer for MeteredDisk {
    fn below(&self) -> &dyn Disk {
        &RealDisk
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.metered(super::real::create_new(path)?, 0))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = open_file(path, OpenMode::ReadWrite)?;
        let end = file.metadata()?.len();
        Ok(self.metered(file, end))
    }

    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        let bytes = only_name_bytes(to);
        RealDisk.rename_over(from, to)?;
        self.meter.add(-bytes);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let bytes = only_name_bytes(path);
        RealDisk.remove(path)?;
        self.meter.add(-bytes);
        Ok(())
    }

    fn used_bytes(&self, dir: &Path) -> io::Result<u64> {
        if dir != self.meter.dir {
            return RealDisk.used_bytes(dir);
        }
        if !self.meter.is_known.load(Ordering::Relaxed) {
            return Err(io::Error::other("the first count is not complete yet"));
        }
        let others = self.meter.others.iter();
        let others: u64 = others.filter_map(|path| RealDisk.size_at(path).ok()).sum();
        let bytes = self.meter.bytes.load(Ordering::Relaxed);
        Ok(u64::try_from(bytes).unwrap_or(0) + others)
    }

    fn count_again(&self) {
        self.meter.lock().walk = true;
        self.meter.wake.notify_all();
    }
}

impl MeteredDisk {
    fn metered(&self, file: File, end: u64) -> Arc<dyn DiskFile> {
        Arc::new(MeteredFile {
            file,
            end: AtomicU64::new(end),
            meter: Arc::clone(&self.meter),
        })
    }
}

/// The bytes that are freed when a name is removed: 0 if the file has another name.
fn only_name_bytes(path: &Path) -> i64 {
    std::fs::symlink_metadata(path)
        .ok()
        .filter(|file| file.is_file() && file.nlink() == 1)
        .map_or(0, |file| signed(file.len()))
}

/// A file that adds its growth to the count. Each file must be open for writing only once.
struct MeteredFile {
    file: File,
    end: AtomicU64,
    meter: Arc<Meter>,
}

impl MeteredFile {
    fn set_end(&self, end: u64) {
        let before = self.end.swap(end, Ordering::Relaxed);
        self.meter.add(signed(end) - signed(before));
    }
}

impl super::FileLayer for MeteredFile {
    fn below(&self) -> &dyn DiskFile {
        &self.file
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let written = DiskFile::write_all_at(&self.file, bytes, offset);
        let end = match written {
            Ok(()) => offset + bytes.len() as u64,
            Err(_) => self.file.size().unwrap_or(0),
        };
        if end > self.end.load(Ordering::Relaxed) {
            self.set_end(end);
        }
        written
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        DiskFile::set_len(&self.file, len)?;
        self.set_end(len);
        Ok(())
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_changes_are_counted_and_changes_by_others_are_found_by_a_walk() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("below")).expect("a directory");
        std::fs::write(at("below/before"), [0; 10]).expect("written");
        std::fs::write(at("database"), [0; 100]).expect("written");
        let disk = MeteredDisk::new(dir.path(), vec![at("database"), at("database-wal")]);
        assert!(disk.used_bytes(dir.path()).is_err(), "not known yet");
        disk.walk().expect("a walk");
        let used = || disk.used_bytes(dir.path()).expect("known");
        assert_eq!(used(), 110);

        let file = disk.create_new(&at("new")).expect("created");
        file.write_all_at(&[1; 7], 0).expect("written");
        file.write_all_at(&[1; 7], 3).expect("written");
        assert_eq!(used(), 120);
        file.set_len(4).expect("cut");
        assert_eq!(used(), 114);
        disk.rename_new(&at("new"), &at("below/new"))
            .expect("moved");
        assert_eq!(used(), 114);
        std::fs::hard_link(at("below/new"), at("twice")).expect("a link");
        disk.walk().expect("a walk");
        assert_eq!(used(), 118, "each name counts");
        disk.remove(&at("below/before")).expect("removed");
        assert_eq!(used(), 108);
        let file = disk.open(&at("twice")).expect("opened");
        file.write_all_at(&[1; 2], 4).expect("written");
        assert_eq!(used(), 110);

        std::fs::write(at("database-wal"), [0; 1000]).expect("written");
        assert_eq!(used(), 1110);
        std::fs::write(at("copied in"), [0; 10_000]).expect("written");
        assert_eq!(used(), 1110, "not seen yet");
        disk.walk().expect("a walk");
        assert_eq!(used(), RealDisk.used_bytes(dir.path()).expect("a walk"));
    }

    #[test]
    fn the_first_walk_is_awaited_but_not_longer_than_requested() {
        // Fails if a start waits for the walk of a large directory, or continues before a small one is known.
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("file"), [0; 9]).expect("written");
        let disk = MeteredDisk::new(dir.path(), Vec::new());
        let walked = disk.await_first_walk(Duration::ZERO);
        assert!(!walked.expect("no walk yet"), "the thread does not run yet");
        let _thread = disk.start().expect("a thread");
        let walked = disk.await_first_walk(Duration::from_mins(1));
        assert!(walked.expect("walked"));
        assert_eq!(disk.used_bytes(dir.path()).expect("known"), 9);

        let other = MeteredDisk::new(&dir.path().join("file"), Vec::new());
        let _thread = other.start().expect("a thread");
        let walked = other.await_first_walk(Duration::from_mins(1));
        assert!(walked.is_err(), "not a directory");
    }

    #[test]
    fn the_thread_walks_on_request_and_ends_on_drop() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = MeteredDisk::new(dir.path(), Vec::new());
        let thread = disk.start().expect("a thread");
        let used = || disk.used_bytes(dir.path()).ok();
        let until = |bytes: u64| {
            let deadline = Instant::now() + Duration::from_mins(1);
            while used() != Some(bytes) {
                assert!(Instant::now() < deadline, "{:?}", used());
                disk.count_again();
                std::thread::yield_now();
            }
        };
        until(0);
        std::fs::write(dir.path().join("copied in"), [0; 9]).expect("written");
        until(9);
        drop(thread);
    }
}
