//! The sums over all users, which must equal those of the rows after every kind of change.

use super::*;
use crate::event::Micros;

/// The stored sums, which must equal those of the rows: users, events, micros.
fn sums(dir: &TempDir) -> (u64, u64, i128) {
    let path = dir.path().join(DATABASE_FILE);
    let checks = read_checks(&path).expect("a read").expect("a database");
    assert!(checks.agree(), "{checks:?}");
    let readers = Readers::new(&path, 1);
    let overall = readers.overall().expect("a read");
    readers.close();
    assert_eq!(overall, checks.overall);
    (overall.users, overall.events, overall.revenue.0)
}

fn again<'a>(range: &Range<'a>) -> Range<'a> {
    Range {
        delta: Delta { ..range.delta },
        ..*range
    }
}

fn native(number: u64) -> SegmentId {
    SegmentId::Native(number)
}

#[test]
fn new_and_known_users_duplicates_and_conflicts() {
    // More users than one statement has rows, so that both kinds of statements run.
    let (dir, mut writer) = open();
    let names: Vec<String> = (0..150).map(|number| format!("u{number:03}")).collect();
    let new = Lines(
        names
            .iter()
            .map(|name| Lines::event(name, Kind::Add, 10, None))
            .collect(),
    );
    assert_eq!(sums(&dir), (0, 0, 0));
    new.apply(&mut writer, "a", 0, 100);
    assert_eq!(sums(&dir), (100, 100, 1000));
    // Known and new users in one range.
    new.apply(&mut writer, "b", 0, 0);
    new.apply(&mut writer, "c", 0, 150);
    assert_eq!(sums(&dir), (150, 250, 2500));
    let with_ids = Lines(vec![
        Lines::event("u000", Kind::Add, 5, Some("x")),
        Lines::event("only-once", Kind::Subtract, 7, Some("y")),
        Lines::event("u000", Kind::Add, 5, Some("x")),
        Lines::event("never-counted", Kind::Add, 6, Some("x")),
    ]);
    assert_eq!(counts(&with_ids.apply(&mut writer, "d", 0, 4)), (2, 1, 1));
    assert_eq!(sums(&dir), (151, 252, 2498));
    assert_eq!(counts(&with_ids.apply(&mut writer, "e", 0, 4)), (0, 3, 1));
    assert_eq!(sums(&dir), (151, 252, 2498));
}

#[test]
fn an_overflow_replay() {
    let (dir, mut writer) = open();
    let largest = 1_000_000_000_000_000_000;
    let add = |user, id| Lines::event(user, Kind::Add, largest, id);
    // Nine fit. Known and new users are replayed, with and without ids, beside one that is not.
    let mut lines: Vec<_> = (0..6).map(|_| add("known", None)).collect();
    lines.extend((0..6).map(|_| add("known", None)));
    lines.extend((0..12).map(|_| add("new", None)));
    lines.push(add("new", Some("z")));
    lines.push(Lines::event("small", Kind::Add, 1, None));
    lines.push(Lines::event("subtracts", Kind::Subtract, 3, None));
    let lines = Lines(lines);
    lines.apply(&mut writer, "s", 0, 6);
    assert_eq!(sums(&dir), (1, 6, 6 * i128::from(largest)));
    let rest = lines.0.len();
    assert_eq!(counts(&lines.apply(&mut writer, "s", 6, rest)), (14, 0, 7));
    assert_eq!(sums(&dir), (4, 20, 18 * i128::from(largest) - 2));
}

#[test]
fn sums_past_64_bits() {
    let (dir, mut writer) = open();
    let largest = 1_000_000_000_000_000_000;
    let events = (0..20).map(|user| Lines::event(&user.to_string(), Kind::Add, largest, None));
    let lines = Lines(events.collect());
    lines.apply(&mut writer, "s", 0, 20);
    let expected = 20_000_000_000_000_000_000_i128;
    assert_eq!(sums(&dir), (20, 20, expected));
    assert_eq!(
        dump(&dir, "SELECT revenue_micros FROM overall"),
        [expected.to_string()]
    );
    let overall = writer.overall().expect("a read");
    assert_eq!(overall.revenue, Micros(expected));
    assert_eq!(overall.updated_at_ms, Some(1_000_500));
    let events = (0..50).map(|user| Lines::event(&user.to_string(), Kind::Subtract, largest, None));
    Lines(events.collect()).apply(&mut writer, "t", 0, 50);
    assert_eq!(sums(&dir), (50, 70, -30 * i128::from(largest)));
}

#[test]
fn several_segments_in_one_transaction() {
    let (dir, mut writer) = open();
    let largest = 1_000_000_000_000_000_000;
    let first = Lines(
        (0..6)
            .map(|_| Lines::event("u", Kind::Add, largest, None))
            .collect(),
    );
    let second = Lines(vec![
        // Replayed, after an attempt that is rolled back to a savepoint.
        Lines::event("u", Kind::Add, largest, None),
        Lines::event("u", Kind::Add, largest, None),
        Lines::event("v", Kind::Add, 1, None),
    ]);
    let ids = [native(1), native(2)];
    let outcome = first.with_range(&ids[0], 0, 6, RangeEnd::Complete, 1, |a, source_a| {
        second.with_range(&ids[1], 0, 3, RangeEnd::Complete, 2, |b, source_b| {
            writer.apply_together(&mut [(again(a), source_a), (again(b), source_b)])
        })
    });
    let OutcomeOfAll::Applied(applied) = outcome.expect("it applies") else {
        panic!("no other writer");
    };
    assert_eq!(sums(&dir), (2, 9, 8 * i128::from(largest) + 1));
    let seen: Vec<_> = applied
        .iter()
        .map(|applied| applied.overall.events)
        .collect();
    assert_eq!(seen, [6, 9], "after each range");
    assert_eq!(writer.overall().expect("a read"), applied[1].overall);
}

#[test]
fn a_range_that_is_not_committed_changes_nothing() {
    let (dir, mut writer) = open();
    let lines = Lines(vec![
        Lines::event("a", Kind::Add, 1, None),
        Lines::event("b", Kind::Add, 2, None),
    ]);
    lines.apply(&mut writer, "s", 0, 2);
    assert_eq!(lines.apply(&mut writer, "s", 0, 2), Outcome::Raced);
    assert_eq!(sums(&dir), (2, 2, 3));
    // The statement fails after it has updated a row.
    writer
        .connection()
        .execute_batch("CREATE TEMP TRIGGER t BEFORE INSERT ON user_total WHEN NEW.user_id = 'b' BEGIN SELECT raise(ABORT, 'no'); END")
        .expect("a trigger");
    let again = Lines(vec![
        Lines::event("a", Kind::Add, 1, None),
        Lines::event("b", Kind::Add, 2, None),
        Lines::event("new", Kind::Add, 3, None),
    ]);
    let segment = SegmentId::Imported("t".to_owned());
    let failed = again.try_apply(&mut writer, &segment, 0, 3, RangeEnd::Active, 5);
    assert!(failed.is_err(), "the trigger ends it");
    writer
        .connection()
        .execute_batch("DROP TRIGGER t")
        .expect("dropped");
    assert_eq!(sums(&dir), (2, 2, 3));
    again.apply(&mut writer, "t", 0, 3);
    assert_eq!(
        sums(&dir),
        (3, 5, 9),
        "the count of the failed attempt is not used"
    );
}
