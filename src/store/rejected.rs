//! Rejected lines, and which of them are listed.

use rusqlite::{Connection, params};

use crate::data_dir::segment::Position;

const LIST_NEWEST_REJECTED: &str = include_str!("../../sql/query/list_newest_rejected_lines.sql");

/// A row of `rejected_line`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedLine {
    /// The identity of its segment, as in `segment.name`.
    pub segment: String,
    /// Bytes from the start of the file to the start of the line.
    pub offset: u64,
    /// The stable reason code, such as `negative` or `id_conflict`.
    pub code: String,
    /// The reason as text.
    pub reason: String,
    /// The first 1024 bytes of the line; invalid UTF-8 is replaced by U+FFFD.
    pub line: String,
}

/// Selects rejected lines. The default selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RejectedFilter {
    /// Only lines of native segments, at or after this position.
    pub since: Option<Position>,
    /// Only events whose id begins with this text.
    pub id_prefix: Option<String>,
}

impl RejectedFilter {
    /// The start of a line whose id begins with the prefix, as `send` writes it. A line that was cut is not
    /// valid JSON, but it has its id at the start.
    fn opened(&self) -> Option<String> {
        self.id_prefix.as_deref().map(|prefix| {
            let mut opened = format!("{{\"id\":{}", serde_json::Value::from(prefix));
            opened.pop(); // the closing quote
            opened
        })
    }

    /// Whether the line has the id prefix. The position is not compared.
    #[cfg(feature = "postgres")]
    pub(super) fn has_prefix(&self, line: &RejectedLine) -> bool {
        let (Some(prefix), Some(opened)) = (&self.id_prefix, self.opened()) else {
            return true;
        };
        let json: Option<serde_json::Value> = serde_json::from_str(&line.line).ok();
        let id = json.as_ref().and_then(|json| json.get("id")?.as_str());
        id.is_some_and(|id| id.starts_with(prefix.as_str())) || line.line.starts_with(&opened)
    }
}

/// At most `limit` rejected lines, newest first: those of the most recently applied segment, from its
/// end, then those of the one before.
pub(super) fn newest(
    connection: &Connection,
    limit: u32,
    filter: &RejectedFilter,
) -> rusqlite::Result<Vec<RejectedLine>> {
    let opened = filter.opened();
    connection
        .prepare_cached(LIST_NEWEST_REJECTED)?
        .query_map(
            params![
                limit,
                filter.since.map(|position| position.segment),
                filter.id_prefix,
                opened,
                filter.since.map(|position| position.offset),
            ],
            |row| {
                Ok(RejectedLine {
                    segment: row.get(0)?,
                    offset: row.get(1)?,
                    code: row.get(2)?,
                    reason: row.get(3)?,
                    line: row.get(4)?,
                })
            },
        )?
        .collect()
}
