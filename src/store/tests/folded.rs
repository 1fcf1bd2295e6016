//! Ranges of several segments whose sums are added up: the database is the same as after applying each by itself, or
//! nothing is changed.

use std::collections::BTreeMap;

use super::*;

const HUGE: u64 = 1_000_000_000_000_000_000;

/// The sums of all lines up to the end of each segment.
fn sums_of(segments: &[(&Lines, usize)]) -> UserSums {
    let mut sums = BTreeMap::<&str, Sums>::new();
    for (lines, to) in segments {
        for event in lines.0.iter().take(*to) {
            let sums = sums.entry(&event.user_id).or_default();
            sums.add_event(event.kind, event.amount_micros);
        }
    }
    UserSums::of(sums)
}

fn apply_folded(
    writer: &mut Writer,
    users: &UserSums,
    segments: &[(&Lines, usize)],
) -> Result<OutcomeOfFold, StoreError> {
    with_ranges(segments, |ranges| writer.apply_folded(users, ranges))
}

fn complete(segments: &[Lines]) -> Vec<(&Lines, usize)> {
    segments
        .iter()
        .map(|lines| (lines, lines.0.len()))
        .collect()
}

/// Segments with common users, and ids that come again in the same and in later segments.
fn segments() -> [Lines; 3] {
    let event = |user: &str, kind, amount, id| Lines::event(user, kind, amount, id);
    let mut first: Vec<_> = (0..150)
        .map(|n| event(&format!("user{n:03}"), Kind::Add, n, None))
        .collect();
    first.push(event("z", Kind::Add, 1, Some("x")));
    first.push(event("z", Kind::Add, 1, Some("order-7")));
    first.push(event("z", Kind::Add, 1, Some("x")));
    let second = vec![
        event("z", Kind::Add, 1, Some("x")),
        event("z", Kind::Add, 2, Some("x")),
        event("user007", Kind::Subtract, 5, None),
        event("only-a-duplicate", Kind::Add, 2, Some("order-7")),
        event("z", Kind::Add, 9, Some("order-8")),
    ];
    let third = vec![
        event("z", Kind::Add, 9, Some("order-8")),
        event("user007", Kind::Add, 50, None),
        event("later", Kind::Subtract, 50, None),
    ];
    [first, second, third].map(Lines)
}

#[test]
fn segments_whose_sums_are_added_up_come_to_what_they_do_one_after_the_other() {
    // Fails if an event that does not count stays in the sums or in the row of a segment.
    let segments = segments();
    let (alone, mut writer) = open();
    let mut expected = Vec::new();
    for (lines, name) in segments.iter().zip(["a", "b", "c"]) {
        let id = SegmentId::Imported(name.to_owned());
        match lines.apply_as(&mut writer, &id, 0, lines.0.len(), RangeEnd::Complete) {
            Outcome::Applied(applied) => expected.push(applied.counts),
            Outcome::Raced => panic!("there is no other writer"),
        }
    }
    let all = complete(&segments);
    let (folded, mut writer) = open();
    match apply_folded(&mut writer, &sums_of(&all), &all) {
        Ok(OutcomeOfFold::Applied(applied)) => {
            let counts: Vec<_> = applied.iter().map(|applied| applied.counts).collect();
            assert_eq!(counts, expected);
            assert_eq!(applied[2].overall, writer.overall().expect("it is read"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(everything(&folded), everything(&alone));
}

#[test]
fn if_one_segment_was_applied_before_or_a_total_might_overflow_nothing_is_changed() {
    let plain = Lines(vec![Lines::event("u", Kind::Add, 1, Some("i"))]);
    let rich = Lines(
        (0..6)
            .map(|_| Lines::event("rich", Kind::Add, HUGE, None))
            .collect(),
    );
    let (dir, mut writer) = open();
    plain.apply(&mut writer, "b", 0, 1);
    let before = everything(&dir);
    let raced = [(&plain, 1), (&plain, 1), (&plain, 1)];
    let outcome = apply_folded(&mut writer, &sums_of(&raced), &raced);
    assert!(
        matches!(outcome, Ok(OutcomeOfFold::Raced(1))),
        "{outcome:?}"
    );
    assert_eq!(everything(&dir), before);
    // Two segments, each of which fits alone.
    let (dir, mut writer) = open();
    let before = everything(&dir);
    let both = [(&rich, 4), (&plain, 1), (&rich, 6)];
    let outcome = apply_folded(&mut writer, &sums_of(&both), &both);
    assert!(
        matches!(outcome, Ok(OutcomeOfFold::Separately)),
        "{outcome:?}"
    );
    assert_eq!(everything(&dir), before);
    let one = [(&plain, 1)];
    let outcome = apply_folded(&mut writer, &sums_of(&one), &one);
    assert!(
        matches!(outcome, Ok(OutcomeOfFold::Applied(_))),
        "the lock is free"
    );
}

#[test]
fn sums_that_are_not_those_of_the_segments_are_not_applied() {
    // Fails if an event that was lost between the scan and the sums is only noticed by `verify`.
    let segments = segments();
    let all = complete(&segments);
    let (dir, mut writer) = open();
    let before = everything(&dir);
    for other in [
        &all[..2],
        &[(&segments[0], 5), (&segments[1], 5), (&segments[2], 3)],
    ] {
        let error =
            apply_folded(&mut writer, &sums_of(other), &all).expect_err("events are missing");
        assert!(
            error.to_string().contains("report") || format!("{error:?}").contains("report"),
            "{error:?}"
        );
        assert_eq!(everything(&dir), before);
    }
}
