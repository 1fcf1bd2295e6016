//! Applies a range of a segment to the totals, in one transaction.
//!
//! The steps are: reading and aggregating the range (1, by the caller), BEGIN (2), compare-and-set of the
//! applied offset (3), ids (4), totals (5), rejected lines (6), COMMIT (7). The caller updates its in-memory
//! state after the commit (8). The thread of the
//! [`Writer`](super::Writer) runs all of them; after an error the transaction is rolled back.
//!
//! The steps are the same on every database. What they do with rows is behind [`Rows`]: SQLite implements it
//! by prepared statements, PostgreSQL by statements for sets of rows.
//!
//! Events without an id are already summed per user. If a total might overflow 64 bits, the transaction
//! is rolled back and repeated with an overflow replay: the lines of that user are applied one by one
//! in file order, so that the set of rejected lines does not depend on how the file was divided into
//! ranges.

pub(super) mod id_blocks;
pub(super) mod ids;
mod overflow;
mod rows;
pub(super) mod totals;

use std::collections::{BTreeMap, HashSet};
use std::io;

use self::overflow::OverflowReplay;
pub(super) use self::rows::{AddedCounts, Rows};
use super::overall::{self, Overall};
use super::{Counts, IdEvents, REJECTED_LINES_MAX, Rejected, SegmentState, UserLine, UserSums};
use crate::data_dir::segment::{SegmentId, Tag};

/// The aggregate of a range.
#[derive(Clone, Copy)]
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
    pub(super) fn state(self) -> SegmentState {
        match self {
            Self::Active => SegmentState::Active,
            Self::Sealed => SegmentState::Sealed,
            Self::Complete => SegmentState::Applied,
        }
    }
}

/// A range of a segment with its aggregate. `from` and `to` are line ends.
#[derive(Clone, Copy)]
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
    /// The sums over all users after the range.
    pub overall: Overall,
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

/// The error of an attempt: of an operation on rows, or of reading lines again.
pub(super) enum Failure<E> {
    Rows(E),
    Source(io::Error),
}

impl<E> From<E> for Failure<E> {
    fn from(error: E) -> Self {
        Self::Rows(error)
    }
}

/// Steps 3 to 6, inside the transaction that the caller begins and commits.
pub(super) fn attempt<R: Rows>(
    rows: &mut R,
    range: &Range<'_>,
    suspects: &HashSet<String>,
    source: &mut dyn Source,
) -> Result<Attempt, Failure<R::Error>> {
    let Some(row) = rows.claim(range)? else {
        return Ok(Attempt::Raced);
    };
    let mut tally = Tally::default();
    let mut replay = OverflowReplay::start(rows, suspects, source)?;
    ids::count(rows, range, row.key, &mut replay, &mut tally)?;
    let new_suspects = totals::add(rows, range, &replay, &mut tally)?;
    if !new_suspects.is_empty() {
        return Ok(Attempt::Suspects(new_suspects));
    }
    let rejected = range.delta.rejected_count + tally.refused.lines;
    let counts = Counts {
        lines: range.delta.lines,
        events: tally.added.events,
        duplicates: tally.duplicates,
        rejected,
    };
    keep_rejected(rows, range, tally.refused.first, source)?;
    let added = AddedCounts {
        key: row.key,
        counts,
        net_check: row
            .net_check
            .wrapping_add(overall::low_64_bits(tally.added.micros)),
        id_events: tally.id_events,
        id_net_check: row.id_net_check.wrapping_add(tally.id_net),
    };
    rows.add_counts(&added, range.end.state())?;
    let overall = rows.add_overall(&tally.added)?;
    Ok(Attempt::Ready(Applied { counts, overall }))
}

/// The result of the steps so far.
#[derive(Default)]
struct Tally<'a> {
    /// User and signed micros of the events with an id that do not count. Step 5 subtracts them from the
    /// sums. Those of users in the overflow replay are not included.
    uncounted: Vec<(&'a str, i64)>,
    /// What the range adds to the sums over all users.
    added: overall::Added,
    duplicates: u64,
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
fn keep_rejected<R: Rows>(
    rows: &mut R,
    range: &Range<'_>,
    refused: BTreeMap<u64, (&'static str, String)>,
    source: &mut dyn Source,
) -> Result<(), Failure<R::Error>> {
    if refused.is_empty() && range.delta.rejected.is_empty() {
        return Ok(());
    }
    let segment = range.segment.to_string();
    let kept = rows.rejected_lines(&segment)?;
    let room = usize::try_from(REJECTED_LINES_MAX.saturating_sub(kept)).unwrap_or_default();
    let mut refused = refused.into_iter().peekable();
    let mut invalid = range.delta.rejected.iter().peekable();
    for _ in 0..room {
        let next = invalid.peek().map_or(u64::MAX, |rejected| rejected.offset);
        if let Some((offset, (code, reason))) = refused.next_if(|&(offset, _)| offset < next) {
            let line = source.line_at(offset).map_err(Failure::Source)?;
            rows.insert_rejected(&segment, &Rejected::new(offset, code, reason, &line))?;
        } else if let Some(rejected) = invalid.next() {
            rows.insert_rejected(&segment, rejected)?;
        } else {
            break;
        }
    }
    Ok(())
}
