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

mod id_blocks;
mod id_rows;
mod ids;
mod overflow;
mod totals;

use std::collections::{BTreeMap, HashSet};
use std::io;

use rusqlite::{Connection, Transaction, params};

use self::overflow::OverflowReplay;
use super::segments::{self, SegmentRow};
use super::{Counts, IdEvents, REJECTED_LINES_MAX, Rejected, SegmentState, Sums, UserLine};
use crate::data_dir::segment::{SegmentId, Tag};

const CLAIM_SEGMENT: &str = include_str!("../../sql/query/claim_segment.sql");
const INSERT_SEGMENT: &str = include_str!("../../sql/query/insert_segment.sql");
const ADD_COUNTS: &str = include_str!("../../sql/query/add_segment_counts.sql");
const NEXT_IMPORT_KEY: &str = include_str!("../../sql/query/next_import_key.sql");
const COUNT_REJECTED: &str = include_str!("../../sql/query/count_rejected_lines.sql");
const INSERT_REJECTED: &str = include_str!("../../sql/query/insert_rejected_line.sql");

/// What the lines of a range come to.
pub struct Delta<'a> {
    /// Sums of all events by user id, ascending, each user once: of those with an id as if all of
    /// them counted.
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
    Complete,
}

impl RangeEnd {
    fn state(self) -> SegmentState {
        match self {
            Self::Active => SegmentState::Active,
            Self::Sealed => SegmentState::Sealed,
            Self::Complete => SegmentState::Applied,
        }
    }
}

/// A range of a segment and what its lines come to. `from` and `to` are line ends.
pub struct Range<'a> {
    /// Which segment.
    pub segment: &'a SegmentId,
    /// Its tag; `None` for an imported file.
    pub tag: Option<Tag>,
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
    let mut one_by_one = OverflowReplay::start(transaction, suspects, source)?;
    ids::count(transaction, range, row.key, &mut one_by_one, &mut tally)?;
    let new_suspects = totals::add(transaction, range, &one_by_one, &mut tally)?;
    if !new_suspects.is_empty() {
        return Ok(Attempt::Suspects(new_suspects));
    }
    let rejected = range.delta.rejected_count + tally.refused.lines;
    let counts = Counts {
        lines: range.delta.lines,
        events: tally.events,
        duplicates: tally.duplicates,
        rejected,
    };
    keep_rejected(transaction, range, tally.refused.first, source)?;
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
    if range.end == RangeEnd::Complete {
        segments::add_to_applied_sum(transaction, row.key)?;
    }
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
            range.tag.map(|tag| tag.to_string()),
        ])?,
        None if range.from == 0 => insert_segment(
            transaction,
            range.segment,
            range.tag,
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

/// A new row; `rest` are the statement's parameters after key, name and tag. The key of an imported
/// file is one that no file ever had: rows of ids may outlive the row of their segment.
pub(super) fn insert_segment(
    connection: &Connection,
    segment: &SegmentId,
    tag: Option<Tag>,
    rest: &[&dyn rusqlite::ToSql],
) -> rusqlite::Result<usize> {
    let key: i64 = match segment.number() {
        Some(number) => i64::try_from(number).unwrap_or(i64::MAX),
        None => connection.query_row(NEXT_IMPORT_KEY, [], |row| row.get(0))?,
    };
    let name = segment.to_string();
    let tag = tag.map(|tag| tag.to_string());
    let all: Vec<&dyn rusqlite::ToSql> = [&key as &dyn rusqlite::ToSql, &name, &tag]
        .into_iter()
        .chain(rest.iter().copied())
        .collect();
    connection.prepare_cached(INSERT_SEGMENT)?.execute(&*all)
}

/// What has been decided so far.
#[derive(Default)]
struct Tally<'a> {
    /// User and signed micros of the events with an id that do not count: to be taken out of the sums.
    /// Those of users whose lines go one by one are not here.
    uncounted: Vec<(&'a str, i64)>,
    events: u64,
    duplicates: u64,
    net: i64,
    id_events: u64,
    id_net: i64,
    refused: Refused,
}

/// Lines that are events but are not counted: the first of them, however many there are.
#[derive(Default)]
struct Refused {
    lines: u64,
    /// Code and reason by the line's offset.
    first: BTreeMap<u64, (&'static str, String)>,
}

impl Refused {
    fn push(&mut self, offset: u64, code: &'static str, reason: impl FnOnce() -> String) {
        self.lines += 1;
        let full = self.first.len() as u64 >= REJECTED_LINES_MAX;
        match self.first.last_key_value() {
            Some((&last, _)) if full && last < offset => return,
            Some((&last, _)) if full => self.first.remove(&last),
            _ => None,
        };
        self.first.insert(offset, (code, reason()));
    }
}

/// Step 6: the first of a segment are kept, in file order.
fn keep_rejected(
    transaction: &Transaction<'_>,
    range: &Range<'_>,
    refused: BTreeMap<u64, (&'static str, String)>,
    source: &mut dyn Source,
) -> Result<(), Failure> {
    if refused.is_empty() && range.delta.rejected.is_empty() {
        return Ok(());
    }
    let segment = range.segment.to_string();
    let kept: u64 = transaction.query_row(COUNT_REJECTED, [&segment], |row| row.get(0))?;
    let room = usize::try_from(REJECTED_LINES_MAX.saturating_sub(kept)).unwrap_or_default();
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
        if let Some((offset, (code, reason))) = refused.next_if(|&(offset, _)| offset < next) {
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
