//! Reads of totals, segments and rejected lines from an SQLite file, through a pool of read-only connections.
//!
//! Any thread may read. The pool belongs to one file: if the database was replaced, or deleted and
//! created again, the next read uses a new pool. If there is no database, reads return empty results
//! and no error.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::{Connection, ErrorCode, OptionalExtension};
use scheduled_thread_pool::ScheduledThreadPool;

use super::database_status::DatabaseStatus;
use super::family::{self, Family, Reading};
use super::open::{self, Contents};
use super::rejected;
use super::{
    Ledger, Overall, RejectedFilter, RejectedLine, SegmentRow, SegmentState, StoreError, UserTotal,
    overall, segments,
};
use crate::data_dir::disk::{Disk, Identity, RealDisk};
use crate::data_dir::segment::SegmentId;

const SELECT_USER: &str = include_str!("../../sql/query/select_user.sql");

/// How long a read waits for a free connection.
const CHECKOUT_TIMEOUT: Duration = Duration::from_secs(5);

type Pool = r2d2::Pool<Manager>;

/// Opens connections of one generation of the [`Family`].
struct Manager {
    opens: SqliteConnectionManager,
    family: Arc<Family>,
    generation: u64,
}

impl r2d2::ManageConnection for Manager {
    type Connection = Reading;
    type Error = rusqlite::Error;

    fn connect(&self) -> Result<Reading, rusqlite::Error> {
        // Fails while connections to replaced files are open; the pool retries.
        let token = self.family.try_enter(self.generation);
        let token = token.ok_or(rusqlite::Error::InvalidQuery)?;
        Ok(Reading::new(self.opens.connect()?, token))
    }

    fn is_valid(&self, connection: &mut Reading) -> Result<(), rusqlite::Error> {
        connection.execute_batch("")
    }

    fn has_broken(&self, _: &mut Reading) -> bool {
        false
    }
}

/// The pool of reading connections (r2d2); cheap to clone.
#[derive(Clone)]
pub struct SqliteReaders {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    connections_max: u32,
    /// The generation and the file to which the pool belongs.
    pool: Mutex<Option<(u64, Identity, Pool)>>,
    family: Arc<Family>,
}

impl family::Pool for Shared {
    fn close_idle(&self) {
        let pool = self.lock().take();
        drop(pool);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<(u64, Identity, Pool)>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SqliteReaders {
    /// A pool of up to `connections_max` connections to the database at `path`, opened on demand.
    pub fn new(path: &Path, connections_max: u32) -> Self {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            connections_max,
            pool: Mutex::new(None),
            family: Family::of(path),
        });
        let weak: Weak<Shared> = Arc::downgrade(&shared);
        shared.family.add_pool(weak);
        Self { shared }
    }

    /// Fails if the file is not a database of this version. The pool itself does not check that: it
    /// would retry until a checkout times out, or read the file. For commands that read once.
    pub fn check(&self) -> Result<(), StoreError> {
        let path = &self.shared.path;
        match open::open_reader(path)? {
            Some(connection) => open::inspect(&connection, path).map(|_| ()),
            None => Ok(()),
        }
    }

    /// See [`Readers::user`](crate::store::Readers::user).
    pub fn user(&self, user_id: &str) -> Result<Option<UserTotal>, StoreError> {
        let user = self.read("read a user's total", |connection| {
            user(connection, user_id)
        })?;
        Ok(user.flatten())
    }

    /// See [`Readers::users_by_id`](crate::store::Readers::users_by_id).
    pub(super) fn users_by_id(&self, ids: &[&str]) -> Result<Vec<Option<UserTotal>>, StoreError> {
        let users = self.read("read users' totals", |connection| {
            let snapshot = connection.unchecked_transaction()?;
            ids.iter().map(|id| user(&snapshot, id)).collect()
        })?;
        Ok(users.unwrap_or_else(|| vec![None; ids.len()]))
    }

    /// The number of lines in each state, as recorded in the database.
    pub fn ledger(&self) -> Result<Ledger, StoreError> {
        Ok(self
            .read("read the ledger", segments::ledger)?
            .unwrap_or_default())
    }

    /// The sums over all users, from their one row.
    pub fn overall(&self) -> Result<Overall, StoreError> {
        Ok(self
            .read("read the sums over all users", overall::read)?
            .unwrap_or_default())
    }

    /// What `/status` publishes of the database, read in one transaction.
    pub(super) fn status(&self) -> Result<DatabaseStatus, StoreError> {
        let snapshot = self.read("read the ledger and the segments", |connection| {
            let snapshot = connection.unchecked_transaction()?;
            let unfinished = segments::unfinished(&snapshot)?;
            Ok(DatabaseStatus {
                ledger: segments::ledger(&snapshot)?,
                overall: overall::read(&snapshot)?,
                applied: segments::applied(&snapshot, &unfinished)?,
                unfinished,
                pruned: segments::pruned(&snapshot)?,
            })
        })?;
        Ok(snapshot.unwrap_or_default())
    }

    /// At most `limit` segments: the active one, then the others by when they were first seen, newest
    /// first.
    pub fn newest_segments(&self, limit: u32) -> Result<Vec<SegmentRow>, StoreError> {
        let rows = self.read("list segments", |db| segments::newest(db, limit))?;
        Ok(rows.unwrap_or_default())
    }

    /// The row of one segment.
    pub fn segment(&self, id: &SegmentId) -> Result<Option<SegmentRow>, StoreError> {
        let row = self.read("read a segment", |db| segments::one(db, id))?;
        Ok(row.flatten())
    }

    /// The rows of segments that are not fully applied.
    pub fn unfinished_segments(&self) -> Result<Vec<SegmentRow>, StoreError> {
        let rows = self.read("list unfinished segments", segments::unfinished)?;
        Ok(rows.unwrap_or_default())
    }

    /// The number of segments in each state; states without a segment are left out.
    pub fn segment_counts(&self) -> Result<Vec<(SegmentState, u64)>, StoreError> {
        let counts = self.read("count segments", segments::count_by_state)?;
        Ok(counts.unwrap_or_default())
    }

    /// At most `limit` rejected lines, newest first: those of the most recently applied segment first.
    pub fn newest_rejected(
        &self,
        limit: u32,
        filter: &RejectedFilter,
    ) -> Result<Vec<RejectedLine>, StoreError> {
        let lines = self.read("list rejected lines", |db| {
            rejected::newest(db, limit, filter)
        })?;
        Ok(lines.unwrap_or_default())
    }

    /// Closes the idle connections, so that the writer's last checkpoint can remove the `-wal`. A later
    /// read opens new ones.
    pub fn close(&self) {
        family::Pool::close_idle(&*self.shared);
    }

    /// Runs `read` on a connection of the pool; `None` if there is no database or it is empty.
    pub(super) fn read<T>(
        &self,
        doing: &'static str,
        read: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        let path = &self.shared.path;
        let Some(pool) = self.pool()? else {
            return Ok(None);
        };
        let connection = pool.get().map_err(|source| StoreError::Pool {
            path: path.clone(),
            source,
        })?;
        let first = read(&connection);
        connection.note();
        match first {
            Ok(value) => Ok(Some(value)),
            // The file exists but has no tables yet: the same as no file.
            Err(_) if open::inspect(&connection, path).is_ok_and(|is| is == Contents::Empty) => {
                Ok(None)
            }
            // The tables were created after the first attempt.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::Unknown) => {
                let again = read(&connection).map_err(StoreError::sqlite(path, doing))?;
                Ok(Some(again))
            }
            Err(error) => Err(StoreError::sqlite(path, doing)(error)),
        }
    }

    fn pool(&self) -> Result<Option<Pool>, StoreError> {
        let (path, family) = (&self.shared.path, &self.shared.family);
        family.retire_if_changed();
        let generation = family.generation();
        let identity = RealDisk.identity(path).ok().flatten();
        let mut held = self.shared.lock();
        let Some(identity) = identity else {
            drop(held.take());
            return Ok(None);
        };
        if let Some((of, file, pool)) = &*held
            && (*of, *file) == (generation, identity)
        {
            return Ok(Some(pool.clone()));
        }
        let opens = SqliteConnectionManager::file(path)
            .with_flags(open::reader_flags())
            .with_init(|connection| open::configure_reader(connection));
        let manager = Manager {
            opens,
            family: Arc::clone(family),
            generation,
        };
        let pool = r2d2::Pool::builder()
            .max_size(self.shared.connections_max)
            .min_idle(Some(0))
            .test_on_check_out(false)
            .thread_pool(Arc::new(ScheduledThreadPool::new(1)))
            .connection_timeout(CHECKOUT_TIMEOUT)
            .build(manager)
            .map_err(|source| StoreError::Pool {
                path: path.clone(),
                source,
            })?;
        *held = Some((generation, identity, pool.clone()));
        Ok(Some(pool))
    }
}

fn user(connection: &Connection, user_id: &str) -> rusqlite::Result<Option<UserTotal>> {
    let mut select = connection.prepare_cached(SELECT_USER)?;
    let total = select.query_row([user_id], |row| {
        Ok(UserTotal {
            user_id: user_id.to_owned(),
            revenue: row.get::<_, i64>(0)?.into(),
            events: row.get(1)?,
            updated_at_ms: row.get(2)?,
        })
    });
    total.optional()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::store::{Existing, Writer};

    #[test]
    fn tables_created_during_a_read_are_not_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("revenue.db");
        std::fs::write(&path, "").expect("a file");
        let first = Cell::new(true);
        let users = SqliteReaders::new(&path, 1).read("count users", |connection| {
            let count = connection.query_row("SELECT count(*) FROM user_total", [], |row| {
                row.get::<_, u64>(0)
            });
            if first.replace(false) {
                assert!(count.is_err(), "no tables yet");
                drop(Writer::open(&path, Existing::OrCreate).expect("the tables"));
            }
            count
        });
        assert_eq!(users.expect("it is read"), Some(0));
    }
}
