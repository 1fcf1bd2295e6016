//! What a server reads of the database for its figures, as of one moment.

use super::{AppliedSegments, Ledger, Overall, Pruned, SegmentRow};

/// See [`Readers::status`].
#[derive(Debug, Default)]
pub(crate) struct DatabaseStatus {
    /// The number of lines in each state.
    pub(crate) ledger: Ledger,
    /// The sums over all users; in PostgreSQL, of the node.
    pub(crate) overall: Overall,
    /// The fully applied segments.
    pub(crate) applied: AppliedSegments,
    /// The rows of the other segments.
    pub(crate) unfinished: Vec<SegmentRow>,
    /// The sum of the pruned segments.
    pub(crate) pruned: Pruned,
}
