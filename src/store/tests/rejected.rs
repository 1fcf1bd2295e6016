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

#[test]
fn the_rejected_lines_of_a_pruned_segment_are_deleted() {
    // Fails if the rows stay behind: they would grow with the number of pruned segments, and a later segment
    // of the same name would show them.
    let lines = Lines(vec![
        Lines::event("u", Kind::Add, 1, Some("x")),
        Lines::event("u", Kind::Add, 2, Some("x")),
    ]);
    let (dir, mut writer) = open();
    let (one, two) = (SegmentId::Native(1), SegmentId::Native(2));
    for segment in [&one, &two] {
        lines.apply_as(&mut writer, segment, 0, 2, RangeEnd::Complete);
    }
    let stored = "SELECT segment, offset FROM rejected_line ORDER BY segment";
    assert_eq!(dump(&dir, stored), ["events-000001|1", "events-000002|1"]);
    let row = writer.segment(&one).expect("a read").expect("a row");
    assert!(writer.prune(&row, 2).expect("pruned"));
    assert_eq!(dump(&dir, stored), ["events-000002|1"]);
    assert_eq!(writer.pruned().expect("a read").counts.rejected, 1);
}

#[test]
fn an_overflow_by_subtractions_alone_is_rejected() {
    // Fails if only large added amounts are replayed line by line: the total would leave 64 bits.
    const HUGE: u64 = 1_000_000_000_000_000_000;
    let lines = Lines(vec![Lines::event("u", Kind::Subtract, HUGE, None); 12]);
    let (dir, mut writer) = open();
    assert_eq!(counts(&lines.apply(&mut writer, "s", 0, 4)), (4, 0, 0));
    assert_eq!(counts(&lines.apply(&mut writer, "s", 4, 12)), (5, 0, 3));
    assert_eq!(dump(&dir, TOTALS), ["u|-9000000000000000000|9"]);
    let stored = "SELECT offset, code FROM rejected_line ORDER BY offset";
    assert_eq!(
        dump(&dir, stored),
        ["9|overflow", "10|overflow", "11|overflow"]
    );
}
