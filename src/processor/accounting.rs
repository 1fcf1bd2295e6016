//! Lines that are unaccounted for, in readiness.
//!
//! Lines are counted where they are written or found, their fates where they are committed; once
//! nothing waits the two sides must be equal.

use crate::health::Health;

const ACCOUNTING: &str = "accounting";

/// Says so in readiness while lines without a fate, or (negative) fates without a line, stay.
pub(super) fn report(health: &Health, unaccounted: i64) {
    let off = unaccounted.unsigned_abs();
    let words = match unaccounted {
        0 => return health.clear(ACCOUNTING),
        1.. => "lines were appended or found and came to nothing",
        _ => "lines more were counted than were appended or found",
    };
    health.set(
        ACCOUNTING,
        format!("{off} {words}: the totals may be wrong. Run `tallyline verify`"),
    );
}
