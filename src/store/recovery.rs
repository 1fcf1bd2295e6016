//! What recovery, a rebuild and a backup read of a database file, each on a connection of its own, while no
//! pool of [`Readers`] exists.
//!
//! [`Readers`]: super::Readers

use std::path::Path;

use rusqlite::config::DbConfig;
use uuid::Uuid;

use super::family::{Family, Reading};
use super::open::{self, Contents};
use super::segments::{all, directory, numbers_in, one, pruned, unfinished};
use super::{Pruned, SegmentRow, StoreError};
use crate::data_dir::segment::{Numbers, SegmentId};

/// A reading connection that does not checkpoint the `-wal` when it is closed; `None` if there is no file.
pub(super) fn open_without_checkpoint(path: &Path) -> Result<Option<Reading>, StoreError> {
    let Some(connection) = open::open_reader(path)? else {
        return Ok(None);
    };
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(StoreError::sqlite(path, "prepare a reading connection"))?;
    Ok(Some(connection))
}

/// The same; also `None` if the database has no tables.
fn open_existing(path: &Path) -> Result<Option<Reading>, StoreError> {
    let Some(connection) = open_without_checkpoint(path)? else {
        return Ok(None);
    };
    let is_empty = open::inspect(&connection, path)? == Contents::Empty;
    Ok((!is_empty).then_some(connection))
}

/// The rows of all segments; see [`read_kept`].
#[cfg(any(test, feature = "testing"))]
pub fn read_segments(path: &Path) -> Result<Vec<SegmentRow>, StoreError> {
    Ok(read_kept(path)?.0)
}

/// The rows of all segments, in key order, and the sum of the pruned ones. The database may be missing,
/// empty or in use. Waits at most half a second for a lock. A `-wal` left by an unclean shutdown is
/// kept: because of it, the next writer checks the sums.
pub fn read_kept(path: &Path) -> Result<(Vec<SegmentRow>, Pruned), StoreError> {
    let Some(connection) = open_existing(path)? else {
        return Ok((Vec::new(), Pruned::default()));
    };
    let read = || -> rusqlite::Result<(Vec<SegmentRow>, Pruned)> {
        let snapshot = connection.unchecked_transaction()?;
        Ok((all(&snapshot)?, pruned(&snapshot)?))
    };
    read().map_err(StoreError::sqlite(path, "read its segments"))
}

/// The rows that recovery needs.
#[derive(Debug, Default)]
pub struct RecoveryRows {
    /// The rows of segments that are not fully applied, and those of the requested numbers.
    pub rows: Vec<SegmentRow>,
    /// The numbers of all other rows: fully applied segments.
    pub applied: Numbers,
    /// The sum of what retention pruned.
    pub pruned: Pruned,
}

/// Like [`read_kept`], but of the fully applied segments only the rows of `numbers` are returned.
pub fn read_for_recovery(path: &Path, numbers: &[u64]) -> Result<RecoveryRows, StoreError> {
    let Some(connection) = open_existing(path)? else {
        return Ok(RecoveryRows::default());
    };
    let read = || -> rusqlite::Result<RecoveryRows> {
        let snapshot = connection.unchecked_transaction()?;
        let mut rows = unfinished(&snapshot)?;
        for &number in numbers {
            if rows.iter().all(|row| row.id.number() != Some(number)) {
                rows.extend(one(&snapshot, &SegmentId::Native(number))?);
            }
        }
        let mut applied = numbers_in(&snapshot)?;
        for number in rows.iter().filter_map(|row| row.id.number()) {
            applied.remove(number);
        }
        Ok(RecoveryRows {
            rows,
            applied,
            pruned: pruned(&snapshot)?,
        })
    };
    read().map_err(StoreError::sqlite(path, "read its segments"))
}

/// The UUID of the data directory that a database belongs to; `None` if there is no database, or if it
/// has no UUID yet.
pub fn read_directory(path: &Path) -> Result<Option<Uuid>, StoreError> {
    let Some(connection) = open_existing(path)? else {
        return Ok(None);
    };
    directory(&connection).map_err(StoreError::sqlite(
        path,
        "read the UUID of its data directory",
    ))
}

/// Discards the `-wal` of a database whose file another program overwrote in place, because the `-wal`
/// belongs to the previous content. Retires all connections of this process.
pub fn discard_wal(path: &Path) {
    Family::of(path).discard_wal();
}
