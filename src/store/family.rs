//! Tracks all connections of this process to one database, and detects that its files were removed or
//! replaced.
//!
//! SQLite shares the `-shm` among the connections of a process, by the database's inode. If another
//! program removes or replaces one of the files, a new connection beside an old one would read the new
//! `-wal` with the index of the old one. Therefore all connections are *retired* together: no new
//! connection is opened until the last old one is closed, and old connections do not checkpoint when
//! they close, because their data may not belong to the files at the path. When the last one is closed,
//! [`files::clear_away`] removes or renames the files that do not belong together.
//!
//! If a program writes into the database file itself (`cat old.db > revenue.db`, `cp`, `rsync
//! --inplace`), SQLite does not detect it and continues with its cache and with the `-wal` of the old
//! content. If one writes into the `-wal` or truncates it (`: > revenue.db-wal`), SQLite appends behind
//! the hole, and a checkpoint copies it over the database.
//! [`Writer::is_overwritten`](super::Writer::is_overwritten) detects that a file's time or size changed
//! without a commit or a checkpoint. The database is then examined through new connections
//! ([`is_consistent`](super::is_consistent)); if it is mixed from two copies, the `-wal` is discarded.
//! Two cases are not detected here: a write between a commit of the server and the check after it, and
//! a write that restores size and time. The sums and `verify` detect these.
//!
//! The state is shared by all threads, under one mutex for each database.

mod files;
mod reading;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use self::files::{Files, SHM, WAL, change, clear_away, files_at};
pub(super) use self::reading::{Reading, no_checkpoint};
use super::StoreError;
use crate::data_dir::disk::Guard;

/// How long opening waits for retired connections to be closed.
const RETIRED_MAX: Duration = Duration::from_secs(5);
/// A pool of connections. Its idle connections are closed when connections are retired.
pub(super) trait Pool: Send + Sync {
    /// Closes the idle connections.
    fn close_idle(&self);
}

/// All connections of this process to one database.
pub(super) struct Family {
    path: PathBuf,
    guard: Arc<Guard>,
    state: Mutex<State>,
    closed: Condvar,
}

#[derive(Default)]
struct State {
    /// The number of times that connections were retired.
    generation: u64,
    /// Open connections of this generation.
    open: usize,
    /// Open connections of earlier generations.
    retired: usize,
    /// The files that this generation has open, as far as they were noted.
    files: Files,
    /// Whether one of the connections is the writer. The WAL stays on while the writer is open, so no
    /// program that follows SQLite's locking removes the `-wal` or starts another one.
    writer: bool,
    /// The files of the last retired writer, until [`clear_away`] has run.
    left: Option<Files>,
    pools: Vec<Weak<dyn Pool>>,
}

static FAMILIES: Mutex<Vec<Weak<Family>>> = Mutex::new(Vec::new());

impl Family {
    /// The family of the database at `path`, which need not exist.
    pub(super) fn of(path: &Path) -> Arc<Self> {
        let path = resolved(path);
        let mut families = lock(&FAMILIES);
        families.retain(|family| family.strong_count() > 0);
        let known = families.iter().filter_map(Weak::upgrade);
        if let Some(family) = known.into_iter().find(|family| family.path == path) {
            return family;
        }
        let family = Arc::new(Self {
            guard: Guard::new(&path),
            path,
            state: Mutex::default(),
            closed: Condvar::new(),
        });
        families.push(Arc::downgrade(&family));
        family
    }

    /// Registers a pool whose idle connections are closed when connections are retired.
    pub(super) fn add_pool(&self, pool: Weak<dyn Pool>) {
        lock(&self.state).pools.push(pool);
    }

    pub(super) fn generation(&self) -> u64 {
        lock(&self.state).generation
    }

    /// Registers a new connection. Waits up to [`RETIRED_MAX`] until all retired ones are closed.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Token, StoreError> {
        let deadline = Instant::now() + RETIRED_MAX;
        loop {
            self.retire_if_changed();
            let generation = self.generation();
            if let Some(token) = self.try_enter(generation) {
                return Ok(token);
            }
            let state = lock(&self.state);
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err(StoreError::Retired {
                    path: self.path.clone(),
                });
            };
            drop(
                self.closed
                    .wait_timeout_while(state, left, |s| s.retired > 0),
            );
        }
    }

    /// Registers a new connection of a generation; `None` if it is not the current one, or if retired
    /// connections are still open.
    pub(super) fn try_enter(self: &Arc<Self>, generation: u64) -> Option<Token> {
        let mut state = lock(&self.state);
        if state.generation != generation || state.retired > 0 {
            return None;
        }
        state.open += 1;
        Some(Token {
            family: Arc::clone(self),
            generation,
        })
    }

    /// Which open file was removed or replaced, such as `revenue.db was removed`; `None` if none was.
    pub(super) fn change(&self) -> Option<String> {
        let (_, files) = self.open_files()?;
        change(&self.path, &files)
    }

    /// Retires all connections if one of their files was removed or replaced.
    pub(super) fn retire_if_changed(&self) {
        let Some((generation, files)) = self.open_files() else {
            return;
        };
        // The files are examined without the lock, because every read does so.
        if change(&self.path, &files).is_some() && self.generation() == generation {
            self.retire();
        }
    }

    /// The generation and the files of its connections; `None` if it has none.
    fn open_files(&self) -> Option<(u64, Files)> {
        let state = lock(&self.state);
        (state.open > 0).then_some((state.generation, state.files))
    }

    /// Retires all open connections: they are not used again.
    pub(super) fn retire(&self) {
        let pools = {
            let mut state = lock(&self.state);
            if state.open == 0 {
                return;
            }
            state.generation += 1;
            state.retired += std::mem::take(&mut state.open);
            let files = std::mem::take(&mut state.files);
            if std::mem::take(&mut state.writer) {
                state.left.get_or_insert(files);
            }
            state.pools.retain(|pool| pool.strong_count() > 0);
            state.pools.clone()
        };
        for pool in pools.iter().filter_map(Weak::upgrade) {
            pool.close_idle();
        }
    }

    /// Retires all connections because the database file was overwritten in place. The `-wal`, which
    /// belongs to the previous content, is removed when the last connection is closed.
    pub(super) fn discard_wal(&self) {
        self.retire();
        let mut state = lock(&self.state);
        let now = files_at(&self.path);
        let left = [None, now[WAL], now[SHM]];
        if state.retired == 0 && state.open == 0 {
            clear_away(&self.path, left);
        } else {
            state.left = Some(left);
        }
    }

    fn note(&self, generation: u64) {
        self.guard.note();
        let now = files_at(&self.path);
        let mut state = lock(&self.state);
        if state.generation == generation {
            for (noted, now) in state.files.iter_mut().zip(now) {
                *noted = noted.or(now);
            }
        }
    }
}

pub(super) struct Token {
    family: Arc<Family>,
    generation: u64,
}

impl Token {
    /// Notes which files are open. Call it after the connection has read, when `-wal` and `-shm` exist.
    pub(super) fn note(&self) {
        self.family.note(self.generation);
    }

    /// Why the connection must not be used any more; `None` if it may be used.
    pub(super) fn change(&self) -> Option<String> {
        let change = self.family.change();
        if change.is_none() && self.is_retired() {
            return Some("one of its files was removed or replaced".to_owned());
        }
        change
    }

    pub(super) fn is_retired(&self) -> bool {
        self.family.generation() != self.generation
    }

    /// Marks this connection as the writer, after it has turned on the WAL.
    pub(super) fn begin_writing(&self) {
        self.note();
        self.set_writer(true);
    }

    /// Marks the end of the writer, before it closes and SQLite may remove the `-wal`.
    pub(super) fn end_writing(&self) {
        self.set_writer(false);
    }

    fn set_writer(&self, writer: bool) {
        let mut state = lock(&self.family.state);
        if state.generation == self.generation {
            state.writer = writer;
        }
    }

    pub(super) fn retire_all(&self) {
        if !self.is_retired() {
            self.family.retire();
        }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let mut state = lock(&self.family.state);
        if state.generation == self.generation {
            state.open -= 1;
        } else {
            state.retired -= 1;
        }
        if state.open == 0 {
            state.files = Files::default();
        }
        if state.open + state.retired == 0 {
            self.family.guard.forget();
            if let Some(left) = state.left.take() {
                clear_away(&self.family.path, left);
            }
        }
        drop(state);
        self.family.closed.notify_all();
    }
}

/// The path without links in its directory, so that a database has one family under every path.
fn resolved(path: &Path) -> PathBuf {
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    match (dir.canonicalize(), path.file_name()) {
        (Ok(dir), Some(name)) => dir.join(name),
        _ => path.to_owned(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_dir::disk::with_suffix;
    use crate::store::{DATABASE_FILE, Existing, Writer};

    #[test]
    fn the_wal_of_a_replaced_database_is_removed() {
        // Fails if SQLite would replay it into the other file.
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(DATABASE_FILE);
        let mut writer = Writer::open(&path, Existing::OrCreate).expect("it opens");
        writer.set_clock(1).expect("written");
        let other = with_suffix(&path, ".other");
        std::fs::copy(&path, &other).expect("copied");
        std::fs::rename(&other, &path).expect("renamed");
        writer.abandon();
        assert!(path.exists());
        assert!(!with_suffix(&path, "-wal").exists());
    }

    #[test]
    fn no_connection_is_opened_beside_a_retired_one() {
        // It would read the new -wal with the -shm of the old one.
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(DATABASE_FILE);
        let writer = Writer::open(&path, Existing::OrCreate).expect("it opens");
        let reader = super::super::open::open_reader(&path).expect("it opens");
        let family = Family::of(&path);
        std::fs::remove_file(with_suffix(&path, "-wal")).expect("removed");
        assert_eq!(
            writer.replaced().as_deref(),
            Some("revenue.db-wal was removed")
        );
        writer.abandon();
        let generation = family.generation();
        assert!(family.try_enter(generation).is_none(), "one is still open");
        assert!(with_suffix(&path, "-shm").exists(), "and needs its -shm");
        drop(reader);
        assert!(!with_suffix(&path, "-shm").exists());
        assert!(family.try_enter(generation).is_some());
        assert!(family.try_enter(generation - 1).is_none());
        let writer = Writer::open(&path, Existing::Only).expect("it opens");
        assert_eq!(writer.replaced(), None);
    }
}
