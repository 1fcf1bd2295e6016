//! The one write transaction: a range of a segment into the totals, or nothing of it.
//!
//! The steps, numbered as in the documentation of the store's argument: BEGIN IMMEDIATE (2),
//! compare-and-set of the progress (3), ids (4), totals (5), rejected lines (6), COMMIT (7). The
//! caller moves its memory on only after that (8).
//!
//! Usually the events without id come summed up per user, and are added as they are. Where a total
//! might leave 64 bits on the way, the transaction is rolled back and done again with that user's
//! lines one by one in file order, so that it does not depend on how the range was cut which line
//! overflows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use rusqlite::{CachedStatement, Connection, OptionalExtension, Transaction, params};

use super::delta::signed;
use super::segments::{self, SegmentRow};
use super::{
    Counts, IdEvent, IdEvents, REJECTED_LINES_MAX, Rejected, SegmentState, Sums, UserLine,
};
use crate::segment::SegmentId;

const CLAIM_SEGMENT: &str = include_str!("../../sql/query/claim_segment.sql");
const INSERT_SEGMENT: &str = include_str!("../../sql/query/insert_segment.sql");
const ADD_COUNTS: &str = include_str!("../../sql/query/add_segment_counts.sql");
const SELECT_LOWEST_KEY: &str = include_str!("../../sql/query/select_lowest_key.sql");
const UPSERT_USER_TOTAL: &str = include_str!("../../sql/query/upsert_user_total.sql");
const SET_USER_TOTAL: &str = include_str!("../../sql/query/set_user_total.sql");
const SELECT_REVENUE: &str = include_str!("../../sql/query/select_revenue.sql");
const INSERT_EVENT_ID: &str = include_str!("../../sql/query/insert_event_id.sql");
const SELECT_EVENT_ID: &str = include_str!("../../sql/query/select_event_id.sql");
const DELETE_EVENT_ID: &str = include_str!("../../sql/query/delete_event_id.sql");
const COUNT_REJECTED: &str = include_str!("../../sql/query/count_rejected_lines.sql");
const INSERT_REJECTED: &str = include_str!("../../sql/query/insert_rejected_line.sql");

/// What the lines of a range come to.
pub struct Delta<'a> {
    /// Users with events that have no id, by user id, ascending, each once.
    pub users: &'a [(&'a str, &'a Sums)],
    /// Events that have an id, in file order.
    pub with_id: &'a IdEvents,
    /// The first of the lines that are no events, in file order.
    pub rejected: &'a [Rejected],
    /// How many lines are no events, those not among `rejected` too.
    pub rejected_count: u64,
    /// All lines, empty ones left out.
    pub lines: u64,
}

/// What the segment is once the range is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeEnd {
    /// More is appended to it.
    Active,
    /// More of it is to be applied, nothing is appended.
    Sealed,
    /// This was the last of it.
    Whole,
}

impl RangeEnd {
    fn state(self) -> SegmentState {
        match self {
            Self::Active => SegmentState::Active,
            Self::Sealed => SegmentState::Sealed,
            Self::Whole => SegmentState::Whole,
        }
    }
}

/// A range of a segment and what its lines come to. `from` and `to` are line ends.
pub struct Range<'a> {
    /// Which segment.
    pub segment: &'a SegmentId,
    /// What its file is called.
    pub file_name: &'a str,
    /// Bytes applied before.
    pub from: u64,
    /// Bytes applied after.
    pub to: u64,
    /// CRC-32 of all bytes before `to`.
    pub checksum: u32,
    /// What becomes of the segment.
    pub end: RangeEnd,
    /// The time of applying, milliseconds since 1970 UTC.
    pub now_ms: i64,
    /// What the lines come to.
    pub delta: Delta<'a>,
}

/// The lines of the range, for the rare cases in which sums don't do.
pub trait Source {
    /// Every counted event without id of these users in the range, in file order.
    fn lines_of(&mut self, users: &HashSet<String>) -> io::Result<Vec<UserLine>>;
    /// The start of the line at `offset`, at most [`super::REJECTED_LINE_BYTES_MAX`] bytes.
    fn line_at(&mut self, offset: u64) -> io::Result<Vec<u8>>;
}

/// What a range did to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What became of its lines.
    pub counts: Counts,
}

/// How applying ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is committed.
    Applied(Applied),
    /// The progress was not at `from`: nothing was changed. Read the row again.
    Raced,
}

/// What one attempt came to, before the commit.
pub(super) enum Attempt {
    Ready(Applied),
    Raced,
    /// Totals of these users might overflow on the way: again, with their lines one by one.
    Suspects(HashSet<String>),
}

/// What stops an attempt.
pub(super) enum Failure {
    Sqlite(rusqlite::Error),
    Source(io::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Steps 3 to 6, inside the transaction; the caller began it and commits it.
pub(super) fn attempt(
    transaction: &Transaction<'_>,
    range: &Range<'_>,
    suspects: &HashSet<String>,
    source: &mut dyn Source,
) -> Result<Attempt, Failure> {
    let Some(row) = claim(transaction, range)? else {
        return Ok(Attempt::Raced);
    };
    let mut tally = Tally::default();
    let mut one_by_one = OneByOne::start(transaction, suspects, source)?;
    count_one_by_one(transaction, range, row.key, &mut one_by_one, &mut tally)?;
    let new_suspects = add_totals(transaction, range, &one_by_one, &mut tally)?;
    if !new_suspects.is_empty() {
        return Ok(Attempt::Suspects(new_suspects));
    }
    let rejected = range.delta.rejected_count + tally.refused.len() as u64;
    let counts = Counts {
        lines: range.delta.lines,
        events: tally.events,
        duplicates: tally.duplicates,
        rejected,
    };
    keep_rejected(transaction, range, tally.refused, source)?;
    transaction.prepare_cached(ADD_COUNTS)?.execute(params![
        row.key,
        counts.lines,
        counts.events,
        counts.duplicates,
        counts.rejected,
        row.net_check.wrapping_add(tally.net),
        tally.id_events,
        row.id_net_check.wrapping_add(tally.id_net),
    ])?;
    Ok(Attempt::Ready(Applied { counts }))
}

/// Step 3: the row moves from `from` to `to`, or somebody else was here (`None`).
fn claim(transaction: &Transaction<'_>, range: &Range<'_>) -> Result<Option<SegmentRow>, Failure> {
    let state = range.end.state().name();
    let changed = match segments::one(transaction, range.segment)? {
        Some(row) => transaction.prepare_cached(CLAIM_SEGMENT)?.execute(params![
            row.key,
            range.from,
            range.to,
            range.checksum,
            range.file_name,
            state,
            range.now_ms,
        ])?,
        None if range.from == 0 => insert_segment(
            transaction,
            range.segment,
            params![
                range.file_name,
                state,
                range.to,
                range.checksum,
                range.now_ms
            ],
        )?,
        None => 0,
    };
    if changed != 1 {
        return Ok(None);
    }
    Ok(segments::one(transaction, range.segment)?)
}

/// A new row; `rest` are the statement's parameters after key and name.
pub(super) fn insert_segment(
    connection: &Connection,
    segment: &SegmentId,
    rest: &[&dyn rusqlite::ToSql],
) -> rusqlite::Result<usize> {
    let key: i64 = match segment.number() {
        Some(number) => i64::try_from(number).unwrap_or(i64::MAX),
        None => connection.query_row(SELECT_LOWEST_KEY, [], |row| row.get::<_, i64>(0))? - 1,
    };
    let name = segment.to_string();
    let all: Vec<&dyn rusqlite::ToSql> = [&key as &dyn rusqlite::ToSql, &name]
        .into_iter()
        .chain(rest.iter().copied())
        .collect();
    connection.prepare_cached(INSERT_SEGMENT)?.execute(&*all)
}

/// What has been decided so far.
#[derive(Default)]
struct Tally<'a> {
    /// Events with an id, by user: to be added to the summed ones.
    users: HashMap<&'a str, Sums>,
    events: u64,
    duplicates: u64,
    net: i64,
    id_events: u64,
    id_net: i64,
    /// (offset, code, reason) of lines that are events but are not counted.
    refused: Vec<(u64, &'static str, String)>,
}

/// Users whose totals might overflow, and their lines.
struct OneByOne {
    /// (total, events counted in this range) by user.
    users: BTreeMap<String, (i64, u64)>,
    lines: Vec<UserLine>,
}

impl OneByOne {
    fn start(
        transaction: &Transaction<'_>,
        suspects: &HashSet<String>,
        source: &mut dyn Source,
    ) -> Result<Self, Failure> {
        let mut users = BTreeMap::new();
        if suspects.is_empty() {
            return Ok(Self {
                users,
                lines: Vec::new(),
            });
        }
        let mut select = transaction.prepare_cached(SELECT_REVENUE)?;
        for user in suspects {
            let total = select.query_row([user], |row| row.get(0)).optional()?;
            users.insert(user.clone(), (total.unwrap_or(0), 0));
        }
        let lines = source.lines_of(suspects).map_err(Failure::Source)?;
        Ok(Self { users, lines })
    }

    /// Moves a suspect's total, unless that would overflow; `None` for users that can't.
    fn take(&mut self, user: &str, amount: i64) -> Option<bool> {
        let (total, events) = self.users.get_mut(user)?;
        let sum = total.checked_add(amount);
        if let Some(sum) = sum {
            *total = sum;
            *events += 1;
        }
        Some(sum.is_some())
    }
}

/// Step 4, and the lines of suspects: what has an id is counted if no event of that id was.
fn count_one_by_one<'a>(
    transaction: &Transaction<'_>,
    range: &Range<'a>,
    key: i64,
    one_by_one: &mut OneByOne,
    tally: &mut Tally<'a>,
) -> Result<(), Failure> {
    let mut ids = Ids::new(transaction, key, range.now_ms)?;
    let mut events: Vec<IdEvent<'a>> = range.delta.with_id.iter().collect();
    if one_by_one.users.is_empty() {
        // The table is fast in the order of its ids; of one id the first in the file goes first.
        events.sort_unstable_by(|a, b| a.id.cmp(b.id).then(a.offset.cmp(&b.offset)));
    }
    // What comes of a suspect's event decides whether its id stays.
    let together = if one_by_one.users.is_empty() { ROWS } else { 1 };
    let mut lines = std::mem::take(&mut one_by_one.lines).into_iter().peekable();
    let mut seen = Vec::with_capacity(together);
    for events in events.chunks(together) {
        ids.insert_or_look_up(events, &mut seen)?;
        for (event, seen) in events.iter().zip(&seen) {
            while let Some(line) = lines.next_if(|line| line.offset < event.offset) {
                count_line(one_by_one, tally, &line);
            }
            count_id_event(&mut ids, one_by_one, tally, event, seen)?;
        }
    }
    for line in lines {
        count_line(one_by_one, tally, &line);
    }
    Ok(())
}

fn count_id_event<'a>(
    ids: &mut Ids<'_>,
    one_by_one: &mut OneByOne,
    tally: &mut Tally<'a>,
    event: &IdEvent<'a>,
    seen: &Seen,
) -> rusqlite::Result<()> {
    match seen {
        Seen::Never => {}
        Seen::Same => {
            tally.duplicates += 1;
            return Ok(());
        }
        Seen::Other { segment, offset } => {
            let reason = format!(
                "/id: {:?} was counted before with another userId, name or value (segment {segment}, offset {offset})",
                event.id
            );
            tally.refused.push((event.offset, "id_conflict", reason));
            return Ok(());
        }
    }
    let amount = signed(event.kind, event.amount_micros);
    match one_by_one.take(event.user_id, amount) {
        None => tally
            .users
            .entry(event.user_id)
            .or_default()
            .add_event(event.kind, event.amount_micros),
        Some(true) => {}
        Some(false) => {
            tally.refused.push(overflow(event.offset, event.user_id));
            return ids.take_back(event);
        }
    }
    tally.events += 1;
    tally.id_events += 1;
    tally.net = tally.net.wrapping_add(amount);
    tally.id_net = tally.id_net.wrapping_add(amount);
    Ok(())
}

/// An event without id of a user whose total might overflow.
fn count_line(one_by_one: &mut OneByOne, tally: &mut Tally<'_>, line: &UserLine) {
    let amount = signed(line.kind, line.amount_micros);
    if one_by_one.take(&line.user_id, amount) == Some(false) {
        tally.refused.push(overflow(line.offset, &line.user_id));
    } else {
        tally.events += 1;
        tally.net = tally.net.wrapping_add(amount);
    }
}

fn overflow(offset: u64, user_id: &str) -> (u64, &'static str, String) {
    let reason = format!(
        "/value: the total of {user_id:?} would leave the range of -9223372036854.775808 to 9223372036854.775807"
    );
    (offset, "overflow", reason)
}

/// The table of ids, and the statements to it.
struct Ids<'t> {
    transaction: &'t Connection,
    select: CachedStatement<'t>,
    one: CachedStatement<'t>,
    /// Prepared when there are so many events.
    many: Option<CachedStatement<'t>>,
    delete: CachedStatement<'t>,
    key: i64,
    now_s: i64,
}

enum Seen {
    Never,
    Same,
    Other { segment: i64, offset: u64 },
}

impl<'t> Ids<'t> {
    fn new(transaction: &'t Connection, key: i64, now_ms: i64) -> rusqlite::Result<Self> {
        Ok(Self {
            transaction,
            select: transaction.prepare_cached(SELECT_EVENT_ID)?,
            one: transaction.prepare_cached(INSERT_EVENT_ID)?,
            many: None,
            delete: transaction.prepare_cached(DELETE_EVENT_ID)?,
            key,
            now_s: now_ms.div_euclid(1000),
        })
    }

    /// Inserts the ids that are not there, the first of equal ones; `seen` tells what of which.
    fn insert_or_look_up(
        &mut self,
        events: &[IdEvent<'_>],
        seen: &mut Vec<Seen>,
    ) -> rusqlite::Result<()> {
        seen.clear();
        let mut inserted = 0;
        if events.len() == ROWS {
            let many = match &mut self.many {
                Some(many) => many,
                none => {
                    let sql = many_rows(INSERT_EVENT_ID, 2, 3, "?1, ?2");
                    none.insert(self.transaction.prepare_cached(&sql)?)
                }
            };
            inserted = insert_ids(many, events, self.key, self.now_s)?;
        } else {
            for event in events.chunks(1) {
                inserted += insert_ids(&mut self.one, event, self.key, self.now_s)?;
            }
        }
        for event in events {
            seen.push(if inserted == events.len() {
                Seen::Never
            } else {
                self.look_up(event)?
            });
        }
        Ok(())
    }

    /// Whose id it is that is there: the event's own, or that of one before.
    fn look_up(&mut self, event: &IdEvent<'_>) -> rusqlite::Result<Seen> {
        let (payload, segment, offset) = self.select.query_row([event.id], |row| {
            Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?))
        })?;
        Ok(if segment == self.key && offset == event.offset {
            Seen::Never
        } else if payload == event.payload() {
            Seen::Same
        } else {
            Seen::Other { segment, offset }
        })
    }

    /// The event was not counted after all.
    fn take_back(&mut self, event: &IdEvent<'_>) -> rusqlite::Result<()> {
        self.delete.execute([event.id]).map(|_| ())
    }
}

/// How many of the events' ids were not there before.
fn insert_ids(
    insert: &mut CachedStatement<'_>,
    events: &[IdEvent<'_>],
    key: i64,
    now_s: i64,
) -> rusqlite::Result<usize> {
    insert.raw_bind_parameter(1, key)?;
    insert.raw_bind_parameter(2, now_s)?;
    for (row, event) in events.iter().enumerate() {
        let first = 3 + row * 3;
        insert.raw_bind_parameter(first, event.id)?;
        insert.raw_bind_parameter(first + 1, event.payload())?;
        insert.raw_bind_parameter(first + 2, event.offset)?;
    }
    insert.raw_execute()
}

/// A total this far from the ends of 64 bits can't leave them by sums below [`SMALL`].
const SAFE: i64 = 1 << 62;
const SMALL: u128 = 1 << 62;

/// Users whose sums are fetched at once.
const BLOCK_USERS: usize = 256;

/// Step 5. Users whose totals might leave 64 bits are left out and given back.
fn add_totals<'a>(
    transaction: &Transaction<'_>,
    range: &Range<'a>,
    one_by_one: &OneByOne,
    tally: &mut Tally<'a>,
) -> Result<HashSet<String>, Failure> {
    let mut totals = Totals::new(transaction, range.now_ms)?;
    let mut counted: Vec<(&str, Sums)> = tally.users.drain().collect();
    counted.sort_unstable_by_key(|&(user, _)| user);
    let mut counted = counted.into_iter().peekable();
    let mut block = Vec::with_capacity(BLOCK_USERS);
    for users in range.delta.users.chunks(BLOCK_USERS) {
        // They lie all over memory: fetched together, the cache misses overlap.
        block.clear();
        block.extend(users.iter().map(|&(_, sums)| *sums));
        for (&(user, _), sums) in users.iter().zip(&block) {
            if !one_by_one.users.is_empty() && one_by_one.users.contains_key(user) {
                continue;
            }
            while let Some((other, sums)) = counted.next_if(|&(other, _)| other < user) {
                totals.add(other, &sums)?;
            }
            tally.events += sums.events();
            tally.net = tally.net.wrapping_add(sums.net_wrapping());
            match counted.next_if(|&(other, _)| other == user) {
                None => totals.add(user, sums)?,
                Some((_, mut both)) => {
                    both.add(sums);
                    totals.add(user, &both)?;
                }
            }
        }
    }
    for (user, sums) in counted {
        totals.add(user, &sums)?;
    }
    let suspects = totals.finish()?;
    for (user, (total, events)) in &one_by_one.users {
        if *events > 0 {
            transaction
                .prepare_cached(SET_USER_TOTAL)?
                .execute(params![user, total, events, range.now_ms])?;
        }
    }
    Ok(suspects)
}

/// Rows of one statement: in order, most of them need no way down the tree again.
const ROWS: usize = 64;

/// A statement of one row of parameters made into one of [`ROWS`] of them: the `own` parameters of
/// a row come after the `shared` ones, of which `last` end each row.
fn many_rows(statement: &str, shared: usize, own: usize, last: &str) -> String {
    let rows = |count: usize| {
        let row = |row: usize| {
            let first = shared + row * own + 1;
            let own: Vec<String> = (first..first + own).map(|at| format!("?{at}")).collect();
            format!("({}, {last})", own.join(", "))
        };
        (0..count).map(row).collect::<Vec<_>>().join(", ")
    };
    statement.replace(&rows(1), &rows(ROWS))
}

/// What [`UPSERT_USER_TOTAL`] has in common for all rows: parameters 1 to 3.
fn bind_totals(
    mut upsert: CachedStatement<'_>,
    now_ms: i64,
) -> rusqlite::Result<CachedStatement<'_>> {
    upsert.raw_bind_parameter(1, now_ms)?;
    upsert.raw_bind_parameter(2, -SAFE)?;
    upsert.raw_bind_parameter(3, SAFE)?;
    Ok(upsert)
}

struct Totals<'t, 'a> {
    transaction: &'t Connection,
    now_ms: i64,
    one: CachedStatement<'t>,
    /// Prepared when there are so many rows.
    many: Option<CachedStatement<'t>>,
    /// User, net and events, not written yet.
    rows: Vec<(&'a str, i64, i64)>,
    suspects: HashSet<String>,
}

impl<'t, 'a> Totals<'t, 'a> {
    fn new(transaction: &'t Connection, now_ms: i64) -> rusqlite::Result<Self> {
        let one = transaction.prepare_cached(UPSERT_USER_TOTAL)?;
        Ok(Self {
            transaction,
            now_ms,
            one: bind_totals(one, now_ms)?,
            many: None,
            rows: Vec::with_capacity(ROWS),
            suspects: HashSet::new(),
        })
    }

    fn add(&mut self, user: &'a str, sums: &Sums) -> rusqlite::Result<()> {
        if sums.added() >= SMALL || sums.subtracted() >= SMALL {
            self.suspects.insert(user.to_owned());
            return Ok(());
        }
        let events = i64::try_from(sums.events()).unwrap_or(i64::MAX);
        self.rows.push((user, sums.net_wrapping(), events));
        if self.rows.len() == ROWS {
            self.write_many()?;
        }
        Ok(())
    }

    fn write_many(&mut self) -> rusqlite::Result<()> {
        let many = match &mut self.many {
            Some(many) => many,
            none => {
                let sql = many_rows(UPSERT_USER_TOTAL, 3, 3, "?1");
                none.insert(bind_totals(
                    self.transaction.prepare_cached(&sql)?,
                    self.now_ms,
                )?)
            }
        };
        for (row, &(user, net, events)) in self.rows.iter().enumerate() {
            let first = 4 + row * 3;
            many.raw_bind_parameter(first, user)?;
            many.raw_bind_parameter(first + 1, net)?;
            many.raw_bind_parameter(first + 2, events)?;
        }
        if many.raw_execute()? != self.rows.len() {
            // Which one was left out shows its total. That of another may be beyond the bounds
            // only now: it goes line by line too, which is slower and as right.
            let mut select = self.transaction.prepare_cached(SELECT_REVENUE)?;
            for &(user, ..) in &self.rows {
                let total: i64 = select.query_row([user], |row| row.get(0))?;
                if !(-SAFE..=SAFE).contains(&total) {
                    self.suspects.insert(user.to_owned());
                }
            }
        }
        self.rows.clear();
        Ok(())
    }

    /// Writes what is left; users whose totals might leave 64 bits.
    fn finish(mut self) -> rusqlite::Result<HashSet<String>> {
        for (user, net, events) in self.rows {
            self.one.raw_bind_parameter(4, user)?;
            self.one.raw_bind_parameter(5, net)?;
            self.one.raw_bind_parameter(6, events)?;
            if self.one.raw_execute()? != 1 {
                self.suspects.insert(user.to_owned());
            }
        }
        Ok(self.suspects)
    }
}

/// Step 6: the first of a segment are kept, in file order.
fn keep_rejected(
    transaction: &Transaction<'_>,
    range: &Range<'_>,
    mut refused: Vec<(u64, &'static str, String)>,
    source: &mut dyn Source,
) -> Result<(), Failure> {
    if refused.is_empty() && range.delta.rejected.is_empty() {
        return Ok(());
    }
    let segment = range.segment.to_string();
    let kept: u64 = transaction.query_row(COUNT_REJECTED, [&segment], |row| row.get(0))?;
    let room = usize::try_from(REJECTED_LINES_MAX.saturating_sub(kept)).unwrap_or_default();
    refused.sort_unstable_by_key(|&(offset, ..)| offset);
    let mut insert = transaction.prepare_cached(INSERT_REJECTED)?;
    let mut insert = |rejected: &Rejected| {
        insert.execute(params![
            segment,
            rejected.offset,
            rejected.code,
            rejected.reason,
            rejected.line,
        ])
    };
    let mut refused = refused.into_iter().peekable();
    let mut no_events = range.delta.rejected.iter().peekable();
    for _ in 0..room {
        let next = no_events
            .peek()
            .map_or(u64::MAX, |rejected| rejected.offset);
        if let Some((offset, code, reason)) = refused.next_if(|&(offset, ..)| offset < next) {
            let line = source.line_at(offset).map_err(Failure::Source)?;
            insert(&Rejected::new(offset, code, reason, &line))?;
        } else if let Some(rejected) = no_events.next() {
            insert(rejected)?;
        } else {
            break;
        }
    }
    Ok(())
}
