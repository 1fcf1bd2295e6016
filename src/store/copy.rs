//! Copies a consistent snapshot of the database with SQLite's backup API, while it is in use.
//!
//! The source is read in one transaction, so writers are not blocked, and their writes do not restart
//! the copy. The `-wal` cannot be reset during the copy and grows by the data written meanwhile. The
//! copy is one file without a `-wal`. `tallyline backup` makes it in a process of its own; SQLite's
//! locks coordinate it with the server. After an error or a stop, an incomplete copy may remain.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::StoreError;
use super::open::{self, Contents};

const QUICK_CHECK: &str = include_str!("../../sql/verify/quick_check.sql");

/// The number of pages copied between two calls of `go_on`.
const PAGES_AT_ONCE: i32 = 1024;
/// How long the copy is retried while another program holds a lock.
const LOCKED_MAX: Duration = Duration::from_mins(1);

/// The outcome of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copied {
    /// The copy is complete. It is not synced.
    Done,
    /// There is no database, or it is empty. Nothing was written.
    Missing,
    /// `go_on` returned false. An incomplete copy may exist.
    Stopped,
    /// SQLite found this fault in the pages of the copy, which are those of the database.
    Damaged(String),
}

/// Copies the database `from` to the new file `to`. `go_on` is called with the progress in thousandths
/// and returns whether to continue.
pub fn copy_database(
    from: &Path,
    to: &Path,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result<Copied, StoreError> {
    let since = Instant::now();
    loop {
        if !go_on(0) {
            return Ok(Copied::Stopped);
        }
        match try_copy(from, to, go_on) {
            Err(error) if error.is_locked() && since.elapsed() < LOCKED_MAX => {}
            done => return done,
        }
    }
}

fn try_copy(
    from: &Path,
    to: &Path,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result<Copied, StoreError> {
    let Some(source) = open::open_reader(from)? else {
        return Ok(Copied::Missing);
    };
    // A -wal left by an unclean shutdown is kept: because of it, the next writer checks the sums.
    source
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(StoreError::sqlite(from, "prepare a reading connection"))?;
    let doing = StoreError::sqlite(from, "copy it");
    let snapshot = source.unchecked_transaction().map_err(&doing)?;
    if open::inspect(&snapshot, from)? == Contents::Empty {
        return Ok(Copied::Missing);
    }
    source.note();
    let to_doing = StoreError::sqlite(to, "write the copy");
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut copy = open::open(to, flags).map_err(&to_doing)?;
    {
        let backup = Backup::new(&snapshot, &mut copy).map_err(&doing)?;
        loop {
            match backup.step(PAGES_AT_ONCE).map_err(&doing)? {
                StepResult::Done => break,
                StepResult::Busy | StepResult::Locked => {
                    return Err(StoreError::Locked {
                        path: from.to_owned(),
                    });
                }
                _ => {}
            }
            let progress = backup.progress();
            let total = u64::try_from(progress.pagecount).unwrap_or(0).max(1);
            let left = u64::try_from(progress.remaining).unwrap_or(0).min(total);
            if !go_on((total - left) * 1000 / total) {
                return Ok(Copied::Stopped);
            }
        }
    }
    drop(copy);
    let fault = to_one_file(to).map_err(to_doing)?;
    Ok(fault.map_or(Copied::Done, Copied::Damaged))
}

/// Takes the copy out of WAL mode, so that it is complete without a `-wal`. Returns the first fault that
/// SQLite finds in its pages, all of which are read; `None` if there is none.
fn to_one_file(path: &Path) -> rusqlite::Result<Option<String>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let copy = open::open(path, flags)?;
    let read = |connection: &Connection| {
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
            row.get::<_, i64>(0)
        })
    };
    read(&copy)?;
    copy.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))?;
    read(&copy)?;
    let fault: String = copy.query_row(QUICK_CHECK, [], |row| row.get(0))?;
    copy.close().map_err(|(_, error)| error)?;
    Ok((fault != "ok").then_some(fault))
}
