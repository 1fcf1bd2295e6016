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
//!
//! Several ranges whose sums per user were added up are applied by [`attempt_folded`], in the same steps: each
//! range's offset (3) and ids (4) in turn, the totals of all of them (5), then each range's rejected lines and
//! counts (6). There is no overflow replay: if a total might overflow, nothing is changed, and the caller
//! applies each range by itself.

pub(super) mod id_blocks;
mod id_lookup;
pub(super) mod ids;
mod overflow;
mod rows;
pub(super) mod totals;

use std::collections::{BTreeMap, HashSet};
use std::io;

use self::overflow::OverflowReplay;
pub(super) use self::rows::{AddedCounts, Rows};
use super::overall::{self, Overall};
use super::{
    Counts, IdEvents, REJECTED_LINES_MAX, Rejected, SegmentRow, SegmentState, UserLine, UserSums,
};
use crate::data_dir::segment::{Label, SegmentId, Tag};

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
    /// The sum of the signed micros of all events, modulo 2^64.
    pub net_check: i64,
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
    /// The label of an imported file that is a native segment or a part of one; `None` for all others.
    pub label: Option<Label>,
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

/// The outcome of [`Writer::apply_folded`](super::Writer::apply_folded).
#[derive(Debug, PartialEq, Eq)]
pub enum OutcomeOfFold {
    /// All ranges are committed, with the result of each in their order.
    Applied(Vec<Applied>),
    /// As [`OutcomeOfAll::Raced`].
    Raced(usize),
    /// A total might overflow. Nothing was changed; each range has to be applied by itself.
    Separately,
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

/// The end of a transaction, with its result.
pub(super) enum End<T> {
    Commit(T),
    RollBack(T),
}

/// The result of one attempt, before the commit.
pub(super) enum Attempt {
    Ready(Applied),
    Raced,
    /// Totals of these users might overflow. The attempt is repeated with an overflow replay.
    Suspects(HashSet<String>),
}

/// The result of one attempt to apply folded ranges, before the commit.
pub(super) enum FoldAttempt {
    Ready(Vec<Applied>),
    Raced(usize),
    MayOverflow,
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
    let mut tally = RangeTally::default();
    let mut replay = OverflowReplay::start(rows, suspects, source)?;
    ids::count(rows, range, row.key, &mut replay, &mut tally)?;
    let new_suspects = totals::add(rows, range.delta.users, &replay, &mut tally)?;
    if !new_suspects.is_empty() {
        return Ok(Attempt::Suspects(new_suspects));
    }
    let added = tally.added;
    let counts = add_range(rows, range, &row, tally, &added, source)?;
    let overall = rows.add_overall(&added)?;
    Ok(Attempt::Ready(Applied { counts, overall }))
}

/// Step 6 and the counts of a range, which has added `added` to the totals.
fn add_range<R: Rows>(
    rows: &mut R,
    range: &Range<'_>,
    row: &SegmentRow,
    tally: RangeTally<'_>,
    added: &overall::Added,
    source: &mut dyn Source,
) -> Result<Counts, Failure<R::Error>> {
    let counts = Counts {
        lines: range.delta.lines,
        events: added.events,
        duplicates: tally.duplicates,
        rejected: range.delta.rejected_count + tally.rejected.lines,
    };
    keep_rejected(rows, range, tally.rejected.first, source)?;
    let added = AddedCounts {
        key: row.key,
        counts,
        net_check: row
            .net_check
            .wrapping_add(overall::low_64_bits(added.micros)),
        id_events: added.ids,
        id_net_check: row.id_net_check.wrapping_add(tally.id_net),
    };
    rows.add_counts(&added, range.end.state())?;
    Ok(counts)
}

/// Steps 3 to 6 for several ranges, whose sums per user are added up in `users`. The sources are those of
/// the ranges.
pub(super) fn attempt_folded<R: Rows>(
    rows: &mut R,
    users: &UserSums,
    ranges: &mut [(Range<'_>, &mut dyn Source)],
) -> Result<FoldAttempt, Failure<R::Error>> {
    let mut replay = OverflowReplay::none();
    let mut tallies = Vec::with_capacity(ranges.len());
    let mut all = RangeTally::default();
    for (at, (range, _)) in ranges.iter().enumerate() {
        let Some(row) = rows.claim(range)? else {
            return Ok(FoldAttempt::Raced(at));
        };
        let mut tally = RangeTally::default();
        ids::count(rows, range, row.key, &mut replay, &mut tally)?;
        let uncounted = std::mem::take(&mut tally.uncounted);
        let mut added = overall::Added {
            events: range.delta.lines - range.delta.rejected_count,
            micros: i128::from(range.delta.net_check),
            ids: tally.added.ids,
        };
        for &(_, micros) in &uncounted {
            added.events -= 1;
            added.micros -= i128::from(micros);
        }
        all.added.ids += added.ids;
        all.uncounted.extend(uncounted);
        tallies.push((row, tally, added));
    }
    if !totals::add(rows, users, &replay, &mut all)?.is_empty() {
        return Ok(FoldAttempt::MayOverflow);
    }
    check_sums(&all.added, tallies.iter().map(|(_, _, added)| added)).map_err(Failure::Source)?;
    let mut counts = Vec::with_capacity(ranges.len());
    for ((range, source), (row, tally, added)) in ranges.iter_mut().zip(tallies) {
        counts.push(add_range(rows, range, &row, tally, &added, *source)?);
    }
    let overall = rows.add_overall(&all.added)?;
    let applied = counts.into_iter().map(|counts| Applied { counts, overall });
    Ok(FoldAttempt::Ready(applied.collect()))
}

/// Fails unless the ranges have exactly the events of the sums: events that are in only one of them would be a
/// wrong total or a wrong row.
fn check_sums<'a>(
    of_users: &overall::Added,
    of_ranges: impl Iterator<Item = &'a overall::Added>,
) -> io::Result<()> {
    let mut events = 0;
    let mut net = 0i64;
    for added in of_ranges {
        events += added.events;
        net = net.wrapping_add(overall::low_64_bits(added.micros));
    }
    if (events, net) == (of_users.events, overall::low_64_bits(of_users.micros)) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the sums per user have {} events and the segments {events}, or another revenue; please report this",
        of_users.events
    )))
}

/// The result of the steps so far.
#[derive(Default)]
struct RangeTally<'a> {
    /// User and signed micros of the events with an id that do not count. Step 5 subtracts them from the
    /// sums. Those of users in the overflow replay are not included.
    uncounted: Vec<(&'a str, i64)>,
    /// What the range adds to the sums over all users.
    added: overall::Added,
    duplicates: u64,
    id_net: i64,
    rejected: RejectedEvents,
}

/// Valid events that are rejected because of an id conflict or an overflow.
#[derive(Default)]
struct RejectedEvents {
    /// The number of all such lines.
    lines: u64,
    /// Code and reason by offset, of the first [`REJECTED_LINES_MAX`] lines.
    first: BTreeMap<u64, (&'static str, String)>,
}

impl RejectedEvents {
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
    rejected: BTreeMap<u64, (&'static str, String)>,
    source: &mut dyn Source,
) -> Result<(), Failure<R::Error>> {
    if rejected.is_empty() && range.delta.rejected.is_empty() {
        return Ok(());
    }
    let segment = range.segment.to_string();
    let kept = rows.rejected_lines(&segment)?;
    let room = usize::try_from(REJECTED_LINES_MAX.saturating_sub(kept)).unwrap_or_default();
    let mut rejected = rejected.into_iter().peekable();
    let mut invalid = range.delta.rejected.iter().peekable();
    for _ in 0..room {
        let next = invalid.peek().map_or(u64::MAX, |rejected| rejected.offset);
        if let Some((offset, (code, reason))) = rejected.next_if(|&(offset, _)| offset < next) {
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
