//! Connects to PostgreSQL, begins transactions, and gives errors their meaning.
//!
//! An error is one of three kinds:
//! - [`StoreError::Conflict`]: another transaction was in the way (40001, 40P01, 55P03). Repeat the
//!   transaction from its start.
//! - [`StoreError::UnsupportedServer`]: this server or database cannot be used as it is.
//! - [`StoreError::Postgres`]: anything else. The connection must not be used again, and if the error is one of
//!   a commit (a lost connection, 40003, 57014), its outcome is unknown: the caller reads the rows again on a
//!   new connection.

use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::postgres::error::SqlState;
use ::postgres::{Client, Config, Error, IsolationLevel, NoTls, Transaction, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::password::password;
use super::tls::{self, Mode};
use super::url::Url;
use crate::store::StoreError;

/// Limits of the role or the server would abort a large transaction each time, and a lost client must not hold
/// locks forever. They are set in each transaction, because a pooler gives each one another connection. A commit
/// that is not durable could be lost although the processor has deleted the file.
pub(super) const SET_LIMITS: &str = include_str!("../../../sql/postgres/set_limits.sql");

/// Connections that may wait for a response at once. Each has a thread.
const WAITING_MAX: usize = 16;

/// A PostgreSQL database, from the URL of `--database`.
#[derive(Clone)]
pub struct Target {
    url: Arc<Url>,
    /// Connections that have not been opened or refused yet.
    waiting: Arc<AtomicUsize>,
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Target {
    /// Parses a URL. The error does not contain the password.
    pub fn parse(url: &str) -> Result<Self, String> {
        Url::parse(url, &environment).map(|url| Self {
            url: Arc::new(url),
            waiting: Arc::default(),
        })
    }

    /// Whether the URL contains the password.
    pub fn has_password(&self) -> bool {
        self.url.config.get_password().is_some()
    }

    /// Opens a connection. Waits no longer than `connect_timeout` for a server that accepts connections and does
    /// not respond; its thread ends when the server does respond, or the connection is lost.
    pub fn connect(&self) -> Result<Client, StoreError> {
        let timeout = self.url.config.get_connect_timeout().copied();
        let timeout = timeout.unwrap_or(Duration::from_secs(10));
        let no_response = |cause: String| StoreError::Postgres {
            database: self.to_string(),
            doing: "connect to it",
            cause,
            code: None,
            cure: Some("check that the server runs and is not overloaded".to_owned()),
        };
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(no_response(format!(
                "{WAITING_MAX} connections wait for a response"
            )));
        }
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let target = self.clone();
        let connect = move || {
            let connected = target.connect_within_thread();
            target.waiting.fetch_sub(1, Ordering::Relaxed);
            // If the receiver is gone, the connection is closed.
            let _late = sender.send(connected);
        };
        std::thread::Builder::new()
            .name("postgres-connect".to_owned())
            .spawn(connect)
            .map_err(|error| {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                no_response(format!("cannot start a thread: {error}"))
            })?;
        // The time limit of the socket is the same; it has the better message.
        receiver
            .recv_timeout(timeout + Duration::from_secs(1))
            .unwrap_or_else(|_| {
                let seconds = timeout.as_secs();
                Err(no_response(format!("no response within {seconds} s")))
            })
    }

    fn connect_within_thread(&self) -> Result<Client, StoreError> {
        let mut config = self.url.config.clone();
        let refused = |reason| self.unsupported(reason);
        let password = password(&self.url, &environment).map_err(refused)?;
        let without = password.is_none();
        if let Some(password) = password {
            config.password(password);
        }
        let failed = |error: Error| {
            if without && error.code().is_none() && !is_io(&error) && !is_tls(&error) {
                return self.unsupported(format!("cannot connect to it: {}; put the password into PGPASSWORD, into ~/.pgpass (chmod 600), or into a file named by the parameter password_file", cause(&error)));
            }
            self.failed("connect to it")(error)
        };
        match self.url.ssl.mode {
            Mode::Disable => return connect_plain(&mut config).map_err(failed),
            Mode::Prefer => config.ssl_mode(SslMode::Prefer),
            _ => config.ssl_mode(SslMode::Require),
        };
        let tls = tls::client_config(&self.url.ssl, &environment).map_err(refused)?;
        match config.connect(MakeRustlsConnect::new(tls)) {
            // As libpq does: encryption is not required.
            Err(error) if self.url.ssl.mode == Mode::Prefer && is_tls(&error) => {
                connect_plain(&mut config).map_err(failed)
            }
            connected => connected.map_err(failed),
        }
    }

    /// Begins a writing transaction.
    pub fn begin<'c>(&self, client: &'c mut Client) -> Result<Transaction<'c>, StoreError> {
        let failed = self.failed("begin a transaction");
        let mut transaction = client
            .build_transaction()
            .isolation_level(IsolationLevel::ReadCommitted)
            .read_only(false)
            .start()
            .map_err(&failed)?;
        transaction.batch_execute(SET_LIMITS).map_err(&failed)?;
        Ok(transaction)
    }

    /// An error of a server or database that cannot be used as it is.
    pub(super) fn unsupported(&self, reason: impl Into<String>) -> StoreError {
        StoreError::UnsupportedServer {
            database: self.to_string(),
            reason: reason.into(),
        }
    }

    /// Wraps an error of the operation `doing`.
    pub(in crate::store) fn failed(&self, doing: &'static str) -> impl Fn(Error) -> StoreError {
        let target = self.clone();
        move |error| target.describe(doing, &error)
    }

    fn describe(&self, doing: &'static str, error: &Error) -> StoreError {
        let database = self.to_string();
        let cause = cause(error);
        let code = error.code();
        if code.is_some_and(|code| {
            [
                SqlState::T_R_SERIALIZATION_FAILURE,
                SqlState::T_R_DEADLOCK_DETECTED,
                SqlState::LOCK_NOT_AVAILABLE,
            ]
            .contains(code)
        }) {
            return StoreError::Conflict {
                database,
                doing,
                cause,
            };
        }
        if let Some(advice) = code.and_then(refusal) {
            return self.unsupported(format!("cannot {doing}: {cause}; {advice}"));
        }
        StoreError::Postgres {
            database,
            doing,
            cause,
            code: code.map(|code| code.code().to_owned()),
            cure: advice(error).map(str::to_owned),
        }
    }
}

fn connect_plain(config: &mut Config) -> Result<Client, Error> {
    config.ssl_mode(SslMode::Disable).connect(NoTls)
}

/// The text of an error with its causes. That of the server has no prefix.
fn cause(error: &Error) -> String {
    if let Some(database) = error.as_db_error() {
        let detail = database.detail().map(|detail| format!(" ({detail})"));
        return format!("{}{}", database.message(), detail.unwrap_or_default());
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// What to do about an error that only a change of the server, the database or the configuration ends.
fn refusal(code: &SqlState) -> Option<&'static str> {
    match code.code() {
        "28P01" | "28000" => Some(
            "check the user and the password, which may be in PGPASSWORD, in ~/.pgpass (chmod 600), or in the file named by the parameter passfile or password_file, and check pg_hba.conf on the server",
        ),
        "3D000" => Some("create the database with `createdb`, or correct the URL"),
        "42501" => Some(
            "grant the user of the URL the missing right; to create the tables it needs `GRANT CREATE ON DATABASE`, or an administrator runs `CREATE SCHEMA tallyline AUTHORIZATION` with that user",
        ),
        _ => None,
    }
}

/// What to do about any other error; `None` if there is no advice.
fn advice(error: &Error) -> Option<&'static str> {
    if is_tls(error) {
        return Some(
            "the parameter sslmode says how the server's certificate is checked, and sslrootcert names the file with the certificate of its issuer",
        );
    }
    match error.code().map(SqlState::code) {
        Some("25006") => Some(
            "the server is read-only or a standby; name the primary server in the URL, or all of them, separated by commas",
        ),
        Some("53300") => Some("raise max_connections, or use a pooler such as pgbouncer"),
        Some("53100") => Some("free some space on the server's disk"),
        Some("57P01" | "57P02" | "57P03") => Some("it is tried again when the server is back"),
        _ => None,
    }
}

/// Whether an error is one of the network or the system.
fn is_io(error: &Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if error.is::<std::io::Error>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Whether an error is one of TLS.
fn is_tls(error: &Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if error.is::<rustls::Error>() {
            return true;
        }
        // The source of an I/O error is that of the error inside it.
        let inside = error.downcast_ref::<std::io::Error>();
        if inside
            .and_then(std::io::Error::get_ref)
            .is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
        {
            return true;
        }
        source = error.source();
    }
    false
}

/// The URL without its password.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url.shown)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url.shown)
    }
}
