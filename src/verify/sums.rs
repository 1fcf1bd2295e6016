//! Consistency of the database after an unclean shutdown: the sums over all users and over all segments
//! must be equal. They differ, for example, after a backup was copied next to an old `-wal` file.

use uuid::Uuid;

use crate::store::{AppliedSum, Database, IdCount, Overall, StoreError, sibling};

/// Whether the `-wal` file of an SQLite database exists: its last writer did not close it, or it is open now.
/// Must be called before the database is opened.
pub(crate) fn was_left_open(database: &Database) -> bool {
    let wal = database.file().map(|path| sibling(path, "-wal"));
    wal.is_some_and(|wal| wal.try_exists().unwrap_or(true))
}

/// Compares the sums. Returns what differs and what to do; `None` if they agree. Reads every total.
pub(crate) fn difference(
    database: &Database,
    directory: Uuid,
) -> Result<Option<String>, StoreError> {
    let Some(checks) = database.read_checks(directory)? else {
        return Ok(None);
    };
    let cure = "Stop the server and run `tallyline process --rebuild`";
    if checks.segments != checks.totals {
        return Ok(Some(format!(
            "database {database}: its totals have {} events and its segments {}, or their sums differ: it was mixed from two databases. {cure}",
            checks.totals.0, checks.segments.0
        )));
    }
    if checks.applied_sum != checks.applied_rows {
        return Ok(Some(format!(
            "database {database}: {}. {cure}",
            describe_applied_sums(&checks.applied_sum, &checks.applied_rows)
        )));
    }
    if let Some(difference) = overall_difference(&checks.overall, &checks.overall_rows) {
        return Ok(Some(format!("database {database}: {difference}. {cure}")));
    }
    Ok(id_difference(&checks.ids).map(|difference| format!("database {database}: {difference}")))
}

/// Describes the difference between the stored number of ids and that of their rows, and what to do. A rebuild
/// makes the ids of the kept files again, and carries over what is there of the others.
pub(crate) fn id_difference(ids: &IdCount) -> Option<String> {
    let IdCount { stored, of_rows } = ids;
    (!ids.agrees()).then(|| {
        format!(
            "overall has {stored} ids, but event_id and id_block have {of_rows}: the database was mixed from two, so events that are sent again may be counted wrongly. Stop the server and run `tallyline process --rebuild`, which makes the ids of all kept files again; those of pruned segments are in a backup of the database only"
        )
    })
}

/// Describes the difference between the stored sums over all users and those of their rows.
pub(crate) fn overall_difference(stored: &Overall, rows: &Overall) -> Option<String> {
    let of = |sums: &Overall| {
        format!(
            "{} users with {} events and a revenue of {}",
            sums.users, sums.events, sums.revenue
        )
    };
    (!stored.has_sums_of(rows)).then(|| {
        format!(
            "overall has {}, but the rows of user_total have {}",
            of(stored),
            of(rows)
        )
    })
}

/// Describes the difference between the stored sum over all fully applied segments and that of their rows.
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
        "applied_sum has {}, but the rows of the fully applied segments have {}",
        of(sum),
        of(rows)
    )
}
