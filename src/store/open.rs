//! Opening the database: create, upgrade, or refuse; and the pragmas of every connection.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::StoreError;
use super::family::{Family, Reading, Token};

/// The database's name in the data directory.
pub const DATABASE_FILE: &str = "revenue.db";

const SCHEMA: &str = include_str!("../../sql/schema.sql");
const SELECT_TRIGGERS: &str = include_str!("../../sql/query/select_triggers.sql");
/// `user_version` of [`SCHEMA`].
pub(super) const VERSION: i64 = 3;
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

/// The writing connection, ready for the current schema, with its token; and whether the database
/// was empty. The WAL is on, unless it was empty and `load` says that nobody is to read it meanwhile.
pub(super) fn open_writer(
    path: &Path,
    existing: Existing,
    load: bool,
) -> Result<(Connection, Token, bool), StoreError> {
    sqlite_is_sound()?;
    refuse_other_than_file(path)?;
    let token = Family::of(path).enter()?;
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if existing == Existing::OrCreate {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let mut connection = open(path, flags).map_err(StoreError::sqlite(path, "open it"))?;
    // A database that is not for us is left as it is, its journal mode too.
    let doing = StoreError::sqlite(path, "prepare the writing connection");
    connection.busy_timeout(BUSY_TIMEOUT).map_err(&doing)?;
    let empty = inspect(&connection, path)? == Contents::Empty;
    configure(&connection).map_err(&doing)?;
    if !(load && empty) {
        turn_wal_on(&connection).map_err(doing)?;
    }
    upgrade(&mut connection, path)?;
    refuse_triggers(&connection, path)?;
    Ok((connection, token, empty))
}

/// A reading connection of one's own; `None` where there is no file.
pub(super) fn open_reader(path: &Path) -> Result<Option<Reading>, StoreError> {
    if !path.try_exists().unwrap_or(true) {
        return Ok(None);
    }
    refuse_other_than_file(path)?;
    let token = Family::of(path).enter()?;
    let connection = open(path, reader_flags()).map_err(StoreError::sqlite(path, "open it"))?;
    configure_reader(&connection)
        .map_err(StoreError::sqlite(path, "prepare a reading connection"))?;
    Ok(Some(Reading::new(connection, token)))
}

/// SQLite opens a directory, a FIFO or a device, and then reports an error that says nothing of it.
pub(super) fn refuse_other_than_file(path: &Path) -> Result<(), StoreError> {
    match crate::data_dir::disk::unusable(path) {
        None => Ok(()),
        Some(unusable) => Err(StoreError::Unusable {
            path: path.to_owned(),
            unusable,
        }),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where databases are opened; the pool of readers has another"
)]
pub(super) fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(path, flags)
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
        (application, found) => Err(StoreError::NotOurs {
            path: path.to_owned(),
            application,
            found,
            ours: APPLICATION_ID,
            known: VERSION,
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

/// Triggers of others on our tables would run inside our transactions, and change totals or ids
/// behind them. Ours has none; those on other tables and on views are none of our business.
fn refuse_triggers(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let list = || -> rusqlite::Result<Vec<(String, String)>> {
        connection
            .prepare(SELECT_TRIGGERS)?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
    };
    let found = list().map_err(StoreError::sqlite(path, "look for triggers"))?;
    if found.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = found
        .iter()
        .map(|(name, table)| format!("trigger {name} on {table}"))
        .collect();
    let drops: Vec<String> = found
        .iter()
        .map(|(name, _)| format!("DROP TRIGGER \"{}\"", name.replace('"', "\"\"")))
        .collect();
    Err(StoreError::Triggers {
        path: path.to_owned(),
        triggers: named.join(", "),
        cure: drops.join("; "),
    })
}
