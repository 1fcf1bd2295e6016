//! The tests once per store: with `TALLYLINE_TEST_POSTGRES`, which names a port, each data directory has a
//! database of its own on that server instead of `revenue.db`. See `tests/on_postgres.rs`. What a test reads or
//! changes in the database goes through this module, in statements that both stores have.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;

use postgres::{Client, NoTls};
use rusqlite::Connection;

use super::recount::{Totals, open_database};

/// The variable with the port of the server.
pub(crate) const PORT: &str = "TALLYLINE_TEST_POSTGRES";

/// The URL of the server, without a database; `None` if the tests use SQLite.
fn server() -> Option<String> {
    let port = std::env::var(PORT).ok()?;
    Some(format!("postgres://postgres@127.0.0.1:{port}"))
}

/// Whether the tests use PostgreSQL.
pub(crate) fn is_used() -> bool {
    server().is_some()
}

/// The database of a data directory, which is created if it is missing.
pub(crate) fn url(data: &Path) -> Option<String> {
    let server = server()?;
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    let name = format!("d{:016x}", hasher.finish());
    let mut client = Client::connect(&format!("{server}/postgres"), NoTls).unwrap();
    let sql = "SELECT FROM pg_database WHERE datname = $1";
    if client.query_opt(sql, &[&name]).unwrap().is_none() {
        client
            .batch_execute(&format!("CREATE DATABASE {name}"))
            .unwrap();
    }
    Some(format!("{server}/{name}"))
}

/// The database of the data directory that a command uses.
pub(super) fn database_of(args: &[&str]) -> Option<String> {
    let uses_totals = ["serve", "process", "verify", "query", "rejected"].contains(args.first()?);
    let at = args.iter().position(|&arg| arg == "--data-dir")?;
    let given = args.contains(&"--database");
    url(Path::new(args.get(at + 1)?)).filter(|_| uses_totals && !given)
}

/// Every user's total in a database.
pub(crate) fn totals(url: &str) -> Totals {
    let mut client = Client::connect(url, NoTls).unwrap();
    let sql = "SELECT user_id, sum(revenue_micros)::text, sum(events)::bigint FROM tallyline.user_total GROUP BY user_id";
    let rows = match client.query(sql, &[]) {
        // No node has created the tables yet.
        Err(error) if error.code() == Some(&postgres::error::SqlState::UNDEFINED_TABLE) => vec![],
        rows => rows.unwrap(),
    };
    rows.iter()
        .map(|row| {
            let micros: &str = row.get(1);
            let events: i64 = row.get(2);
            (
                row.get(0),
                (micros.parse().unwrap(), u64::try_from(events).unwrap()),
            )
        })
        .collect()
}

/// The only number of a query.
#[track_caller]
pub(crate) fn number(data: &Path, query: &str) -> i64 {
    match url(data) {
        Some(url) => connect(&url).query_one(query, &[]).unwrap().get(0),
        None => open_database(data)
            .query_row(query, [], |row| row.get(0))
            .unwrap(),
    }
}

/// Changes rows. Fails if there are none to change.
#[track_caller]
pub(crate) fn change(data: &Path, statement: &str) {
    let changed = if let Some(url) = url(data) {
        connect(&url).execute(statement, &[]).unwrap()
    } else {
        let db = Connection::open(data.join("revenue.db")).unwrap();
        db.execute(statement, []).unwrap() as u64
    };
    assert!(changed > 0, "{statement} changes nothing");
}

/// Deletes the totals, and everything else that the database has.
#[track_caller]
pub(crate) fn delete_database(data: &Path) {
    match url(data) {
        Some(url) => connect(&url)
            .batch_execute("DROP SCHEMA tallyline CASCADE")
            .unwrap(),
        None => fs::remove_file(data.join("revenue.db")).unwrap(),
    }
}

/// A connection whose statements need no name of the schema.
fn connect(url: &str) -> Client {
    let mut client = Client::connect(url, NoTls).unwrap();
    client
        .batch_execute("SET search_path TO tallyline")
        .unwrap();
    client
}

/// Keeps others from writing to the database until it is dropped. They can read.
pub(crate) struct Locked {
    _connection: Box<dyn std::any::Any + Send>,
}

impl Locked {
    #[track_caller]
    pub(crate) fn database(data: &Path) -> Self {
        let connection: Box<dyn std::any::Any + Send> = if let Some(url) = url(data) {
            let mut client = connect(&url);
            client
                .batch_execute("BEGIN; LOCK TABLE segment IN EXCLUSIVE MODE")
                .unwrap();
            Box::new(client)
        } else {
            let db = Connection::open(data.join("revenue.db")).unwrap();
            // Also if no other program has it open.
            db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
                .unwrap();
            db.execute_batch("BEGIN IMMEDIATE").unwrap();
            Box::new(db)
        };
        Self {
            _connection: connection,
        }
    }
}
