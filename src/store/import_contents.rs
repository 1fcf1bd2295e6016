//! Length, checksum and label of the imported files, by which a copy of one under another name is noticed.

use rusqlite::Connection;

use super::SegmentRow;
use crate::data_dir::segment::{Label, Part, Prefix};

const SELECT: &str = include_str!("../../sql/query/select_import_contents.sql");

const SELECT_IMPORTS_OF: &str = include_str!("../../sql/query/select_imports_of.sql");

/// The length and the checksum of a fully applied imported file.
pub type ImportContent = (u64, u32);

/// The fully applied imported files that have counted events without an id: name and content. Of a copy of a
/// file in which each event has an id, no event counts.
pub(super) fn read(connection: &Connection) -> rusqlite::Result<Vec<(String, ImportContent)>> {
    connection
        .prepare_cached(SELECT)?
        .query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?
        .collect()
}

/// The name of each imported file with this label, and what is applied of it.
pub(super) fn of_label(
    connection: &Connection,
    label: Label,
) -> rusqlite::Result<Vec<(String, Prefix)>> {
    connection
        .prepare_cached(SELECT_IMPORTS_OF)?
        .query_map([label.to_string()], |row| {
            let prefix = Prefix {
                length: row.get(1)?,
                checksum: row.get(2)?,
            };
            Ok((row.get(0)?, prefix))
        })?
        .collect()
}

impl SegmentRow {
    /// The content of an imported file that has counted events without an id; `None` of any other segment.
    pub(crate) fn import_content(&self) -> Option<ImportContent> {
        // A part with other bytes of its segment may have the same lines.
        let is_file = self.id.number().is_none() && Part::of_name(&self.id.to_string()).is_none();
        let counts = is_file && self.counts.events > self.id_events;
        counts.then_some((self.applied_bytes, self.checksum))
    }
}
