//! Readiness for unaccounted lines.
//!
//! Lines are counted when they are appended or found, and counted again as applied, duplicate, rejected or
//! corrupt when they are committed. The two counts must be equal when no line is pending.

use crate::health::Health;

const ACCOUNTING: &str = "accounting";

/// Sets or clears the topic `accounting`. `unaccounted` is the number of lines that were not committed, or,
/// if negative, of lines that were committed but never counted as appended or found.
pub(super) fn report(health: &Health, unaccounted: i64) {
    let lines = unaccounted.unsigned_abs();
    let what = match unaccounted {
        0 => return health.clear(ACCOUNTING),
        1.. => "lines were appended or found, but not counted",
        _ => "more lines were counted than were appended or found",
    };
    health.set(
        ACCOUNTING,
        format!("{lines} {what}: the totals may be wrong; run `tallyline verify`"),
    );
}
