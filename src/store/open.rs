//! Opens the database: creates it or rejects it, and sets the pragmas of every connection.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::StoreError;
use super::family::{Family, Reading, Token};
use super::overall::{self, IdCount};
use super::snapshot::count_blocks;

/// The name of the database in the data directory.
pub const DATABASE_FILE: &str = "revenue.db";

const SCHEMA: &str = include_str!("../../sql/schema.sql");
const V4_TO_V5: &str = include_str!("../../sql/upgrade/v4_to_v5.sql");
const V5_TO_V6: &str = include_str!("../../sql/upgrade/v5_to_v6.sql");
const SET_ID_COUNT: &str = include_str!("../../sql/query/set_id_count.sql");
const SELECT_TRIGGERS: &str = include_str!("../../sql/query/select_triggers.sql");
/// `user_version` of [`SCHEMA`].
pub(super) const VERSION: i64 = 6;
/// The oldest version that is upgraded.
const OLDEST: i64 = 4;
/// `application_id` of [`SCHEMA`].
const APPLICATION_ID: i64 = 0x7461_6C79;
/// The first SQLite without the WAL-reset bug (3.51.3).
const SOUND_SQLITE: i32 = 3_051_003;
/// How long a statement waits for a lock before it fails.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);
/// The `-wal` file is truncated to this size after a checkpoint.
const WAL_BYTES_KEPT: i64 = 16 << 20;

/// Checks that the built-in SQLite does not have the WAL-reset bug. Called at every start.
fn sqlite_is_sound() -> Result<(), StoreError> {
    if rusqlite::version_number() >= SOUND_SQLITE {
        Ok(())
    } else {
        Err(StoreError::Unsound {
            found: rusqlite::version(),
        })
    }
}

/// Whether a writer creates the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Create the database if it does not exist.
    OrCreate,
    /// Fail if the database does not exist.
    Only,
}

/// Opens the writing connection and creates or upgrades the tables; the last value of the
/// result is whether it was empty. The WAL is turned on, except for an empty database with `load`, which no
/// other connection reads until it is loaded.
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
    // A database that is rejected stays unchanged, including its journal mode.
    let doing = StoreError::sqlite(path, "prepare the writing connection");
    connection.busy_timeout(BUSY_TIMEOUT).map_err(&doing)?;
    let empty = inspect(&connection, path)? == Contents::Empty;
    configure(&connection).map_err(&doing)?;
    overall::register(&connection).map_err(&doing)?;
    if !(load && empty) {
        turn_wal_on(&connection).map_err(doing)?;
    }
    upgrade(&mut connection, path)?;
    refuse_triggers(&connection, path)?;
    Ok((connection, token, empty))
}

/// Opens a reading connection outside the pool; `None` if there is no file.
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

/// Rejects a directory, a FIFO or a device with a clear message; SQLite's own error does not name the
/// reason.
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
    reason = "the only place where database files are opened"
)]
pub(super) fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(path, flags)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "synchronous", "FULL")
}

/// Turns on the WAL, with which readers and the writer do not block each other.
pub(super) fn turn_wal_on(connection: &Connection) -> rusqlite::Result<()> {
    // The pragma returns the resulting mode, which is ignored.
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", WAL_BYTES_KEPT, |_| Ok(()))
}

/// Configures a reading connection. The file is opened for writing, so that the last connection to
/// close can remove the `-wal`, but `query_only` rejects every statement that writes.
pub(super) fn configure_reader(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(16);
    connection.pragma_update(None, "query_only", true)
}

/// The flags of a reading connection.
pub(super) fn reader_flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

impl StoreError {
    /// An older database that has to be upgraded before it is read.
    pub(super) fn not_upgraded(path: &Path, found: i64) -> Self {
        Self::Older {
            path: path.to_owned(),
            found,
            known: VERSION,
            cure: "Start the server or run `tallyline process`, which upgrade it",
        }
    }
}

/// The content of a database that is not rejected.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Contents {
    Empty,
    Ours,
    /// Of an earlier version, which a writer upgrades.
    Upgradable(i64),
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
        (APPLICATION_ID, found @ OLDEST..VERSION) => Ok(Contents::Upgradable(found)),
        (APPLICATION_ID, found) if found < VERSION => Err(StoreError::Older {
            path: path.to_owned(),
            found,
            known: VERSION,
            cure: "Move it away and run `tallyline process`, which creates a new database from all kept files (if segments were pruned, first rebuild with the version that pruned them)",
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

/// Creates the tables of an empty database, or upgrades those of an earlier version, in one transaction.
fn upgrade(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    if inspect(connection, path)? == Contents::Ours {
        return Ok(());
    }
    let doing = StoreError::sqlite(path, "create its tables");
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(&doing)?;
    // Another process may have created or upgraded them meanwhile.
    match inspect(&transaction, path)? {
        Contents::Ours => {}
        Contents::Empty => transaction.execute_batch(SCHEMA).map_err(&doing)?,
        Contents::Upgradable(from) => {
            upgrade_from(&transaction, from)
                .map_err(StoreError::sqlite(path, "upgrade its tables"))?;
            tracing::info!(database = %path.display(), from, to = VERSION, "upgraded the database");
        }
    }
    transaction.commit().map_err(&doing)
}

fn upgrade_from(transaction: &Connection, version: i64) -> rusqlite::Result<()> {
    if version < 5 {
        transaction.execute_batch(V4_TO_V5)?;
        let blocks = count_blocks(transaction, &HashMap::new())?;
        let ids = IdCount::read(transaction, blocks.ids())?.of_rows;
        transaction.execute(SET_ID_COUNT, [ids])?;
    }
    transaction.execute_batch(V5_TO_V6)
}

/// Rejects triggers on the tables of the schema: they would run inside the writer's transactions and
/// could change totals or ids. The schema has no triggers. Triggers on other tables and on views are
/// accepted.
fn refuse_triggers(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let list = || -> rusqlite::Result<Vec<(String, String)>> {
        connection
            .prepare(SELECT_TRIGGERS)?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
    };
    let found = list().map_err(StoreError::sqlite(path, "list its triggers"))?;
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
