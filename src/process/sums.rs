//! Whether a database adds up after an unclean stop: the totals and the segments must come to the
//! same. A backup copied over next to an old `-wal` breaks exactly this.

use super::ProcessConfig;
use crate::store::{StoreError, read_checks, sibling};

/// Whether the database was not closed by the one who wrote it last (or is open just now): its
/// `-wal` is there. To be asked before the database is opened.
pub(super) fn was_left_open(config: &ProcessConfig) -> bool {
    let wal = sibling(&config.database(), "-wal");
    wal.try_exists().unwrap_or(true)
}

/// What is wrong with the sums, and what to do; `None` if they agree. Reads every total.
pub(super) fn difference(config: &ProcessConfig) -> Result<Option<String>, StoreError> {
    let path = config.database();
    let Some([segments, totals]) = read_checks(&path)?.filter(|[a, b]| a != b) else {
        return Ok(None);
    };
    Ok(Some(format!(
        "database {}: its totals hold {} events and its segments {}, or their sums differ: the file was put together from two. Stop the server and run `tallyline process --rebuild`",
        path.display(),
        totals.0,
        segments.0
    )))
}
