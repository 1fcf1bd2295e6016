//! Opening the database: create, upgrade, or refuse; and the pragmas of every connection.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::StoreError;

/// The database's name in the data directory.
pub const DATABASE_FILE: &str = "revenue.db";

const SCHEMA: &str = include_str!("../../sql/schema.sql");
/// `user_version` of [`SCHEMA`].
pub(super) const VERSION: i64 = 2;
/// `application_id` of [`SCHEMA`].
const APPLICATION_ID: i64 = 0x7461_6C79;
/// The first SQLite without the WAL-reset bug (3.51.3).
const SOUND_SQLITE: i32 = 3_051_003;
/// How long a statement waits for a lock before it is reported.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);
/// The `-wal` file is cut back to this after a checkpoint.
const WAL_BYTES_KEPT: i64 = 16 << 20;

/// Whether the SQLite that is built in can be trusted with a WAL; checked at every start.
pub fn sqlite_is_sound() -> Result<(), StoreError> {
    if rusqlite::version_number() >= SOUND_SQLITE {
        Ok(())
    } else {
        Err(StoreError::Unsound {
            found: rusqlite::version(),
        })
    }
}

/// What a writer is to do about the database file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Make it where it is missing.
    OrCreate,
    /// It must be there.
    Only,
}

/// The writing connection, ready for the current schema; and whether the database was empty. The
/// WAL is on, unless it was empty and `load` says that nobody is to read it meanwhile.
pub(super) fn open_writer(
    path: &Path,
    existing: Existing,
    load: bool,
) -> Result<(Connection, bool), StoreError> {
    sqlite_is_sound()?;
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if existing == Existing::OrCreate {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let mut connection =
        Connection::open_with_flags(path, flags).map_err(StoreError::sqlite(path, "open it"))?;
    // A database that is not for us is left as it is, its journal mode too.
    let doing = StoreError::sqlite(path, "prepare the writing connection");
    connection.busy_timeout(BUSY_TIMEOUT).map_err(&doing)?;
    let empty = inspect(&connection, path)? == Contents::Empty;
    configure(&connection).map_err(&doing)?;
    if !(load && empty) {
        turn_wal_on(&connection).map_err(doing)?;
    }
    upgrade(&mut connection, path)?;
    Ok((connection, empty))
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "synchronous", "FULL")
}

/// Readers and the writer no longer wait for each other.
pub(super) fn turn_wal_on(connection: &Connection) -> rusqlite::Result<()> {
    // Switching back from WAL fails while others read; WAL is then still on, which is as well.
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", WAL_BYTES_KEPT, |_| Ok(()))
}

/// A reading connection. It may write as far as the file is concerned, so that the last one to
/// close leaves no `-wal` behind, but no statement can change anything.
pub(super) fn configure_reader(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(16);
    connection.pragma_update(None, "query_only", true)
}

/// The flags of a reading connection.
pub(super) fn reader_flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// What the file is: empty, ours, or not for us.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Contents {
    Empty,
    Ours,
}

pub(super) fn inspect(connection: &Connection, path: &Path) -> Result<Contents, StoreError> {
    let read = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let doing = StoreError::sqlite(path, "read its version");
    let version = read("user_version").map_err(&doing)?;
    let application = read("application_id").map_err(&doing)?;
    let tables = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
            row.get::<_, i64>(0)
        })
        .map_err(&doing)?;
    match (application, version) {
        (0, 0) if tables == 0 => Ok(Contents::Empty),
        (APPLICATION_ID, VERSION) => Ok(Contents::Ours),
        (APPLICATION_ID, found) if found < VERSION => Err(StoreError::Older {
            path: path.to_owned(),
            found,
            known: VERSION,
        }),
        (APPLICATION_ID, found) if found > VERSION => Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known: VERSION,
        }),
        _ => Err(StoreError::NotOurs {
            path: path.to_owned(),
        }),
    }
}

/// Creates the tables in one transaction where there are none.
fn upgrade(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    if inspect(connection, path)? == Contents::Ours {
        return Ok(());
    }
    let doing = StoreError::sqlite(path, "create its tables");
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(&doing)?;
    // Somebody may have been quicker.
    if inspect(&transaction, path)? == Contents::Empty {
        transaction.execute_batch(SCHEMA).map_err(&doing)?;
    }
    transaction.commit().map_err(&doing)
}
