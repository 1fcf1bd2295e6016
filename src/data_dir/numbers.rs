//! Helpers for segment numbers: gaps in a series, and text for messages.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// The maximum number of missing segments that are listed one by one. It bounds the work if a file has
/// a number far above all others.
pub(crate) const MISSING_MAX: usize = 10_000;

/// The numbers in `[from, to)` that are in none of the ascending ranges.
pub(crate) fn gaps(
    from: u64,
    to: u64,
    ranges: impl Iterator<Item = RangeInclusive<u64>>,
) -> impl Iterator<Item = u64> {
    let mut next = from;
    ranges.chain([to..=to]).flat_map(move |range| {
        let gap = next..(*range.start()).min(to);
        next = next.max(range.end().saturating_add(1));
        gap
    })
}

/// The numbers as text, such as `3, 5 to 7`.
pub(crate) fn ranges(numbers: &BTreeSet<u64>) -> String {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let named: Vec<String> = ranges
        .iter()
        .map(|&(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first}, {last}"),
            _ => format!("{first} to {last}"),
        })
        .collect();
    named.join(", ")
}
