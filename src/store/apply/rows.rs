//! The row operations of an attempt, which each database implements.
//!
//! All of them run in the transaction that the caller has begun. They decide nothing: which events count is
//! decided in this module's siblings, in the same way on every database.

use std::collections::{HashMap, HashSet};

use super::Range;
use super::id_blocks::{Change, Work};
use super::ids::IdLookup;
use crate::aggregate::{IdEvent, Rejected};
use crate::store::SegmentRow;
use crate::store::id_blocks::{Block, BlockKey};
use crate::store::overall::{Added, Overall};
use crate::store::{Counts, SegmentState};

/// The rows of one transaction that applies one range.
pub(in crate::store) trait Rows {
    /// An operation failed; the transaction is rolled back.
    type Error;
    /// How many rows of a table one call gets at most.
    const TOGETHER: usize;

    /// Step 3: changes the applied offset of the segment's row from the beginning of the range to its end, or
    /// inserts the row if the range is the first one. Returns the row; `None` if the offset was another one.
    fn claim(&mut self, range: &Range<'_>) -> Result<Option<SegmentRow>, Self::Error>;

    /// What the tables of ids store of a segment: it identifies the segment among all whose ids are in these
    /// tables.
    fn place(&self, key: i64) -> i64;

    /// Inserts the ids that are not in the table, of equal ones the first, and puts the status of each into
    /// `seen`. The events are sorted by id.
    fn insert_ids(
        &mut self,
        place: i64,
        events: &[IdEvent<'_>],
        seen: &mut Vec<IdLookup>,
    ) -> Result<(), Self::Error>;

    /// The status of one id.
    fn look_up_id(&mut self, place: i64, event: &IdEvent<'_>) -> Result<IdLookup, Self::Error>;

    /// Inserts one id that is not in the table.
    fn insert_id(&mut self, place: i64, event: &IdEvent<'_>) -> Result<(), Self::Error>;

    /// An event whose id is not that of a counted one is rejected. Deletes the row of the id, if the database
    /// inserts ids in advance.
    fn reject_id(&mut self, _place: i64, _event: &IdEvent<'_>) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Inserts the blocks as they are in `works`, sorted by key. Each of those that are in the table is read
    /// into its `work`, changed by `merge` and written.
    fn upsert_blocks(
        &mut self,
        works: &mut [Work<'_>],
        merge: impl FnMut(&mut Work<'_>) -> Change,
    ) -> Result<(), Self::Error>;

    /// Reads one block. Returns whether it is in the table.
    fn load_block(&mut self, key: &BlockKey<'_>, block: &mut Block) -> Result<bool, Self::Error>;

    /// Inserts one block that is not in the table.
    fn insert_block(&mut self, work: &Work<'_>) -> Result<(), Self::Error>;

    /// Writes one block that is in the table.
    fn update_block(&mut self, work: &Work<'_>, change: Change) -> Result<(), Self::Error>;

    /// The totals of these users, in micros; users without a total are left out.
    fn totals(&mut self, users: &HashSet<String>) -> Result<HashMap<String, i64>, Self::Error>;

    /// Adds net micros and events to the totals of users, sorted by user. A user is added to `suspects`, and
    /// the total may stay unchanged, if the total was not from `-SAFE` to [`SAFE`](super::totals::SAFE).
    fn add_totals(
        &mut self,
        users: &[(&str, i64, i64)],
        suspects: &mut HashSet<String>,
    ) -> Result<(), Self::Error>;

    /// Sets a user's total, and adds `events` to the number of events.
    fn set_total(&mut self, user: &str, micros: i64, events: u64) -> Result<(), Self::Error>;

    /// How many rejected lines of the segment are stored.
    fn rejected_lines(&mut self, segment: &str) -> Result<u64, Self::Error>;

    /// Stores a rejected line, unless it is stored. It may be written later, but before
    /// [`Rows::add_counts`] returns.
    fn insert_rejected(&mut self, segment: &str, line: &Rejected) -> Result<(), Self::Error>;

    /// Adds to the sums over all users: what the range has added, and the users that were new in
    /// [`Rows::add_totals`] and [`Rows::set_total`]. Returns the new sums.
    fn add_overall(&mut self, added: &Added) -> Result<Overall, Self::Error>;

    /// Adds to the counts of the segment's row, and the row to the sum of the applied
    /// segments if `state` is [`SegmentState::Applied`].
    fn add_counts(&mut self, added: &AddedCounts, state: SegmentState) -> Result<(), Self::Error>;
}

/// What a range adds to the row of its segment.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct AddedCounts {
    /// `segment.key`.
    pub(in crate::store) key: i64,
    pub(in crate::store) counts: Counts,
    /// The new `net_check`.
    pub(in crate::store) net_check: i64,
    pub(in crate::store) id_events: u64,
    /// The new `id_net_check`.
    pub(in crate::store) id_net_check: i64,
}
