//! Checks the server, and creates the tables and checks their version.
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
const SELECT_VERSION: &str = include_str!("../../../sql/postgres/select_version.sql");
const SELECT_MISSING_RIGHTS: &str = include_str!("../../../sql/postgres/select_missing_rights.sql");
const INSERT_CLUSTER: &str = include_str!("../../../sql/postgres/insert_cluster.sql");
const LOCK_SCHEMA: &str = include_str!("../../../sql/postgres/lock_schema.sql");

/// The version of the tables, in `cluster.version`.
const VERSION: i32 = 1;
/// The first version of PostgreSQL that is accepted.
const SERVER_VERSION_MIN: i32 = 120_000;
/// How often the creation of the tables is tried while another node does the same.
const TRIES: usize = 10;

/// Creates the tables if the database has none. Fails if this server or its tables cannot be used.
pub fn ensure(client: &mut Client, target: &Target) -> Result<(), StoreError> {
    check_server(client, target)?;
    let mut last = None;
    for _ in 0..TRIES {
        if is_there(client, target)? {
            return check_rights(client, target);
        }
        match create(client, target) {
            // Checked again, which reports another version, too.
            Ok(()) => {}
            Err(error) if is_race(&error) => last = Some(error),
            Err(error) => return Err(target.failed("create its tables")(error)),
        }
    }
    match last {
        Some(error) => Err(target.failed("create its tables")(error)),
        None => Err(target.unsupported("the tables disappear as soon as they are created")),
    }
}

/// Whether the tables exist, in the version of this program. Another version is an error.
pub fn is_there(client: &mut Client, target: &Target) -> Result<bool, StoreError> {
    let failed = target.failed("read the version of its tables");
    let exists = client
        .query_typed("SELECT to_regclass('tallyline.cluster') IS NOT NULL", &[])
        .map_err(&failed)?;
    if !exists.first().is_some_and(|row| row.get(0)) {
        return Ok(false);
    }
    let version = client.query_typed(SELECT_VERSION, &[]).map_err(&failed)?;
    match version.first().map(|row| row.get::<_, i32>(0)) {
        Some(VERSION) => Ok(true),
        Some(found) if found > VERSION => Err(target.unsupported(format!(
            "its tables have version {found}, which is newer than this program, which supports version {VERSION}; use the newer program"
        ))),
        Some(found) => Err(target.unsupported(format!(
            "its tables have version {found}, written by an earlier version of tallyline; this one supports version {VERSION} only"
        ))),
        None => Err(target.unsupported(
            "the table tallyline.cluster is empty; restore the database, or drop the schema tallyline, and the nodes apply all kept files again",
        )),
    }
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
    // Without the lock, the statements below decide.
    let mut attempt = transaction.transaction()?;
    match attempt.batch_execute(LOCK_SCHEMA) {
        Ok(()) => attempt.commit()?,
        Err(error) if error.as_db_error().is_some() => attempt.rollback()?,
        Err(error) => return Err(error),
    }
    let exists = |client: &mut ::postgres::Transaction<'_>, what: &str| {
        let rows = client.query_typed(what, &[])?;
        Ok::<_, ::postgres::Error>(rows.first().is_some_and(|row| row.get(0)))
    };
    if exists(
        &mut transaction,
        "SELECT to_regclass('tallyline.cluster') IS NOT NULL",
    )? {
        return Ok(());
    }
    // An administrator may have created the schema, so that the user needs no further right.
    if !exists(
        &mut transaction,
        "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'tallyline')",
    )? {
        transaction.batch_execute("CREATE SCHEMA tallyline")?;
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
    let rows = client.query_typed("SELECT id FROM tallyline.cluster", &[])?;
    Ok(rows.first().map(|row| row.get(0)))
}
