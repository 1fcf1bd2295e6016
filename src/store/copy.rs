//! A copy of the database as of one moment, made by SQLite beside whoever uses it.
//!
//! The source is read in one transaction, so writers neither wait nor make the copy begin again. The
//! `-wal` cannot be reset meanwhile: it grows by what is written during the copy. The copy is one
//! file without a `-wal`. Run by a process of its own, so that POSIX locks are respected.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::StoreError;
use super::open::{self, Contents};

/// Pages of the source copied between two calls of the caller.
const PAGES_AT_ONCE: i32 = 1024;
/// How long a database that another program has locked is tried again.
const LOCKED_MAX: Duration = Duration::from_mins(1);

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// The copy is complete. It is not synced.
    Done,
    /// There is no database, or an empty one. Nothing was written.
    Missing,
    /// The caller asked to stop. Part of the copy may be there.
    Stopped,
}

/// Copies the database `from` to the new file `to`. `go_on` is called with the share that is copied,
/// in thousandths, and says whether to go on.
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
    // A -wal that an unclean stop left stays: it tells the next writer to check the sums.
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
    to_one_file(to).map_err(to_doing)?;
    Ok(Copied::Done)
}

/// The copy of a database in WAL mode says that it has a `-wal`; this one has none.
fn to_one_file(path: &Path) -> rusqlite::Result<()> {
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
    copy.close().map_err(|(_, error)| error)
}
