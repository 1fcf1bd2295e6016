//! Applies a range of a segment to the totals, in one transaction.
//!
//! The steps are: BEGIN IMMEDIATE (2), compare-and-set of the applied offset (3), ids (4), totals (5),
//! rejected lines (6), COMMIT (7). The caller updates its in-memory state after the commit (8). The
//! thread of the [`Writer`](super::Writer) runs all of them; after an error the transaction is rolled
//! back.
//!
//! Events without an id are already summed per user. If a total might overflow 64 bits, the transaction
//! is rolled back and repeated with an overflow replay: the lines of that user are applied one by one
//! in file order, so that the set of rejected lines does not depend on how the file was divided into
//! ranges.

mod id_blocks;
mod id_rows;
mod ids;
mod overflow;
mod totals;

use std::collections::{BTreeMap, HashSet};
use std::io;

use rusqlite::{Connection, params};

use self::overflow::OverflowReplay;
use super::segments::{self, SegmentRow};
use super::{Counts, IdEvents, REJECTED_LINES_MAX, Rejected, SegmentState, UserLine, UserSums};
use crate::data_dir::segment::{SegmentId, Tag};

const CLAIM_SEGMENT: &str = include_str!("../../sql/query/claim_segment.sql");
const INSERT_SEGMENT: &str = include_str!("../../sql/query/insert_segment.sql");
const ADD_COUNTS: &str = include_str!("../../sql/query/add_segment_counts.sql");
const NEXT_IMPORT_KEY: &str = include_str!("../../sql/query/next_import_key.sql");
const COUNT_REJECTED: &str = include_str!("../../sql/query/count_rejected_lines.sql");
const INSERT_REJECTED: &str = include_str!("../../sql/query/insert_rejected_line.sql");

/// The aggregate of a range.
pub struct Delta<'a> {
    /// The sums of all events. Events with an id are included as if all of them counted.
    pub users: &'a UserSums,
    /// The events with an id, in file order.
    pub with_id: &'a IdEvents,
    /// The first invalid lines, in file order.
    pub rejected: &'a [Rejected],
    /// The number of invalid lines, including those that are not in `rejected`.
    pub rejected_count: u64,
    /// The number of lines, without empty ones.
    pub lines: u64,
}

/// The state of the segment after the range is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeEnd {
    /// The file is still appended to.
    Active,
    /// The file is sealed, and more of it has to be applied.
    Sealed,
    /// The file is sealed, and fully applied.
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

/// A range of a segment with its aggregate. `from` and `to` are line ends.
pub struct Range<'a> {
    /// The identity of the segment.
    pub segment: &'a SegmentId,
    /// The tag of a native segment; `None` for an imported file.
    pub tag: Option<Tag>,
    /// The current name of the file.
    pub file_name: &'a str,
    /// The applied offset before the range, in bytes.
    pub from: u64,
    /// The applied offset after the range, in bytes.
    pub to: u64,
    /// CRC-32 of all bytes before `to`.
    pub checksum: u32,
    /// The state of the segment after the range.
    pub end: RangeEnd,
    /// The time of applying, in milliseconds since 1970 UTC.
    pub now_ms: i64,
    /// The aggregate of the lines.
    pub delta: Delta<'a>,
}

/// Access to the lines of the range, for overflow replay and for rejected lines.
pub trait Source {
    /// All events without an id of these users in the range, in file order.
    fn lines_of(&mut self, users: &HashSet<String>) -> io::Result<Vec<UserLine>>;
    /// The start of the line at `offset`, at most 1024 bytes.
    fn line_at(&mut self, offset: u64) -> io::Result<Vec<u8>>;
}

/// The result of an applied range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The number of lines in each state.
    pub counts: Counts,
}

/// The outcome of [`Writer::apply`](super::Writer::apply).
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The range is committed.
    Applied(Applied),
    /// The applied offset was not `from`, so nothing was changed. The caller reads the row again.
    Raced,
}

/// The outcome of applying several ranges in one transaction.
#[derive(Debug, PartialEq, Eq)]
pub enum OutcomeOfAll {
    /// All ranges are committed, with the result of each in their order.
    Applied(Vec<Applied>),
    /// The applied offset of this range's segment was not its `from`. Nothing was changed, by no range.
    /// Read the rows again.
    Raced(usize),
}

/// The result of one attempt, before the commit.
pub(super) enum Attempt {
    Ready(Applied),
    Raced,
    /// Totals of these users might overflow. The attempt is repeated with an overflow replay.
    Suspects(HashSet<String>),
}

/// The error of an attempt.
pub(super) enum Failure {
    Sqlite(rusqlite::Error),
    Source(io::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Steps 3 to 6, inside the transaction that the caller begins and commits.
pub(super) fn attempt(
    transaction: &Connection,
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

/// Step 3: changes the applied offset of the row from `from` to `to`. `None` if it was not `from`.
fn claim(transaction: &Connection, range: &Range<'_>) -> Result<Option<SegmentRow>, Failure> {
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

/// Inserts a row; `rest` are the parameters of the statement after key, name and tag. The key of an
/// imported file is never reused, because rows of `event_id` may outlive the row of their segment.
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

/// The result of the steps so far.
#[derive(Default)]
struct Tally<'a> {
    /// User and signed micros of the events with an id that do not count. Step 5 subtracts them from the
    /// sums. Those of users in the overflow replay are not included.
    uncounted: Vec<(&'a str, i64)>,
    events: u64,
    duplicates: u64,
    net: i64,
    id_events: u64,
    id_net: i64,
    refused: Refused,
}

/// Valid events that are rejected because of an id conflict or an overflow.
#[derive(Default)]
struct Refused {
    /// The number of all such lines.
    lines: u64,
    /// Code and reason by offset, of the first [`REJECTED_LINES_MAX`] lines.
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

/// Step 6: stores the first rejected lines of the segment, in file order.
fn keep_rejected(
    transaction: &Connection,
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
    let mut invalid = range.delta.rejected.iter().peekable();
    for _ in 0..room {
        let next = invalid.peek().map_or(u64::MAX, |rejected| rejected.offset);
        if let Some((offset, (code, reason))) = refused.next_if(|&(offset, _)| offset < next) {
            let line = source.line_at(offset).map_err(Failure::Source)?;
            insert(&Rejected::new(offset, code, reason, &line))?;
        } else if let Some(rejected) = invalid.next() {
            insert(rejected)?;
        } else {
            break;
        }
    }
    Ok(())
}

/// The number of rows per statement. Consecutive rows in key order rarely need a new search of the tree.
const ROWS: usize = 64;

/// Extends a statement with one row of parameters to [`ROWS`] rows. The first `shared` parameters are
/// common to all rows; then each row has `own` parameters, followed by `last`, which are shared ones.
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
