//! Whether a database adds up after an unclean stop: the totals and the segments must come to the
//! same. A backup copied over next to an old `-wal` breaks exactly this.

use std::path::Path;

use crate::store::{AppliedSum, StoreError, read_checks, sibling};

/// Whether the database was not closed by the one who wrote it last (or is open just now): its
/// `-wal` is there. To be asked before the database is opened.
pub(crate) fn was_left_open(database: &Path) -> bool {
    let wal = sibling(database, "-wal");
    wal.try_exists().unwrap_or(true)
}

/// What is wrong with the sums, and what to do; `None` if they agree. Reads every total.
pub(crate) fn difference(database: &Path) -> Result<Option<String>, StoreError> {
    let Some(checks) = read_checks(database)? else {
        return Ok(None);
    };
    let cure = "Shutdown the server and run `tallyline process --rebuild`";
    if checks.segments != checks.totals {
        return Ok(Some(format!(
            "database {}: its totals hold {} events and its segments {}, or their sums differ: the file was put together from two. {cure}",
            database.display(),
            checks.totals.0,
            checks.segments.0
        )));
    }
    if checks.applied_sum != checks.applied_rows {
        return Ok(Some(format!(
            "database {}: {}. {cure}",
            database.display(),
            describe_applied_sums(&checks.applied_sum, &checks.applied_rows)
        )));
    }
    Ok(None)
}

/// That the kept sum of the wholly applied segments is not what their rows come to.
pub(crate) fn describe_applied_sums(sum: &AppliedSum, rows: &AppliedSum) -> String {
    let of = |sum: &AppliedSum| {
        format!(
            "{} segments ({} native) with {} lines, {} events, {} duplicates, {} rejected and {} corrupt lines",
            sum.segments,
            sum.native,
            sum.counts.lines,
            sum.counts.events,
            sum.counts.duplicates,
            sum.counts.rejected,
            sum.corrupt_lines
        )
    };
    format!(
        "applied_sum holds {}, but the rows of wholly applied segments come to {}",
        of(sum),
        of(rows)
    )
}
