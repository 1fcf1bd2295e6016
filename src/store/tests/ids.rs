//! Ids against a plain map of them: whatever the ranges, segments, overflows, expiries and prunes.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;

const HUGE: u64 = 1_000_000_000_000_000_000;
/// Segments that take lines in turn: two native ones and an imported one.
const SEGMENTS: usize = 3;

fn segment_of(index: usize) -> SegmentId {
    match index {
        0 => SegmentId::Imported("s".to_owned()),
        native => SegmentId::Native(native as u64),
    }
}

/// One line: mostly of a sender that numbers its events, sometimes of an id that is no number.
fn line() -> impl Strategy<Value = Event<'static>> {
    let id = prop_oneof![
        6 => (0u64..3, 120u64..150).prop_map(|(sender, n)| format!("run{sender}-{n:06}")),
        1 => (0u64..300).prop_map(|n| format!("run0-{n:07}")),
        2 => (0u64..9).prop_map(|n| format!("{n}")),
    ];
    let amount = prop_oneof![8 => 1u64..3, 1 => Just(HUGE)];
    let what = (
        "[ab]",
        any::<bool>(),
        amount,
        prop::option::weighted(0.9, id),
    );
    what.prop_map(|(user, add, amount, id)| {
        let kind = if add || amount == HUGE {
            Kind::Add
        } else {
            Kind::Subtract
        };
        Lines::event(&user, kind, amount, id.as_deref())
    })
}

/// What a sender makes: numbers that rise by one, some of them sent again, two senders interleaved.
fn stream() -> impl Strategy<Value = Vec<Event<'static>>> {
    let one = (0u64..2, 0u8..10, 1u64..40, line());
    prop::collection::vec(one, 1..120).prop_map(|steps| {
        let mut next = [100u64, 250];
        let mut events = Vec::new();
        for (sender, kind, back, other) in steps {
            let next = &mut next[usize::from(sender == 1)];
            let number = match kind {
                0 => {
                    events.push(other);
                    continue;
                }
                1 => next.saturating_sub(back),
                _ => *next,
            };
            *next = (*next).max(number + 1);
            let id = format!("send{sender}-{number:012}");
            events.push(Lines::event("a", Kind::Add, 1 + number % 5, Some(&id)));
        }
        events
    })
}

#[derive(Clone, Debug)]
enum Step {
    /// So many lines of a segment are applied in one range.
    Apply(usize, usize),
    /// Ids as old as this, in seconds before now, expire.
    Expire(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..SEGMENTS, 1usize..60).prop_map(|(segment, lines)| Step::Apply(segment, lines)),
        1 => (0i64..8).prop_map(Step::Expire),
    ];
    prop::collection::vec(step, 1..40)
}

type Payload = (String, bool, u64);

fn payload(event: &Event<'_>) -> Payload {
    let add = event.kind == Kind::Add;
    (event.user_id.to_string(), add, event.amount_micros)
}

struct Counted {
    payload: Payload,
    segment: usize,
    offset: usize,
    at_s: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figures {
    counts: Counts,
    id_events: u64,
    ids_expired: u64,
}

/// What the store must be, in the plainest way.
#[derive(Default)]
struct Model {
    ids: HashMap<String, Counted>,
    totals: BTreeMap<String, (i64, u64)>,
    segments: [Figures; SEGMENTS],
}

impl Model {
    fn apply(&mut self, segment: usize, offset: usize, event: &Event<'_>, at_s: i64) {
        let figures = &mut self.segments[segment];
        figures.counts.lines += 1;
        if let Some(counted) = event.id.as_deref().and_then(|id| self.ids.get(id)) {
            if counted.payload == payload(event) {
                figures.counts.duplicates += 1;
            } else {
                figures.counts.rejected += 1;
            }
            return;
        }
        let total = self
            .totals
            .get(&*event.user_id)
            .copied()
            .unwrap_or_default();
        let Some(sum) = total.0.checked_add(crate::aggregate::delta::signed(
            event.kind,
            event.amount_micros,
        )) else {
            figures.counts.rejected += 1;
            return;
        };
        self.totals
            .insert(event.user_id.to_string(), (sum, total.1 + 1));
        figures.counts.events += 1;
        if let Some(id) = &event.id {
            figures.id_events += 1;
            let counted = Counted {
                payload: payload(event),
                segment,
                offset,
                at_s,
            };
            self.ids.insert(id.to_string(), counted);
        }
    }

    /// Of ids that end in 6 digits or more, 128 neighbours expire together, by the newest.
    fn expire(&mut self, before_s: i64) {
        let block = |id: &str| -> String {
            let digits = id.len() - id.trim_end_matches(|c: char| c.is_ascii_digit()).len();
            if digits < 6 || digits == id.len() {
                return id.to_owned();
            }
            let (prefix, number) = id.split_at(id.len() - digits);
            let number: u64 = number.parse().expect("a number");
            format!("{prefix} {digits} {}", number / 128)
        };
        let mut newest = HashMap::<String, i64>::new();
        for (id, counted) in &self.ids {
            let at = newest.entry(block(id)).or_insert(i64::MIN);
            *at = (*at).max(counted.at_s);
        }
        self.ids.retain(|id, counted| {
            let stays = newest[&block(id)] >= before_s;
            if !stays {
                self.segments[counted.segment].ids_expired += 1;
            }
            stays
        });
    }

    fn fate(&self, segment: usize, offset: usize, event: &Event<'_>) -> Option<IdStatus> {
        Some(match self.ids.get(event.id.as_deref()?) {
            None => IdStatus::Unknown,
            Some(counted) if counted.payload != payload(event) => IdStatus::Contradicted,
            Some(counted) if (counted.segment, counted.offset) == (segment, offset) => {
                IdStatus::Counted
            }
            Some(_) => IdStatus::Duplicate,
        })
    }
}

/// Lets all ids go that were applied before this; a few rows a step.
fn expire(writer: &mut Writer, before_s: i64) -> u64 {
    let any = Stamps {
        now_ms: 0,
        earliest_ms: i64::MIN,
        latest_ms: i64::MAX,
    };
    let mut walk = IdsWalk::default();
    let mut gone = 0;
    loop {
        walk = writer.expire_ids(&walk, before_s, &any, 3).expect("a step");
        gone += walk.expired;
        if walk.is_at_start() {
            return gone;
        }
    }
}

/// Every line's fate as the tables of ids have it, by its offset.
fn fates(proof: &Snapshot, key: i64, lines: &[Event<'static>]) -> BTreeMap<usize, IdStatus> {
    let mut events = IdEvents::default();
    for (offset, event) in lines.iter().enumerate() {
        if let Some(id) = &event.id {
            events.push(offset as u64, id, event);
        }
    }
    let mut found = BTreeMap::new();
    proof
        .statuses(key, &events, &mut |event, fate| {
            let offset = usize::try_from(event.offset).expect("small");
            assert_eq!(found.insert(offset, fate), None);
        })
        .expect("a read");
    found
}

fn agrees(dir: &TempDir, writer: &Writer, model: &Model, applied: &[&[Event<'static>]; SEGMENTS]) {
    let path = dir.path().join(DATABASE_FILE);
    let proof = Snapshot::open(&path).expect("a read").expect("a database");
    assert_eq!(proof.blocks.faults, Vec::<String>::new());
    let ids = proof.ids_by_segment().expect("a read");
    let mut ids_expected = HashMap::new();
    for (index, lines) in applied.iter().enumerate() {
        let Some(row) = writer.segment(&segment_of(index)).expect("a read") else {
            continue;
        };
        let found = Figures {
            counts: row.counts,
            id_events: row.id_events,
            ids_expired: row.ids_expired,
        };
        assert_eq!(found, model.segments[index], "segment {index}");
        let kept = row.id_events - row.ids_expired;
        if kept > 0 {
            ids_expected.insert(Some(row.key), kept);
        }
        let expected: BTreeMap<usize, IdStatus> = lines
            .iter()
            .enumerate()
            .filter_map(|(offset, event)| Some((offset, model.fate(index, offset, event)?)))
            .collect();
        assert_eq!(fates(&proof, row.key, lines), expected, "segment {index}");
    }
    assert_eq!(ids, ids_expected);
    let totals: Vec<String> = model
        .totals
        .iter()
        .map(|(user, (micros, events))| format!("{user}|{micros}|{events}"))
        .collect();
    assert_eq!(dump(dir, TOTALS), totals);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    /// R1 to R10 and R12: ranges of three segments in any order, with overflows and expiries in between.
    #[test]
    fn the_tables_of_ids_are_a_map_of_them(
        lines in prop::array::uniform3(prop_oneof![
            prop::collection::vec(line(), 0..120),
            stream(),
        ]),
        steps in steps(),
    ) {
        let (dir, mut writer) = open();
        let mut model = Model::default();
        let lines = lines.map(Lines);
        let mut at = [0; SEGMENTS];
        for (now_s, step) in (1000i64..).zip(&steps) {
            match *step {
                Step::Apply(segment, count) => {
                    let (from, lines) = (at[segment], &lines[segment]);
                    let to = lines.0.len().min(from + count);
                    if from == to {
                        continue;
                    }
                    let id = segment_of(segment);
                    lines.apply_at(&mut writer, &id, from, to, RangeEnd::Active, now_s * 1000);
                    for offset in from..to {
                        model.apply(segment, offset, &lines.0[offset], now_s);
                    }
                    at[segment] = to;
                }
                Step::Expire(age_s) => {
                    let before = model.ids.len();
                    model.expire(now_s - age_s);
                    let gone = expire(&mut writer, now_s - age_s);
                    prop_assert_eq!(gone, (before - model.ids.len()) as u64);
                }
            }
        }
        let applied = std::array::from_fn(|index| &lines[index].0[..at[index]]);
        agrees(&dir, &writer, &model, &applied);
    }

    /// R11: a rebuild with pruned segments comes to what there was, though blocks lie in both.
    #[test]
    fn a_rebuild_keeps_what_pruned_segments_counted(
        parts in prop::collection::vec(stream(), 2..5),
        pruned in 1usize..4,
    ) {
        let (dir, mut writer) = open();
        let small = |mut event: Event<'static>| {
            event.amount_micros %= HUGE; // nothing overflows
            event
        };
        let parts: Vec<Lines> = parts
            .into_iter()
            .map(|events| Lines(events.into_iter().map(small).collect()))
            .collect();
        let pruned = pruned.min(parts.len() - 1);
        let segment = |index: usize| SegmentId::Native(index as u64 + 1);
        for (index, lines) in parts.iter().enumerate() {
            let count = lines.0.len();
            lines.apply_as(&mut writer, &segment(index), 0, count, RangeEnd::Complete);
        }
        let path = dir.path().join(DATABASE_FILE);
        let state = |path: &Path, writer: &Writer| {
            let proof = Snapshot::open(path).expect("a read").expect("a database");
            let of = |index: usize| {
                let row = writer.segment(&segment(index)).expect("a read");
                let fates = fates(&proof, i64::try_from(index + 1).expect("small"), &parts[index].0);
                (row.map(|row| (row.counts, row.id_events, row.net_check)), fates)
            };
            let all: Vec<_> = (0..parts.len()).map(of).collect();
            (all, proof.ids_by_segment().expect("a read"), proof)
        };
        for index in 0..pruned {
            let row = writer.segment(&segment(index)).expect("a read").expect("a row");
            prop_assert!(writer.prune(&row, 2).expect("it is pruned"));
        }
        let (before, ids, proof) = state(&path, &writer);
        let other = tempfile::tempdir().expect("a directory");
        let new = other.path().join(DATABASE_FILE);
        let mut rebuilt = Writer::open(&new, Existing::OrCreate).expect("it opens");
        rebuilt.carry(&proof, 3).expect("it is carried over");
        for (index, lines) in parts.iter().enumerate().skip(pruned) {
            let count = lines.0.len();
            lines.apply_as(&mut rebuilt, &segment(index), 0, count, RangeEnd::Complete);
        }
        let (after, ids_after, _) = state(&new, &rebuilt);
        prop_assert_eq!(before, after);
        prop_assert_eq!(ids, ids_after);
        let checks = read_checks(&new).expect("a read").expect("a database");
        prop_assert!(checks.overall.has_sums_of(&checks.overall_rows), "{checks:?}");
    }
}

/// Bytes of a database whose tables of ids hold these, in this order.
fn bytes_of(ids: &[String], as_rows: bool) -> u64 {
    let (dir, mut writer) = open();
    let events = ids
        .iter()
        .map(|id| Lines::event("a", Kind::Add, 1, Some(id)));
    let lines = Lines(events.collect());
    if !as_rows {
        for from in (0..ids.len()).step_by(4000) {
            lines.apply(&mut writer, "s", from, ids.len().min(from + 4000));
        }
    }
    writer.close().expect("it closes");
    let path = dir.path().join(DATABASE_FILE);
    if as_rows {
        let mut connection = Connection::open(&path).expect("it opens");
        let transaction = connection.transaction().expect("a transaction");
        for (offset, id) in ids.iter().enumerate() {
            let row = rusqlite::params![id, i64::MAX >> 16, -1, offset * 100, 1_790_000_000];
            transaction
                .execute("INSERT INTO event_id VALUES (?1, ?2, ?3, ?4, ?5)", row)
                .expect("inserted");
        }
        transaction.commit().expect("committed");
    }
    std::fs::metadata(&path).expect("a file").len()
}

#[test]
fn sparse_numbers_cost_no_more_than_rows() {
    // R13. Red if a block of one number holds a bitmap, or a run of a width of its own.
    let count = 12_000u64;
    let name = "0192f0c1-7d2e-7abc-8def-0123456789ab";
    let scattered = |n: u64| (n * 7919) % count;
    let shapes: [(&str, &dyn Fn(u64) -> String); 5] = [
        ("a stride of 128", &|n| format!("{name}-{:012}", n * 128)),
        ("a stride of 128, scattered", &|n| {
            format!("{name}-{:012}", scattered(n) * 128)
        }),
        ("milliseconds", &|n| {
            format!("t{}", 1_790_000_000_000 + n * 977)
        }),
        ("a name each", &|n| format!("order-{n:x}-{:06}", 7)),
        ("18 digits", &|n| {
            format!("{n:x}-{:018}", scattered(n) * 83_333_333_333_333)
        }),
    ];
    for (shape, id) in shapes {
        let ids: Vec<String> = (0..count).map(id).collect();
        let (blocks, rows) = (bytes_of(&ids, false), bytes_of(&ids, true));
        assert!(blocks <= rows, "{shape}: {blocks} bytes, as rows {rows}");
    }
}

#[test]
fn sequential_numbers_cost_a_few_bytes_each() {
    // R15, and that numbers in another order cost no more than rows.
    let count = 64_000u64;
    let name = "0192f0c1-7d2e-7abc-8def-0123456789ab";
    let id = |n: u64| format!("{name}-{n:012}");
    let in_order: Vec<String> = (0..count).map(id).collect();
    let bytes = bytes_of(&in_order, false);
    assert!(bytes < count * 8, "{bytes} bytes for {count} events");
    let backwards: Vec<String> = (0..count).rev().map(id).collect();
    let (blocks, rows) = (bytes_of(&backwards, false), bytes_of(&backwards, true));
    assert!(blocks <= rows, "backwards: {blocks} bytes, as rows {rows}");
}

#[test]
fn numbers_that_come_one_by_one_are_one_run() {
    // Fails if each range begins a run of its own: a slow sender would pay for each event.
    let (dir, mut writer) = open();
    let event = |n: u64| Lines::event("a", Kind::Add, 1, Some(&format!("run-{n:06}")));
    let lines = Lines((0..128).map(event).collect());
    for at in 0..128 {
        lines.apply(&mut writer, "s", at, at + 1);
    }
    let blocks = dump(
        &dir,
        "SELECT prefix, width, block, length(numbers) < 540, applied_at_s FROM id_block",
    );
    assert_eq!(blocks, ["run-|6|0|1|1000"]);
}

#[test]
fn what_is_applied_after_a_copy_is_not_in_it() {
    // Fails if numbers are counted by runs that went on past the copied progress: `verify` beside a
    // running server would then find more ids than events.
    let (dir, mut writer) = open();
    let event = |n: u64| {
        let id = match n % 4 {
            0 => format!("{n}"),
            _ => format!("run-{n:06}"),
        };
        Lines::event("a", Kind::Add, 1, Some(&id))
    };
    let lines = Lines((0..300).map(event).collect());
    lines.apply(&mut writer, "s", 0, 60);
    let path = dir.path().join(DATABASE_FILE);
    let proof = Snapshot::open(&path).expect("a read").expect("a database");
    lines.apply(&mut writer, "s", 60, 300);
    let ids = proof.ids_by_segment().expect("a read");
    assert_eq!(ids, HashMap::from([(Some(-1), 60)]));
    let fates = fates(&proof, -1, &lines.0[..60]);
    assert!(fates.values().all(|fate| *fate == IdStatus::Counted));
    assert_eq!(fates.len(), 60);
}

#[test]
fn a_damaged_block_is_an_error_that_says_what_to_do() {
    // Fails if a number that cannot be read counts as new: its event would count twice.
    let (dir, mut writer) = open();
    let lines = Lines(vec![Lines::event("a", Kind::Add, 1, Some("run-000001")); 2]);
    lines.apply(&mut writer, "s", 0, 1);
    let connection = Connection::open(dir.path().join(DATABASE_FILE)).expect("it opens");
    for numbers in ["x''", "x'00'"] {
        connection
            .execute(&format!("UPDATE id_block SET numbers = {numbers}"), [])
            .expect("it changes");
        let segment = SegmentId::Imported("s".to_owned());
        let words = lines
            .try_apply(&mut writer, &segment, 1, 2, RangeEnd::Active, 1)
            .expect_err("damaged")
            .to_string();
        assert!(
            words.contains("the bytes of the block") && words.contains("process --rebuild"),
            "{words}"
        );
    }
    assert_eq!(dump(&dir, TOTALS), ["a|1|1"]);
}

#[test]
fn ids_whose_date_cannot_be_are_dated_anew_in_both_tables() {
    // Fails if a block of a clock that was set wrongly goes at once, or never.
    let (dir, mut writer) = open();
    let event = |id: &str| Lines::event("a", Kind::Add, 1, Some(id));
    let lines = Lines(vec![event("x"), event("run-000001"), event("run-000002")]);
    lines.apply(&mut writer, "s", 0, 3);
    let stamps = Stamps {
        now_ms: 9_000_000,
        earliest_ms: 2_000_000,
        latest_ms: i64::MAX,
    };
    let mut walk = IdsWalk::default();
    loop {
        walk = writer
            .expire_ids(&walk, 8_000, &stamps, 10)
            .expect("a step");
        assert_eq!(walk.expired, 0);
        if walk.is_at_start() {
            break;
        }
    }
    let dates = dump(
        &dir,
        "SELECT applied_at_s FROM event_id UNION ALL SELECT applied_at_s FROM id_block",
    );
    assert_eq!(dates, ["9000", "9000"]);
    assert_eq!(expire(&mut writer, 9_001), 3);
}

#[test]
fn a_line_between_two_numbers_keeps_their_runs_apart() {
    // Fails if a run goes on over a duplicate, a conflict or an overflow, in a range of its own or not:
    // that line would then be one of the run's.
    for between in ["duplicate", "conflict", "overflow"] {
        for step in [1, 3, 14] {
            let (dir, mut writer) = open();
            let event = |user: &str, amount: u64, n: u64| {
                Lines::event(user, Kind::Add, amount, Some(&format!("run-{n:06}")))
            };
            let mut events: Vec<Event<'static>> = (0..9)
                .map(|_| Lines::event("rich", Kind::Add, HUGE, None))
                .collect();
            events.push(event("a", 1, 5));
            events.push(match between {
                "duplicate" => event("a", 1, 5),
                "conflict" => event("a", 2, 5),
                _ => event("rich", HUGE, 6),
            });
            events.extend([event("a", 1, 6), event("a", 1, 7)]);
            let mut model = Model::default();
            for (offset, event) in events.iter().enumerate() {
                model.apply(0, offset, event, 1000);
            }
            let lines = Lines(events);
            let count = lines.0.len();
            for from in (0..count).step_by(step) {
                lines.apply(&mut writer, "s", from, count.min(from + step));
            }
            agrees(&dir, &writer, &model, &[&lines.0[..], &[], &[]]);
            assert_eq!(
                model.ids["run-000006"].offset, 11,
                "{between}: sent again, it counts"
            );
        }
    }
}

#[test]
fn the_key_of_an_imported_file_is_never_used_twice() {
    // Fails if the next file gets the key of a row that is gone: the ids of the former file, which stay, would
    // belong to lines of the next one.
    let (dir, mut writer) = open();
    let lines = Lines(vec![Lines::event("a", Kind::Add, 100, Some("x"))]);
    assert_eq!(counts(&lines.apply(&mut writer, "first", 0, 1)), (1, 0, 0));
    let other = Connection::open(dir.path().join(DATABASE_FILE)).expect("it opens");
    let deleted = other.execute("DELETE FROM segment", []);
    assert_eq!(deleted.expect("a row"), 1);
    assert_eq!(counts(&lines.apply(&mut writer, "next", 0, 1)), (0, 1, 0));
    assert_eq!(dump(&dir, "SELECT key, name FROM segment"), ["-2|next"]);
    assert_eq!(dump(&dir, "SELECT segment FROM event_id"), ["-1"]);
}
