//! A connection that reads.

use std::cell::Cell;
use std::ops::Deref;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::Token;

/// A reading connection and its token.
pub(in crate::store) struct Reading {
    connection: Connection,
    token: Token,
    noted: Cell<bool>,
}

impl Reading {
    pub(in crate::store) fn new(connection: Connection, token: Token) -> Self {
        Self {
            connection,
            token,
            noted: Cell::new(false),
        }
    }

    /// Notes which files are open. Call it after the connection has read.
    pub(in crate::store) fn note(&self) {
        if !self.noted.replace(true) {
            self.token.note();
        }
    }
}

impl Deref for Reading {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if self.token.is_retired() {
            no_checkpoint(&self.connection);
        }
    }
}

/// Disables the checkpoint on close: closing the connection then neither changes the database file nor
/// removes the `-wal`.
pub(in crate::store) fn no_checkpoint(connection: &Connection) {
    if let Err(error) = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true) {
        tracing::warn!(%error, "a connection to the replaced database may checkpoint as it closes");
    }
}
