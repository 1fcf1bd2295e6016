//! Rows of segments, and the sum of the applied ones, in a transaction of the node.

use ::postgres::types::Type;
use ::postgres::{Client, Row};

use super::convert::{self, Malformed, to_i64};
use super::statement::{RowsError, of_segments, returning_segment, statement};
use crate::data_dir::segment::{Label, SegmentId, Tag};
use crate::store::apply::Range;
use crate::store::{SegmentRow, SegmentState};

/// Step 3: see [`Rows::claim`](crate::store::apply::Rows::claim).
pub(super) fn claim_segment(
    transaction: &mut Client,
    node: i32,
    range: &Range<'_>,
) -> Result<Option<SegmentRow>, RowsError> {
    let name = range.segment.to_string();
    let (from, to) = (to_i64(range.from), to_i64(range.to));
    let checksum = i64::from(range.checksum);
    let state = range.end.state().name();
    let tag = range.tag.map(|tag| tag.to_string());
    let label = range.label.map(|label| label.to_string());
    let rows = transaction.query_typed(
        returning_segment!("claim_segment"),
        &[
            (&node, Type::INT4),
            (&name, Type::TEXT),
            (&from, Type::INT8),
            (&to, Type::INT8),
            (&checksum, Type::INT8),
            (&range.file_name, Type::TEXT),
            (&state, Type::TEXT),
            (&range.now_ms, Type::INT8),
            (&tag, Type::TEXT),
            (&label, Type::TEXT),
        ],
    )?;
    if let Some(row) = rows.first() {
        return Ok(Some(convert::segment_row(row)?));
    }
    if range.from > 0 {
        return Ok(None);
    }
    let first = First {
        segment: range.segment,
        tag: range.tag,
        label: range.label,
        file_name: range.file_name,
        state: range.end.state(),
        applied_bytes: range.to,
        checksum: range.checksum,
        now_ms: range.now_ms,
    };
    insert_segment(transaction, node, &first)
}

/// The first row of a segment.
pub(super) struct First<'a> {
    pub(super) segment: &'a SegmentId,
    pub(super) tag: Option<Tag>,
    pub(super) label: Option<Label>,
    pub(super) file_name: &'a str,
    pub(super) state: SegmentState,
    pub(super) applied_bytes: u64,
    pub(super) checksum: u32,
    pub(super) now_ms: i64,
}

/// Inserts the row of a segment; `None` if it exists already. The key of an imported file is never reused,
/// because ids may outlive the row of their segment.
pub(super) fn insert_segment(
    transaction: &mut Client,
    node: i32,
    first: &First<'_>,
) -> Result<Option<SegmentRow>, RowsError> {
    let key: i64 = match first.segment.number() {
        Some(number) => to_i64(number),
        None => transaction
            .query_typed_one(statement!("next_import_key"), &[(&node, Type::INT4)])?
            .try_get(0)?,
    };
    let name = first.segment.to_string();
    let tag = first.tag.map(|tag| tag.to_string());
    let label = first.label.map(|label| label.to_string());
    let row = transaction.query_typed_opt(
        returning_segment!("insert_segment"),
        &[
            (&node, Type::INT4),
            (&key, Type::INT8),
            (&name, Type::TEXT),
            (&tag, Type::TEXT),
            (&first.file_name, Type::TEXT),
            (&first.state.name(), Type::TEXT),
            (&to_i64(first.applied_bytes), Type::INT8),
            (&i64::from(first.checksum), Type::INT8),
            (&first.now_ms, Type::INT8),
            (&label, Type::TEXT),
        ],
    )?;
    Ok(row.map(|row| convert::segment_row(&row)).transpose()?)
}

/// Adds a segment that became fully applied in this transaction to the sum of the applied ones.
pub(super) fn add_to_applied_sum(
    transaction: &mut Client,
    node: i32,
    key: i64,
) -> Result<(), ::postgres::Error> {
    transaction
        .execute_typed(
            statement!("add_applied_segment"),
            &[(&node, Type::INT4), (&key, Type::INT8)],
        )
        .map(|_| ())
}

/// The rows of segments of a statement.
pub(super) fn segment_rows(rows: &[Row]) -> Result<Vec<SegmentRow>, Malformed> {
    rows.iter().map(convert::segment_row).collect()
}

/// The row of a segment, in this transaction.
pub(super) fn one(
    transaction: &mut Client,
    node: i32,
    id: &SegmentId,
) -> Result<Option<SegmentRow>, RowsError> {
    let name = id.to_string();
    let row = transaction.query_typed_opt(
        of_segments!("select_segment"),
        &[(&node, Type::INT4), (&name, Type::TEXT)],
    )?;
    Ok(row.map(|row| convert::segment_row(&row)).transpose()?)
}
