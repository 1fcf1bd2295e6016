//! Checks whether another program has a database open, without changing the database.

use std::path::Path;

use rusqlite::config::DbConfig;

use super::StoreError;
use super::family::Family;
use super::open;

/// Whether another program has the database open. It is used if the `-wal` does not belong to the
/// database: only SQLite's locks are tested, nothing is checkpointed, and read errors other than a lock
/// are ignored.
pub fn is_in_use(path: &Path) -> Result<bool, StoreError> {
    let _open = Family::of(path).enter()?;
    let connection =
        open::open(path, open::reader_flags()).map_err(StoreError::sqlite(path, "open it"))?;
    let doing = StoreError::sqlite(path, "lock it");
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(&doing)?;
    // In WAL mode every open connection holds a shared lock. In this locking mode the read below requests
    // the exclusive lock first.
    connection
        .pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))
        .map_err(&doing)?;
    let read = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
    Ok(read.is_err_and(|error| doing(error).is_locked()))
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::store::{DATABASE_FILE, Existing, Writer};

    #[test]
    fn only_an_open_database_is_in_use() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(DATABASE_FILE);
        let writer = Writer::open(&path, Existing::OrCreate).expect("it opens");
        assert!(is_in_use(&path).expect("examined"), "open");
        drop(writer);
        assert!(!is_in_use(&path).expect("examined"), "closed");
        let reader = Connection::open(&path).expect("it opens");
        reader
            .query_row("SELECT * FROM ledger", [], |_| Ok(()))
            .expect("a read");
        assert!(is_in_use(&path).expect("examined"), "read");
        drop(reader);
        std::fs::write(&path, "nonsense").expect("written");
        assert!(!is_in_use(&path).expect("examined"), "no database at all");
    }
}
