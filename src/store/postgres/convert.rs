//! Rows of PostgreSQL as values of the store.

use ::postgres::Row;

use super::Target;
use crate::data_dir::segment::{Numbers, Prefix, SegmentId};
use crate::event::Micros;
use crate::store::id_blocks::BlockError;
use crate::store::{
    AppliedSum, Counts, ImportContent, Ledger, Overall, Pruned, SegmentRow, SegmentState,
    StoreError,
};

/// A row that this program did not write, or that was changed.
#[derive(Debug, thiserror::Error)]
#[error("a row was damaged or changed by another program: {0}")]
pub(super) struct Malformed(String);

impl Malformed {
    fn column(column: usize, error: impl std::fmt::Display) -> Self {
        Self(format!("column {column}: {error}"))
    }
}

impl Malformed {
    /// The error of the operation `doing`.
    pub(super) fn of(&self, target: &Target, doing: &'static str) -> StoreError {
        StoreError::Postgres {
            database: target.to_string(),
            doing,
            cause: self.to_string(),
            code: None,
            cure: Some("run `tallyline verify`".to_owned()),
        }
    }
}

impl From<BlockError> for Malformed {
    fn from(error: BlockError) -> Self {
        Self(error.to_string())
    }
}

/// PostgreSQL has signed integers only. A length of more than 2^63 bytes does not exist.
pub(super) fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The value of a column.
pub(super) fn get<'r, T: ::postgres::types::FromSql<'r>>(
    row: &'r Row,
    column: usize,
) -> Result<T, Malformed> {
    row.try_get(column)
        .map_err(|error| Malformed::column(column, error))
}

/// A number that is not negative.
pub(super) fn get_u64(row: &Row, column: usize) -> Result<u64, Malformed> {
    let number: i64 = get(row, column)?;
    u64::try_from(number).map_err(|error| Malformed::column(column, error))
}

/// A number that is not negative, or NULL.
pub(super) fn get_opt_u64(row: &Row, column: usize) -> Result<Option<u64>, Malformed> {
    let number: Option<i64> = get(row, column)?;
    let number = number.map(u64::try_from);
    number
        .transpose()
        .map_err(|error| Malformed::column(column, error))
}

/// The numbers in the first column, in ascending order.
pub(super) fn numbers(rows: &[Row]) -> Result<Numbers, Malformed> {
    let mut numbers = Numbers::default();
    for row in rows {
        numbers.insert(get_u64(row, 0)?);
    }
    Ok(numbers)
}

/// The only value of the only row.
pub(super) fn one_count(rows: &[Row]) -> Result<u64, Malformed> {
    rows.first().map_or(Ok(0), |row| get_u64(row, 0))
}

/// A sum that may exceed 64 bits, which a statement returns as text.
pub(super) fn get_i128(row: &Row, column: usize) -> Result<i128, Malformed> {
    let digits: &str = get(row, column)?;
    digits
        .parse()
        .map_err(|error| Malformed::column(column, error))
}

/// A sum modulo 2^64, as a signed number.
#[expect(clippy::cast_possible_truncation, reason = "modulo 2^64")]
pub(super) fn get_wrapped(row: &Row, column: usize) -> Result<i64, Malformed> {
    get_i128(row, column).map(|sum| sum as i64)
}

pub(super) fn state(name: &str, column: usize) -> Result<SegmentState, Malformed> {
    SegmentState::of_name(name).ok_or_else(|| Malformed::column(column, format!("state {name:?}")))
}

fn counts(row: &Row, first: usize) -> Result<Counts, Malformed> {
    Ok(Counts {
        lines: get_u64(row, first)?,
        events: get_u64(row, first + 1)?,
        duplicates: get_u64(row, first + 2)?,
        rejected: get_u64(row, first + 3)?,
    })
}

/// The name of an imported file, and its content.
pub(super) fn import_content(row: &Row) -> Result<(String, ImportContent), Malformed> {
    Ok((get(row, 0)?, (get_u64(row, 1)?, get_checksum(row, 2)?)))
}

/// The name of an imported file, and what is applied of it.
pub(super) fn import_of(row: &Row) -> Result<(String, Prefix), Malformed> {
    let prefix = Prefix {
        length: get_u64(row, 1)?,
        checksum: get_checksum(row, 2)?,
    };
    Ok((get(row, 0)?, prefix))
}

fn get_checksum(row: &Row, column: usize) -> Result<u32, Malformed> {
    let number: i64 = get(row, column)?;
    u32::try_from(number).map_err(|error| Malformed::column(column, error))
}

/// A row of `segment`, with the columns of `select_segment.sql`.
pub(super) fn segment_row(row: &Row) -> Result<SegmentRow, Malformed> {
    let key: i64 = get(row, 0)?;
    let id = match u64::try_from(key) {
        Ok(number) => SegmentId::Native(number),
        Err(_) => SegmentId::Imported(get(row, 1)?),
    };
    let tag: Option<&str> = get(row, 18)?;
    let tag = tag.map(|tag| {
        tag.parse()
            .map_err(|_| Malformed::column(18, format!("tag {tag:?}")))
    });
    Ok(SegmentRow {
        id,
        key,
        tag: tag.transpose()?,
        file_name: get(row, 2)?,
        state: state(get(row, 3)?, 3)?,
        applied_bytes: get_u64(row, 4)?,
        checksum: get_checksum(row, 5)?,
        counts: counts(row, 6)?,
        net_check: get(row, 10)?,
        id_events: get_u64(row, 11)?,
        id_net_check: get(row, 12)?,
        ids_expired: get_u64(row, 13)?,
        corrupt_bytes: get_u64(row, 14)?,
        corrupt_lines: get_u64(row, 15)?,
        reason: get(row, 16)?,
        completed_at_ms: get(row, 17)?,
    })
}

/// The row of `pruned`; without one, nothing was pruned.
pub(super) fn pruned(row: Option<&Row>) -> Result<Pruned, Malformed> {
    let Some(row) = row else {
        return Ok(Pruned::default());
    };
    Ok(Pruned {
        number: get_u64(row, 0)?,
        segments: get_u64(row, 1)?,
        counts: counts(row, 2)?,
        net_check: get(row, 6)?,
        file_bytes: get_u64(row, 7)?,
        file_checksum: get_checksum(row, 8)?,
    })
}

/// The row of `applied_sum`; without one, nothing is applied.
pub(super) fn applied_sum(row: Option<&Row>) -> Result<AppliedSum, Malformed> {
    let Some(row) = row else {
        return Ok(AppliedSum::default());
    };
    Ok(AppliedSum {
        segments: get_u64(row, 0)?,
        native: get_u64(row, 1)?,
        counts: counts(row, 2)?,
        corrupt_lines: get_u64(row, 6)?,
    })
}

/// The row of `overall`; without one, nothing is counted.
pub(super) fn overall(row: Option<&Row>) -> Result<Overall, Malformed> {
    let Some(row) = row else {
        return Ok(Overall::default());
    };
    Ok(Overall {
        users: get_u64(row, 0)?,
        events: get_u64(row, 1)?,
        revenue: Micros(get_i128(row, 2)?),
        updated_at_ms: get(row, 3)?,
    })
}

/// The row of `ledger`; without one, the node is not in the database yet.
pub(super) fn ledger(row: Option<&Row>) -> Result<Ledger, Malformed> {
    let Some(row) = row else {
        return Ok(Ledger::default());
    };
    Ok(Ledger {
        lines: get_u64(row, 0)?,
        applied: get_u64(row, 1)?,
        duplicates: get_u64(row, 2)?,
        rejected: get_u64(row, 3)?,
        pending: 0,
        corrupt: get_u64(row, 4)?,
        unaccounted: 0,
    })
}
