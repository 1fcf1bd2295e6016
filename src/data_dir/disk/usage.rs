//! How many bytes a data directory holds, without walking it.
//!
//! [`MeteredDisk`] counts what it writes and removes. What others write is followed in two ways: the
//! files of the database by a `stat` each, the rest (files that a person copied in or deleted) by a
//! walk now and then (again soon if something changed during it), on a thread of its own. So neither a scrape nor `--max-disk` walks a tree of
//! hundreds of thousands of files.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::open::{Access, open_file};
use super::{Disk, DiskFile, RealDisk};

/// How often the directory is walked, and the least time between two walks where somebody waits for
/// space that another program may have freed.
const WALK_EVERY: Duration = Duration::from_mins(1);
const WALK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// ... but a walk takes no more than one part in so many of the time.
const WALKING: u32 = 50;

/// Bytes of all files in `dir` and below, but for `except`. A file that goes away meanwhile counts
/// nothing, nor does what a link leads to.
pub(super) fn walk(dir: &Path, except: &[PathBuf]) -> io::Result<u64> {
    let mut bytes = 0;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        // Paths are only put together where one may be left out: not in the archive of years.
        let leaves_out = except.iter().any(|path| path.parent() == Some(&dir));
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => dirs.push(entry.path()),
                Ok(metadata)
                    if metadata.is_file() && !(leaves_out && except.contains(&entry.path())) =>
                {
                    bytes += metadata.len();
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(bytes)
}

/// The machine's disk, with the bytes of one directory counted.
#[derive(Clone)]
pub struct MeteredDisk {
    meter: Arc<Meter>,
}

struct Meter {
    dir: PathBuf,
    /// Files that others than this disk write: looked at when asked.
    others: Vec<PathBuf>,
    /// Bytes of all but those, once `is_known`; before, what has changed since the beginning.
    bytes: AtomicI64,
    is_known: AtomicBool,
    /// How often this disk changed that.
    changes: AtomicU64,
    asked: Mutex<Asked>,
    wake: Condvar,
}

#[derive(Default)]
struct Asked {
    walk: bool,
    stop: bool,
}

/// The thread that walks; dropping this ends it, and waits for a walk under way.
pub struct UsageThread {
    meter: Arc<Meter>,
    thread: Option<JoinHandle<()>>,
}

impl MeteredDisk {
    /// Counts below `dir`; `others` are files there that are written without this disk.
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

    /// Walks the directory now.
    pub fn walk(&self) -> io::Result<()> {
        self.meter.walk().map(|_exact| ())
    }

    /// Walks it now and then on a thread of its own, the first time at once unless it was walked.
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

    /// Sets the count right; whether nothing changed meanwhile, so that it is exact.
    fn walk(&self) -> io::Result<bool> {
        let changes = self.changes.load(Ordering::Relaxed);
        let before = self.bytes.load(Ordering::Relaxed);
        let before = if self.is_known.load(Ordering::Relaxed) {
            before
        } else {
            0
        };
        let found = signed(walk(&self.dir, &self.others)?);
        // What changes during the walk may be in both; the next walk sets that right.
        let exact = self.changes.load(Ordering::Relaxed) == changes;
        self.bytes.fetch_add(found - before, Ordering::Relaxed);
        self.is_known.store(true, Ordering::Relaxed);
        Ok(exact)
    }

    fn run(&self) {
        let mut due = Instant::now();
        if self.is_known.load(Ordering::Relaxed) {
            due += WALK_EVERY;
        }
        let mut not_before = due;
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
            let exact = self.walk().unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot add up the files in {}", self.dir.display());
                true
            });
            let pause = began.elapsed() * WALKING;
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
            tracing::error!("the thread that adds up the files panicked");
        }
    }
}

impl super::DiskLayer for MeteredDisk {
    fn below(&self) -> &dyn Disk {
        &RealDisk
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.metered(super::create_new(path)?, 0))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = open_file(path, Access::ReadWrite)?;
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
            return Err(io::Error::other("the files are not added up yet"));
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

/// Bytes that go with a name: of a file that has another name too, none.
fn only_name_bytes(path: &Path) -> i64 {
    std::fs::symlink_metadata(path)
        .ok()
        .filter(|file| file.is_file() && file.nlink() == 1)
        .map_or(0, |file| signed(file.len()))
}

/// A file that counts what it grows by. Only one is open for writing of each.
struct MeteredFile {
    file: File,
    end: AtomicU64,
    meter: Arc<Meter>,
}

impl MeteredFile {
    fn ends_at(&self, end: u64) {
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
            self.ends_at(end);
        }
        written
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        DiskFile::set_len(&self.file, len)?;
        self.ends_at(len);
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
    fn what_is_written_and_removed_is_counted_and_what_others_do_is_found() {
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
    fn the_thread_walks_at_once_when_asked_and_at_its_end_stops() {
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
