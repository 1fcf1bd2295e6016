//! Which rejected lines of a segment are stored if there are more than [`REJECTED_LINES_MAX`].

use super::*;
use crate::aggregate::REJECTED_LINES_MAX;

#[test]
fn the_first_rejected_lines_of_a_segment_are_stored_however_it_is_divided() {
    // Fails if each range may store as many lines as a segment, so that the table grows with the file; or if
    // the stored lines are not the first ones of the file: ids are looked up in their own order.
    let kept = usize::try_from(REJECTED_LINES_MAX).expect("few");
    let count = kept + 500;
    let events = |amount| {
        let ids = (0..count).rev().map(|number| format!("{number:05}x"));
        Lines(
            ids.map(|id| Lines::event("u", Kind::Add, amount, Some(&id)))
                .collect(),
        )
    };
    let (first, conflicting) = (events(1), events(2));
    let (dir, mut writer) = open();
    let outcome = first.apply(&mut writer, "first", 0, count);
    assert_eq!(counts(&outcome), (count as u64, 0, 0));
    conflicting.apply(&mut writer, "one range", 0, count);
    conflicting.apply(&mut writer, "two ranges", 0, kept - 500);
    conflicting.apply(&mut writer, "two ranges", kept - 500, count);
    let stored =
        "SELECT segment, count(*), min(offset), max(offset) FROM rejected_line GROUP BY segment";
    let last = kept - 1;
    assert_eq!(
        dump(&dir, stored),
        [
            format!("one range|{kept}|0|{last}"),
            format!("two ranges|{kept}|0|{last}")
        ]
    );
    let rejected = "SELECT name, rejected FROM segment WHERE rejected > 0 ORDER BY name";
    assert_eq!(
        dump(&dir, rejected),
        [format!("one range|{count}"), format!("two ranges|{count}")]
    );
}
