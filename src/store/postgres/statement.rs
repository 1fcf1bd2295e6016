//! Statements, their parameters, and why an operation on rows failed.
//!
//! No statement is prepared: a connection pooler may give each transaction another connection.

use ::postgres::types::{ToSql, Type};

use super::convert::Malformed;
use crate::store::apply::Failure;

/// A statement of `sql/postgres/query/`.
macro_rules! statement {
    ($name:literal) => {
        include_str!(concat!("../../../sql/postgres/query/", $name, ".sql"))
    };
}

/// A statement that selects rows of segments, as [`convert::segment_row`](super::convert::segment_row) reads them.
macro_rules! of_segments {
    ($clauses:literal) => {
        concat!(
            "SELECT ",
            $crate::store::postgres::statement::statement!("segment_columns"),
            $crate::store::postgres::statement::statement!($clauses)
        )
    };
}

/// A statement that changes a row of a segment, and returns the new one.
macro_rules! returning_segment {
    ($change:literal) => {
        concat!(
            $crate::store::postgres::statement::statement!($change),
            "RETURNING ",
            $crate::store::postgres::statement::statement!("segment_columns")
        )
    };
}
pub(super) use {of_segments, returning_segment, statement};

/// The most rows of one statement.
pub(super) const TOGETHER: usize = 4096;

/// A parameter with its type.
pub(super) type Param<'p> = (&'p (dyn ToSql + Sync), Type);

/// Why a row operation failed.
pub(super) enum RowsError {
    Postgres(::postgres::Error),
    /// A row has a value that this program does not write.
    Malformed(Malformed),
    /// A row that was in the way of an insertion is gone: another node expired it. The transaction is repeated.
    Gone(&'static str),
}

impl From<::postgres::Error> for RowsError {
    fn from(error: ::postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl From<Malformed> for RowsError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

impl From<::postgres::Error> for Failure<RowsError> {
    fn from(error: ::postgres::Error) -> Self {
        Self::Rows(error.into())
    }
}
