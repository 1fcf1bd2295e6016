//! Checks the server, and creates the tables and checks or upgrades their version.
//!
//! Several nodes may start at once. An advisory lock lets one of them create the tables while the others wait.
//! It is not relied upon, because a compatible engine may not have it: the statements fail if the tables exist,
//! and the loser of a race finds them when it tries again.

use ::postgres::types::Type;
use ::postgres::{Client, GenericClient};
use uuid::Uuid;

use super::Target;
use crate::store::StoreError;

const SCHEMA: &str = include_str!("../../../sql/postgres/schema.sql");
const SELECT_SERVER: &str = include_str!("../../../sql/postgres/select_server.sql");
const V1_TO_V2: &str = include_str!("../../../sql/postgres/upgrade/v1_to_v2.sql");
const SELECT_TABLES_EXIST: &str = include_str!("../../../sql/postgres/select_tables_exist.sql");
const SELECT_VERSION: &str = include_str!("../../../sql/postgres/select_version.sql");
const SELECT_MISSING_RIGHTS: &str = include_str!("../../../sql/postgres/select_missing_rights.sql");
const INSERT_CLUSTER: &str = include_str!("../../../sql/postgres/insert_cluster.sql");
const LOCK_SCHEMA: &str = include_str!("../../../sql/postgres/lock_schema.sql");

/// The version of the tables, in `cluster.version`.
const VERSION: i32 = 2;
/// The version that is upgraded.
const UPGRADED: i32 = 1;
/// The first version of PostgreSQL that is accepted.
const SERVER_VERSION_MIN: i32 = 120_000;
/// How often the creation of the tables is tried while another node does the same.
const TRIES: usize = 10;

/// Creates the tables if the database has none, and upgrades those of an earlier version. Fails if this server or
/// its tables cannot be used.
pub fn ensure(client: &mut Client, target: &Target) -> Result<(), StoreError> {
    check_server(client, target)?;
    let mut last = None;
    for _ in 0..TRIES {
        let (made, doing) = match version(client, target)? {
            Some(VERSION) => return check_rights(client, target),
            Some(UPGRADED) => (upgrade(client, target), "upgrade its tables"),
            Some(found) => return Err(other_version(target, found)),
            None => (create(client, target), "create its tables"),
        };
        match made {
            // Checked again, which reports another version, too.
            Ok(()) => {}
            Err(error) if is_race(&error) => last = Some(error),
            Err(error) => return Err(target.failed(doing)(error)),
        }
    }
    match last {
        Some(error) => Err(target.failed("create its tables")(error)),
        None => Err(target.unsupported("the tables disappear as soon as they are created")),
    }
}

/// Whether the tables exist, in the version of this program or in one that it upgrades, whose rows it can read. Any
/// other version is an error.
pub fn is_there(client: &mut Client, target: &Target) -> Result<bool, StoreError> {
    is_at_least(UPGRADED, client, target)
}

/// The same, but a version that is to be upgraded is an error, too.
pub fn is_current(client: &mut Client, target: &Target) -> Result<bool, StoreError> {
    is_at_least(VERSION, client, target)
}

fn is_at_least(oldest: i32, client: &mut Client, target: &Target) -> Result<bool, StoreError> {
    match version(client, target)? {
        None => Ok(false),
        Some(found) if (oldest..=VERSION).contains(&found) => Ok(true),
        Some(found) => Err(other_version(target, found)),
    }
}

/// The version of the tables; `None` if there are none.
fn version(client: &mut Client, target: &Target) -> Result<Option<i32>, StoreError> {
    let failed = target.failed("read the version of its tables");
    let exists = client.query_typed(SELECT_TABLES_EXIST, &[]);
    let exists = exists.map_err(&failed)?;
    if !exists.first().is_some_and(|row| row.get(0)) {
        return Ok(None);
    }
    let version = client.query_typed(SELECT_VERSION, &[]).map_err(&failed)?;
    let version = version.first().ok_or_else(|| {
        target.unsupported(
            "the table tallyline.cluster is empty; restore the database, or drop the schema tallyline, and the nodes apply all kept files again",
        )
    })?;
    Ok(Some(version.get(0)))
}

fn other_version(target: &Target, found: i32) -> StoreError {
    let what = match found {
        UPGRADED..VERSION => {
            "was written by an earlier version of tallyline; start a server of this version or run `tallyline process` with it, which upgrade the tables"
        }
        VERSION.. => "is newer than this program; use the newer program",
        _ => "was written by a version of tallyline that this one cannot upgrade",
    };
    target.unsupported(format!(
        "its tables have version {found}, which {what} (this program supports version {VERSION})"
    ))
}

/// Rejects a server without what is needed.
fn check_server(client: &mut Client, target: &Target) -> Result<(), StoreError> {
    let failed = target.failed("read the properties of the server");
    let row = client
        .query_typed(SELECT_SERVER, &[])
        .map_err(&failed)?
        .into_iter()
        .next()
        .ok_or_else(|| target.unsupported("the server does not report its version"))?;
    let (version, encoding): (String, String) = (row.get(0), row.get(1));
    let (read_only, standby): (bool, bool) = (row.get(2), row.get(3));
    let number = version.parse().unwrap_or(0);
    if number < SERVER_VERSION_MIN {
        return Err(target.unsupported(format!(
            "the server has version {}.{}; PostgreSQL 12 or later is required",
            number / 10_000,
            number % 10_000
        )));
    }
    if !["UTF8", "UTF-8"].contains(&&*encoding.to_ascii_uppercase()) {
        return Err(target.unsupported(format!(
            "the database has the encoding {encoding}, in which not every user id can be stored; create it with `createdb --encoding UTF8 --template template0`"
        )));
    }
    if standby {
        return Err(read_only_error(target, "the server is a standby"));
    }
    if read_only {
        return Err(read_only_error(
            target,
            "transactions are read-only here (default_transaction_read_only)",
        ));
    }
    Ok(())
}

/// Not [`StoreError::UnsupportedServer`], because a standby may be promoted.
fn read_only_error(target: &Target, cause: &str) -> StoreError {
    StoreError::Postgres {
        database: target.to_string(),
        doing: "write to it",
        cause: cause.to_owned(),
        code: Some("25006".to_owned()),
        cure: Some(
            "name the primary server in the URL, or all of them, separated by commas".to_owned(),
        ),
    }
}

fn check_rights(client: &mut Client, target: &Target) -> Result<(), StoreError> {
    let failed = target.failed("read the rights of the user");
    let rows = client
        .query_typed(SELECT_MISSING_RIGHTS, &[])
        .map_err(&failed)?;
    let tables: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if tables.is_empty() {
        return Ok(());
    }
    Err(target.unsupported(format!(
        "the user may not read and write {}; as the owner of the tables run `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tallyline TO` with that user",
        tables.join(", ")
    )))
}

fn create(client: &mut Client, target: &Target) -> Result<(), ::postgres::Error> {
    let mut transaction = client.transaction()?;
    lock(&mut transaction)?;
    let exists = |client: &mut ::postgres::Transaction<'_>, what: &str| {
        let rows = client.query_typed(what, &[])?;
        Ok::<_, ::postgres::Error>(rows.first().is_some_and(|row| row.get(0)))
    };
    if exists(&mut transaction, SELECT_TABLES_EXIST)? {
        return Ok(());
    }
    // An administrator may have created the schema, so that the user needs no further right.
    if !exists(
        &mut transaction,
        include_str!("../../../sql/postgres/select_schema_exists.sql"),
    )? {
        transaction.batch_execute(include_str!("../../../sql/postgres/create_schema.sql"))?;
    }
    transaction.batch_execute(SCHEMA)?;
    transaction.execute_typed(
        INSERT_CLUSTER,
        &[(&VERSION, Type::INT4), (&Uuid::new_v4(), Type::UUID)],
    )?;
    transaction.commit()?;
    tracing::info!(database = %target, "created the tables");
    Ok(())
}

fn upgrade(client: &mut Client, target: &Target) -> Result<(), ::postgres::Error> {
    let mut transaction = client.transaction()?;
    lock(&mut transaction)?;
    let version = transaction.query_typed(SELECT_VERSION, &[])?;
    if version.first().map(|row| row.get::<_, i32>(0)) != Some(UPGRADED) {
        return Ok(()); // Another node upgraded them meanwhile.
    }
    transaction.batch_execute(V1_TO_V2)?;
    transaction.commit()?;
    tracing::info!(database = %target, "upgraded the tables from version {UPGRADED} to {VERSION}");
    Ok(())
}

/// Waits for another node that creates or upgrades the tables. Without the right to do so, the statements that
/// follow decide.
fn lock(transaction: &mut ::postgres::Transaction<'_>) -> Result<(), ::postgres::Error> {
    let mut attempt = transaction.transaction()?;
    match attempt.batch_execute(LOCK_SCHEMA) {
        Ok(()) => attempt.commit(),
        Err(error) if error.as_db_error().is_some() => attempt.rollback(),
        Err(error) => Err(error),
    }
}

/// Whether another node created the same objects at the same time.
fn is_race(error: &::postgres::Error) -> bool {
    use ::postgres::error::SqlState;
    error.code().is_some_and(|code| {
        [
            SqlState::UNIQUE_VIOLATION,
            SqlState::DUPLICATE_SCHEMA,
            SqlState::DUPLICATE_TABLE,
            SqlState::DUPLICATE_OBJECT,
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
        ]
        .contains(code)
    })
}

/// The UUID of the database's tables, which distinguishes this database from others.
pub(super) fn cluster_id(
    client: &mut impl GenericClient,
) -> Result<Option<Uuid>, ::postgres::Error> {
    let rows = client.query_typed(
        include_str!("../../../sql/postgres/select_cluster_id.sql"),
        &[],
    )?;
    Ok(rows.first().map(|row| row.get(0)))
}
