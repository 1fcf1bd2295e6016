//! Tests of the store alone, with ranges built by the tests.

mod folded;
mod ids;
mod overall;
mod overwritten;
mod rejected;
mod upgrade;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::aggregate::delta::signed;
use crate::data_dir::segment::SegmentId;
use crate::event::{Event, Kind};

/// The lines of one segment; the offset of a line is its index.
struct Lines(Vec<Event<'static>>);

impl Lines {
    fn event(user: &str, kind: Kind, amount_micros: u64, id: Option<&str>) -> Event<'static> {
        Event {
            user_id: user.to_owned().into(),
            kind,
            amount_micros,
            id: id.map(|id| id.to_owned().into()),
        }
    }

    fn apply(&self, writer: &mut Writer, name: &str, from: usize, to: usize) -> Outcome {
        let segment = SegmentId::Imported(name.to_owned());
        self.apply_as(writer, &segment, from, to, RangeEnd::Active)
    }

    fn apply_as(
        &self,
        writer: &mut Writer,
        segment: &SegmentId,
        from: usize,
        to: usize,
        end: RangeEnd,
    ) -> Outcome {
        self.apply_at(writer, segment, from, to, end, 1_000_500)
    }

    fn apply_at(
        &self,
        writer: &mut Writer,
        segment: &SegmentId,
        from: usize,
        to: usize,
        end: RangeEnd,
        now_ms: i64,
    ) -> Outcome {
        self.try_apply(writer, segment, from, to, end, now_ms)
            .expect("it applies")
    }

    fn try_apply(
        &self,
        writer: &mut Writer,
        segment: &SegmentId,
        from: usize,
        to: usize,
        end: RangeEnd,
        now_ms: i64,
    ) -> Result<Outcome, StoreError> {
        self.with_range(segment, from, to, end, now_ms, |range, source| {
            writer.apply(range, source)
        })
    }

    fn with_range<T>(
        &self,
        segment: &SegmentId,
        from: usize,
        to: usize,
        end: RangeEnd,
        now_ms: i64,
        then: impl FnOnce(&Range<'_>, &mut dyn Source) -> T,
    ) -> T {
        let mut sums = std::collections::BTreeMap::<&str, Sums>::new();
        let mut with_id = IdEvents::default();
        let mut net_check = 0i64;
        for (offset, event) in self.0.iter().enumerate().take(to).skip(from) {
            sums.entry(&event.user_id)
                .or_default()
                .add_event(event.kind, event.amount_micros);
            net_check = net_check.wrapping_add(signed(event.kind, event.amount_micros));
            if let Some(id) = &event.id {
                with_id.push(offset as u64, id, event);
            }
        }
        let users = UserSums::of(sums);
        let range = Range {
            tag: None,
            label: None,
            segment,
            file_name: "s",
            from: from as u64,
            to: to as u64,
            checksum: 7,
            end,
            now_ms,
            delta: Delta {
                users: &users,
                with_id: &with_id,
                rejected: &[],
                rejected_count: 0,
                lines: (to - from) as u64,
                net_check,
            },
        };
        let mut source = Part {
            lines: self,
            from,
            to,
        };
        then(&range, &mut source)
    }
}

struct Part<'a> {
    lines: &'a Lines,
    from: usize,
    to: usize,
}

impl Source for Part<'_> {
    fn lines_of(&mut self, users: &HashSet<String>) -> io::Result<Vec<UserLine>> {
        let part = self
            .lines
            .0
            .iter()
            .enumerate()
            .take(self.to)
            .skip(self.from);
        let mine = part.filter(|(_, event)| event.id.is_none() && users.contains(&*event.user_id));
        Ok(mine
            .map(|(offset, event)| UserLine {
                offset: offset as u64,
                user_id: event.user_id.to_string(),
                kind: event.kind,
                amount_micros: event.amount_micros,
            })
            .collect())
    }

    fn line_at(&mut self, offset: u64) -> io::Result<Vec<u8>> {
        Ok(format!("line {offset}").into_bytes())
    }
}

fn open() -> (TempDir, Writer) {
    let dir = tempfile::tempdir().expect("a directory");
    let writer =
        Writer::open(&dir.path().join(DATABASE_FILE), Existing::OrCreate).expect("it opens");
    (dir, writer)
}

fn counts(outcome: &Outcome) -> (u64, u64, u64) {
    match outcome {
        Outcome::Applied(Applied { counts, .. }) => {
            (counts.events, counts.duplicates, counts.rejected)
        }
        Outcome::Raced => panic!("the range was applied already"),
    }
}

fn dump(dir: &TempDir, sql: &str) -> Vec<String> {
    let connection = Connection::open(dir.path().join(DATABASE_FILE)).expect("it opens");
    let mut statement = connection.prepare(sql).expect("a statement");
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let values: rusqlite::Result<Vec<_>> = (0..columns)
            .map(|at| {
                row.get_ref(at).map(|value| match value {
                    rusqlite::types::ValueRef::Integer(number) => number.to_string(),
                    rusqlite::types::ValueRef::Real(number) => number.to_string(),
                    rusqlite::types::ValueRef::Text(text) => {
                        String::from_utf8_lossy(text).into_owned()
                    }
                    other => format!("{other:?}"),
                })
            })
            .collect();
        Ok(values?.join("|"))
    });
    rows.expect("rows").map(|row| row.expect("a row")).collect()
}

const TOTALS: &str = "SELECT user_id, revenue_micros, events FROM user_total ORDER BY user_id";

#[test]
fn a_range_is_applied_once() {
    let (dir, mut writer) = open();
    let lines = Lines(vec![
        Lines::event("a", Kind::Add, 100, None),
        Lines::event("b", Kind::Subtract, 30, None),
        Lines::event("a", Kind::Subtract, 40, None),
    ]);
    assert_eq!(counts(&lines.apply(&mut writer, "s", 0, 2)), (2, 0, 0));
    assert_eq!(lines.apply(&mut writer, "s", 0, 2), Outcome::Raced);
    assert_eq!(lines.apply(&mut writer, "s", 1, 3), Outcome::Raced);
    assert_eq!(lines.apply(&mut writer, "other", 1, 3), Outcome::Raced);
    assert_eq!(counts(&lines.apply(&mut writer, "s", 2, 3)), (1, 0, 0));
    assert_eq!(dump(&dir, TOTALS), ["a|60|2", "b|-30|1"]);
    let row = writer
        .segment(&SegmentId::Imported("s".into()))
        .expect("a read")
        .expect("a row");
    assert_eq!((row.applied_bytes, row.net_check, row.key), (3, 30, -1));
    let path = dir.path().join(DATABASE_FILE);
    let checks = read_checks(&path).expect("a read").expect("a database");
    assert_eq!((checks.segments, checks.totals), ((3, 30), (3, 30)));
    let view = "SELECT * FROM user_revenue WHERE user_id = 'a'";
    assert_eq!(
        dump(&dir, view),
        ["a|0.00006|2|1970-01-01T00:16:40.500Z|60"]
    );
}

/// The stored sum of applied segments, which must equal the sum over their rows.
fn applied_sum(dir: &TempDir) -> AppliedSum {
    let path = dir.path().join(DATABASE_FILE);
    let checks = read_checks(&path).expect("a read").expect("a database");
    assert!(checks.agree(), "{checks:?}");
    checks.applied_sum
}

#[test]
fn the_stored_sum_of_applied_segments_follows_every_change() {
    let (dir, mut writer) = open();
    let lines = Lines(vec![
        Lines::event("a", Kind::Add, 100, None),
        Lines::event("b", Kind::Add, 30, Some("1")),
        Lines::event("b", Kind::Add, 30, Some("1")),
    ]);
    let whole = |writer: &mut Writer, segment: &SegmentId, from: usize| {
        lines.apply_as(writer, segment, from, 3, RangeEnd::Complete)
    };
    let (native, imported) = (SegmentId::Native(1), SegmentId::Imported("s".into()));
    lines.apply_as(&mut writer, &native, 0, 2, RangeEnd::Active);
    assert_eq!(applied_sum(&dir), AppliedSum::default(), "still active");
    whole(&mut writer, &native, 2);
    assert_eq!(whole(&mut writer, &native, 2), Outcome::Raced);
    whole(&mut writer, &imported, 0);
    let sum = applied_sum(&dir);
    assert_eq!((sum.segments, sum.native, sum.counts.lines), (2, 1, 6));
    assert_eq!((sum.counts.events, sum.counts.duplicates), (3, 3));
    // Marked as applied, like an empty file.
    let marked = SegmentId::Native(2);
    let mark = Mark {
        segment: &marked,
        tag: None,
        file_name: "f",
        applied_bytes: 0,
        state: SegmentState::Applied,
        reason: None,
        corrupt_bytes: 0,
        corrupt_lines: 0,
        now_ms: 1,
    };
    assert!(writer.mark(&mark).expect("it is noted"));
    assert!(!writer.mark(&mark).expect("marked"), "applied already");
    assert_eq!(
        (applied_sum(&dir).segments, applied_sum(&dir).native),
        (3, 2)
    );
    let ledger = writer.ledger().expect("a read");
    assert_eq!((ledger.lines, ledger.applied, ledger.duplicates), (6, 3, 3));
    // Pruning keeps the ledger. A row that has changed since it was read stays, also in the sum.
    let row = writer.segment(&native).expect("a read").expect("a row");
    let other = SegmentRow {
        checksum: 8,
        ..row.clone()
    };
    assert!(!writer.prune(&other, 2).expect("pruned"));
    assert_eq!(applied_sum(&dir).segments, 3);
    assert!(writer.prune(&row, 2).expect("pruned"));
    let sum = applied_sum(&dir);
    assert_eq!((sum.segments, sum.native, sum.counts.lines), (2, 1, 3));
    assert_eq!(writer.ledger().expect("a read"), ledger);
    let readers = Readers::new(&dir.path().join(DATABASE_FILE), 1);
    let counts = readers.segment_counts().expect("a read");
    assert_eq!(counts, [(SegmentState::Applied, 2)]);
}

#[test]
fn numbers_are_ranges_with_and_without_gaps() {
    let (_dir, mut writer) = open();
    let lines = Lines(vec![Lines::event("a", Kind::Add, 1, None)]);
    for (number, end, expected) in [
        (5, RangeEnd::Complete, vec![5..=5]),
        (6, RangeEnd::Active, vec![5..=6]),
        (9, RangeEnd::Complete, vec![5..=6, 9..=9]),
        (7, RangeEnd::Sealed, vec![5..=7, 9..=9]),
        (8, RangeEnd::Complete, vec![5..=9]),
    ] {
        lines.apply_as(&mut writer, &SegmentId::Native(number), 0, 1, end);
        let numbers = writer.numbers().expect("a read");
        assert_eq!(numbers.ranges().collect::<Vec<_>>(), expected);
        for at in 1..12 {
            let is_in = expected.iter().any(|range| range.contains(&at));
            assert_eq!(numbers.contains(at), is_in, "{at} of {expected:?}");
        }
    }
}

#[test]
fn an_id_counts_once_and_a_conflict_is_rejected() {
    let (dir, mut writer) = open();
    let lines = Lines(vec![
        Lines::event("a", Kind::Add, 1, Some("x")),
        Lines::event("a", Kind::Add, 1, Some("x")),
        Lines::event("a", Kind::Add, 2, Some("x")),
        Lines::event("b", Kind::Add, 1, Some("x")),
        Lines::event("a", Kind::Subtract, 1, Some("x")),
        Lines::event("a", Kind::Add, 1, Some("w")),
    ]);
    assert_eq!(counts(&lines.apply(&mut writer, "s", 0, 6)), (2, 1, 3));
    assert_eq!(counts(&lines.apply(&mut writer, "resent", 0, 2)), (0, 2, 0));
    assert_eq!(dump(&dir, TOTALS), ["a|2|2"]);
    let rejected = dump(
        &dir,
        "SELECT segment, offset, code, line FROM rejected_line",
    );
    assert_eq!(
        rejected,
        [
            "s|2|id_conflict|line 2",
            "s|3|id_conflict|line 3",
            "s|4|id_conflict|line 4"
        ]
    );
    assert_eq!(
        dump(
            &dir,
            "SELECT id, segment, offset, applied_at_s FROM event_id"
        ),
        ["w|-1|5|1000", "x|-1|0|1000"]
    );
}

/// The set of lines that overflow must not depend on how the file is divided into ranges.
#[test]
fn overflow_is_rejected_independently_of_the_ranges() {
    const HUGE: u64 = 1_000_000_000_000_000_000;
    let mut events = vec![Lines::event("z", Kind::Add, 1, None)];
    events.extend((0..12).map(|_| Lines::event("a", Kind::Add, HUGE, None)));
    events.push(Lines::event("a", Kind::Add, HUGE, Some("late")));
    events.push(Lines::event("a", Kind::Subtract, 5 * HUGE, None));
    events.push(Lines::event("a", Kind::Add, 1, Some("late")));
    events.push(Lines::event("b", Kind::Add, 1, Some("late")));
    events.push(Lines::event("a", Kind::Add, HUGE, Some("again")));
    events.extend((0..30).map(|_| Lines::event("a", Kind::Subtract, HUGE, None)));
    let lines = Lines(events);
    let count = lines.0.len();
    let mut outcomes = HashSet::new();
    for step in [1, 2, 3, 7, count] {
        let (dir, mut writer) = open();
        for from in (0..count).step_by(step) {
            lines.apply(&mut writer, "s", from, count.min(from + step));
        }
        outcomes.insert((
            dump(&dir, TOTALS),
            dump(&dir, "SELECT offset, code FROM rejected_line ORDER BY offset"),
            dump(&dir, "SELECT events, duplicates, rejected, net_check, id_events, id_net_check FROM segment"),
            dump(&dir, "SELECT id, offset FROM event_id"),
        ));
    }
    assert_eq!(outcomes.len(), 1, "{outcomes:#?}");
    let (totals, rejected, ..) = outcomes.into_iter().next().expect("one");
    assert_eq!(totals.len(), 2);
    assert_eq!(
        rejected[..5],
        [
            "10|overflow",
            "11|overflow",
            "12|overflow",
            "13|overflow",
            "16|id_conflict"
        ]
    );
}

/// The ranges `[0, to)` of segments `a`, `b`, ... of these lines, in one transaction.
fn apply_together(writer: &mut Writer, segments: &[(&Lines, usize)]) -> OutcomeOfAll {
    with_ranges(segments, |ranges| {
        writer.apply_together(ranges).expect("it applies")
    })
}

/// Calls `then` with the ranges `[0, to)` of segments `a`, `b`, ... of these lines.
fn with_ranges<T>(
    segments: &[(&Lines, usize)],
    then: impl FnOnce(&mut [(Range<'_>, &mut dyn Source)]) -> T,
) -> T {
    fn next<T>(
        rest: &[(&Lines, usize)],
        ranges: Vec<(Range<'_>, &mut dyn Source)>,
        then: impl FnOnce(&mut [(Range<'_>, &mut dyn Source)]) -> T,
    ) -> T {
        let mut ranges = ranges;
        let Some(((lines, to), rest)) = rest.split_first() else {
            return then(&mut ranges);
        };
        let name = char::from(b'a' + u8::try_from(ranges.len()).unwrap_or(0));
        let segment = SegmentId::Imported(name.to_string());
        lines.with_range(
            &segment,
            0,
            *to,
            RangeEnd::Complete,
            1_000_500,
            |range, source| {
                let range = Range {
                    segment: range.segment,
                    file_name: range.file_name,
                    delta: Delta { ..range.delta },
                    ..*range
                };
                let mut all: Vec<(Range<'_>, &mut dyn Source)> = Vec::new();
                for (range, source) in ranges {
                    all.push((range, source));
                }
                all.push((range, source));
                next(
                    rest,
                    all,
                    Box::new(then)
                        as Box<dyn FnOnce(&mut [(Range<'_>, &mut dyn Source)]) -> T + '_>,
                )
            },
        )
    }
    next(segments, Vec::new(), then)
}

/// All that the database holds but for when.
fn everything(dir: &TempDir) -> Vec<Vec<String>> {
    [
        TOTALS,
        "SELECT segment, offset, code, line FROM rejected_line ORDER BY segment, offset",
        "SELECT name, state, applied_bytes, lines, events, duplicates, rejected, net_check, id_events, id_net_check FROM segment ORDER BY name",
        "SELECT id, segment, offset FROM event_id ORDER BY id",
        "SELECT segments, lines, events, duplicates, rejected FROM applied_sum",
    ]
    .map(|sql| dump(dir, sql))
    .into()
}

/// Users of whom a total overflows, ids that come again in a later segment, and one that contradicts.
#[test]
fn segments_applied_together_have_the_same_totals_as_one_by_one() {
    const HUGE: u64 = 1_000_000_000_000_000_000;
    let huge = || Lines::event("rich", Kind::Add, HUGE, None);
    let mut first = vec![Lines::event("z", Kind::Add, 1, Some("x"))];
    first.extend((0..6).map(|_| huge()));
    let mut second = vec![
        Lines::event("z", Kind::Add, 1, Some("x")),
        Lines::event("z", Kind::Add, 2, Some("x")),
        Lines::event("poor", Kind::Subtract, 5, None),
    ];
    second.extend((0..6).map(|_| huge()));
    let third = vec![
        Lines::event("rich", Kind::Add, 1, Some("late")),
        Lines::event("rich", Kind::Subtract, HUGE, None),
        huge(),
        huge(),
    ];
    let segments = [first, second, third].map(Lines);
    let (alone, mut writer) = open();
    let mut expected = Vec::new();
    for (lines, name) in segments.iter().zip(["a", "b", "c"]) {
        let id = SegmentId::Imported(name.to_owned());
        match lines.apply_as(&mut writer, &id, 0, lines.0.len(), RangeEnd::Complete) {
            Outcome::Applied(applied) => expected.push(applied),
            Outcome::Raced => panic!("there is no other writer"),
        }
    }
    let (together, mut writer) = open();
    let all: Vec<_> = segments
        .iter()
        .map(|lines| (lines, lines.0.len()))
        .collect();
    let outcome = apply_together(&mut writer, &all);
    assert_eq!(outcome, OutcomeOfAll::Applied(expected));
    assert_eq!(everything(&together), everything(&alone));
    let rejected = dump(&together, "SELECT count(*) FROM rejected_line");
    assert_ne!(rejected, ["0"], "some overflow");
}

#[test]
fn of_segments_applied_together_none_is_where_one_was_applied_before() {
    let lines = Lines(vec![Lines::event("u", Kind::Add, 1, None)]);
    let (dir, mut writer) = open();
    lines.apply(&mut writer, "b", 0, 1);
    let before = everything(&dir);
    let outcome = apply_together(&mut writer, &[(&lines, 1), (&lines, 1), (&lines, 1)]);
    assert_eq!(outcome, OutcomeOfAll::Raced(1));
    assert_eq!(everything(&dir), before);
    let outcome = apply_together(&mut writer, &[(&lines, 1)]);
    assert!(
        matches!(outcome, OutcomeOfAll::Applied(_)),
        "the lock is free"
    );
}

#[test]
fn batched_rows_have_the_same_result_as_single_rows() {
    const HUGE: u64 = 1_000_000_000_000_000_000;
    let mut events: Vec<_> = (0..9)
        .map(|n| Lines::event("user050", Kind::Add, HUGE, (n > 7).then_some("x")))
        .collect();
    for n in 0..300 {
        let user = format!("user{:03}", n % 150);
        events.push(Lines::event(&user, Kind::Add, HUGE / 5 + n, None));
        // Every seventh id occurs twice: with the same payload or, for another user, with a different one.
        let id = format!("id-{}", if n % 7 == 0 { n / 2 } else { n });
        events.push(Lines::event(&user, Kind::Add, 1, Some(&id)));
    }
    let lines = Lines(events);
    let count = lines.0.len();
    let mut outcomes = HashSet::new();
    for step in [1, 9, 100, 300, count] {
        let (dir, mut writer) = open();
        let mut from = 0;
        // With the first nine in a range of their own, only the table shows that a total may overflow.
        for to in (9..count).step_by(step).chain([count]) {
            lines.apply(&mut writer, "s", from, to);
            from = to;
        }
        outcomes.insert((
            dump(&dir, TOTALS),
            dump(&dir, "SELECT offset, code FROM rejected_line ORDER BY offset"),
            dump(&dir, "SELECT events, duplicates, rejected, net_check, id_events, id_net_check FROM segment"),
            dump(&dir, "SELECT id, payload, segment, offset, applied_at_s FROM event_id"),
        ));
    }
    assert_eq!(outcomes.len(), 1, "{outcomes:#?}");
    let (totals, rejected, segment, ids) = outcomes.into_iter().next().expect("one");
    assert_eq!(totals.len(), 150);
    let has = |code: &str| rejected.iter().any(|line| line.ends_with(code));
    assert!(has("overflow") && has("id_conflict"), "{rejected:?}");
    assert!(ids.len() < 301, "{segment:?}");
}

#[test]
fn a_first_load_runs_without_a_wal_and_later_writes_with_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(DATABASE_FILE);
    let wal = dir.path().join(format!("{DATABASE_FILE}-wal"));
    let lines = Lines(vec![Lines::event("a", Kind::Add, 1, None); 3]);
    let mut writer = Writer::open_to_load(&path).expect("it opens");
    lines.apply(&mut writer, "s", 0, 1);
    assert!(!wal.exists());
    assert_eq!(dump(&dir, "SELECT events FROM user_total"), ["1"]);
    lines.apply(&mut writer, "s", 1, 2);
    assert!(wal.exists());
    writer.close().expect("it closes");
    assert!(!wal.exists());
    // The database is not empty any more.
    let mut writer = Writer::open_to_load(&path).expect("it opens");
    lines.apply(&mut writer, "s", 2, 3);
    assert!(wal.exists());
    writer.close().expect("it closes");
    assert_eq!(dump(&dir, "SELECT events FROM user_total"), ["3"]);
    let files = std::fs::read_dir(dir.path()).expect("a directory").count();
    assert_eq!(files, 1);
}

#[test]
fn a_newer_database_and_one_of_another_program_are_rejected() {
    let (dir, writer) = open();
    writer.close().expect("it closes");
    let path = dir.path().join(DATABASE_FILE);
    let connection = Connection::open(&path).expect("it opens");
    connection
        .pragma_update(None, "user_version", 99)
        .expect("a version");
    drop(connection);
    assert!(matches!(
        Writer::open(&path, Existing::OrCreate),
        Err(StoreError::Newer { found: 99, .. })
    ));
    assert!(matches!(
        read_segments(&path),
        Err(StoreError::Newer { .. })
    ));
    let other = dir.path().join("other.db");
    Connection::open(&other)
        .and_then(|c| c.execute_batch("CREATE TABLE t (a)"))
        .expect("a table");
    assert!(matches!(
        Writer::open(&other, Existing::OrCreate),
        Err(StoreError::NotOurs { .. })
    ));
}

#[test]
fn a_clean_close_leaves_one_file_and_a_missing_database_reads_as_empty() {
    let (dir, mut writer) = open();
    let path = dir.path().join(DATABASE_FILE);
    let readers = Readers::new(&dir.path().join("missing.db"), 2);
    assert_eq!(readers.user("a").expect("no error"), None);
    let readers = Readers::new(&path, 2);
    assert_eq!(readers.user("a").expect("no error"), None);
    Lines(vec![Lines::event("a", Kind::Add, 5, None)]).apply(&mut writer, "s", 0, 1);
    assert_eq!(
        readers
            .user("a")
            .expect("no error")
            .map(|user| user.revenue.0),
        Some(5)
    );
    let several = readers
        .users_by_id(&["b", "a", "A", "a"])
        .expect("no error");
    let ids = several
        .into_iter()
        .map(|user| user.map(|user| user.user_id));
    let a = || Some("a".to_owned());
    assert_eq!(ids.collect::<Vec<_>>(), [None, a(), None, a()]);
    readers.close();
    writer.close().expect("it closes");
    let names = |dir: &TempDir| -> Vec<_> {
        let entries = std::fs::read_dir(dir.path()).expect("a listing");
        entries
            .map(|entry| entry.expect("an entry").file_name())
            .collect()
    };
    assert_eq!(names(&dir), [DATABASE_FILE]);
    assert_eq!(dump(&dir, "PRAGMA journal_mode"), ["delete"]);
    assert_eq!(read_segments(&path).expect("rows").len(), 1);
    let user = readers.user("a").expect("no error");
    let overall = readers.overall().expect("no error");
    assert_eq!(overall.events, 1);
    assert_eq!(overall.updated_at_ms, user.map(|user| user.updated_at_ms));
    readers.close();
    assert_eq!(
        names(&dir),
        [DATABASE_FILE],
        "a reader leaves nothing behind"
    );
}

#[test]
fn pages_cover_every_user_once_in_order() {
    let (dir, mut writer) = open();
    let users = ["é", "a", "b%", "c", "", "zz"];
    let lines = Lines(
        users
            .iter()
            .filter(|user| !user.is_empty())
            .enumerate()
            .map(|(at, user)| Lines::event(user, Kind::Add, at as u64 / 2, None))
            .collect(),
    );
    lines.apply(&mut writer, "s", 0, lines.0.len());
    let readers = Readers::new(&dir.path().join(DATABASE_FILE), 1);
    let all = |order| {
        let mut seen = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let listing = Listing {
                cursor: cursor.as_deref(),
                ..Listing::first(order, 2)
            };
            let page = readers.users(&listing).expect("a read").expect("a page");
            assert!(page.users.len() <= 2);
            seen.extend(page.users.into_iter().map(|user| user.user_id));
            cursor = page.next;
            if cursor.is_none() {
                break seen;
            }
        }
    };
    for (order, expected) in [
        (Order::UserId, ["a", "b%", "c", "zz", "é"]),
        (Order::Revenue, ["a", "é", "b%", "c", "zz"]),
        (Order::RevenueDescending, ["zz", "b%", "c", "a", "é"]),
    ] {
        assert_eq!(all(order), expected, "{order:?}");
    }
    for bad in ["", "x", "u", "u1.zz", "u1.abc", "r1.61", "u.61"] {
        let listing = Listing {
            cursor: Some(bad),
            ..Listing::first(Order::UserId, 2)
        };
        assert_eq!(readers.users(&listing).expect("a read"), None, "{bad}");
    }
}

#[test]
fn a_prefix_selects_exactly_the_users_that_start_with_it() {
    let (dir, mut writer) = open();
    // Neighbours of each prefix in the order of bytes, and texts that LIKE or GLOB would match.
    let users = [
        "a",
        "aa",
        "a%",
        "a_",
        "a\u{10ffff}",
        "a\u{10ffff}z",
        "b",
        "A",
        "ab*",
        "abc",
        "ab",
        "é",
        "e",
        "\u{10ffff}",
        "\u{10ffff}\u{10ffff}",
        "\u{e000}",
        "\u{d7ff}",
    ];
    let events = users
        .iter()
        .zip(1u64..)
        .map(|(user, amount)| Lines::event(user, Kind::Add, amount * 7 % 10, None));
    let lines = Lines(events.collect());
    lines.apply(&mut writer, "s", 0, users.len());
    let readers = Readers::new(&dir.path().join(DATABASE_FILE), 1);
    for prefix in [
        "",
        "a",
        "a%",
        "a_",
        "ab",
        "abcd",
        "A",
        "é",
        "a\u{10ffff}",
        "\u{10ffff}",
        "\u{d7ff}",
        "z",
    ] {
        for order in [Order::UserId, Order::Revenue, Order::RevenueDescending] {
            let mut expected: Vec<_> = users
                .iter()
                .filter(|user| user.starts_with(prefix))
                .collect();
            expected.sort();
            let mut seen = Vec::new();
            let mut cursor: Option<String> = None;
            loop {
                let listing = Listing {
                    prefix,
                    cursor: cursor.as_deref(),
                    ..Listing::first(order, 3)
                };
                let page = readers.users(&listing).expect("a read").expect("a page");
                seen.extend(page.users);
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            let key = |user: &UserTotal| match order {
                Order::UserId => 0,
                Order::Revenue => user.revenue.0,
                Order::RevenueDescending => -user.revenue.0,
            };
            assert!(
                seen.is_sorted_by_key(|user| (key(user), user.user_id.clone())),
                "{order:?}"
            );
            let mut ids: Vec<_> = seen.iter().map(|user| user.user_id.as_str()).collect();
            ids.sort_unstable();
            assert_eq!(
                ids,
                expected.into_iter().copied().collect::<Vec<_>>(),
                "{prefix:?} {order:?}"
            );
        }
    }
}

#[test]
fn a_listing_by_prefix_searches_the_key() {
    // A scan of all users would cost as much as a listing without a prefix.
    let (dir, _writer) = open();
    for (statement, parameters) in [
        (include_str!("../../sql/query/page_users_by_id.sql"), 3),
        (include_str!("../../sql/query/page_users_by_revenue.sql"), 5),
        (
            include_str!("../../sql/query/page_users_by_revenue_descending.sql"),
            5,
        ),
    ] {
        let connection = Connection::open(dir.path().join(DATABASE_FILE)).expect("it opens");
        let mut explain = connection
            .prepare(&format!("EXPLAIN QUERY PLAN {statement}"))
            .expect("a statement");
        let values = vec!["a"; parameters];
        let plan: Vec<String> = explain
            .query_map(rusqlite::params_from_iter(values), |row| row.get(3))
            .expect("a plan")
            .map(|step| step.expect("a step"))
            .collect();
        assert!(
            plan[0].contains("SEARCH user_total USING PRIMARY KEY (user_id>? AND user_id<?)"),
            "{plan:?}"
        );
    }
}

#[test]
fn a_start_and_a_scrape_read_no_row_of_an_applied_segment() {
    // Fails if one of the queries reads each segment that was ever applied: after years there are very many.
    let steps = |segments: u64| {
        let (dir, mut writer) = open();
        let line = Lines(vec![Lines::event("a", Kind::Add, 1, None)]);
        for number in 1..=segments {
            let segment = SegmentId::Native(number);
            line.apply_as(&mut writer, &segment, 0, 1, RangeEnd::Complete);
        }
        line.apply_as(
            &mut writer,
            &SegmentId::Native(segments + 1),
            0,
            1,
            RangeEnd::Active,
        );
        let readers = readers::SqliteReaders::new(&dir.path().join(DATABASE_FILE), 1);
        let count = Arc::new(AtomicU64::new(0));
        let read = readers.read("count the steps", |connection| {
            let steps = Arc::clone(&count);
            let handler = move || {
                steps.fetch_add(1, Ordering::Relaxed);
                false
            };
            connection.progress_handler(1, Some(handler))?;
            segments::missing_rows(connection)?;
            segments::numbers(connection)?;
            segments::oldest_applied(connection)?;
            segments::highest_sealed(connection)
        });
        assert_eq!(read.expect("it reads"), Some(segments));
        // On the same connection, the only one of the pool.
        let status = readers.status().expect("it reads");
        assert_eq!(status.unfinished.len(), 1);
        assert_eq!(status.ledger.applied, segments + 1);
        readers.segment_counts().expect("it reads");
        assert_eq!(readers.newest_segments(20).expect("it reads").len(), 20);
        count.load(Ordering::Relaxed)
    };
    let few = steps(40);
    assert!(few > 100, "{few}");
    assert_eq!(few, steps(400));
}
