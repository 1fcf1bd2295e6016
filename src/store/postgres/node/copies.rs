//! Finds out whether a data directory is a copy, with another UUID, of one whose files were applied.

use std::io;
use std::path::Path;

use ::postgres::types::Type;
use ::postgres::{Row, Transaction};
use uuid::Uuid;

use super::fenced;
use crate::aggregate::lines;
use crate::data_dir::DataDirError;
use crate::data_dir::disk::Disk;
use crate::data_dir::node_tokens::{archived_imports, tags_of_segments};
use crate::data_dir::segment::Tag;
use crate::store::StoreError;
use crate::store::postgres::Target;

const SELECT_COPIED: &str = include_str!("../../../../sql/postgres/select_copied_segment.sql");
const SELECT_COPIED_IMPORTS: &str =
    include_str!("../../../../sql/postgres/select_copied_imports.sql");
/// Tags or names of files that are compared with the database in one statement.
const TAGS: usize = 5_000;

/// Rejects a data directory with segments that another node applied: a copy with another UUID.
pub(super) fn refuse_copy(
    transaction: &mut Transaction<'_>,
    target: &Target,
    disk: &dyn Disk,
    data_dir: &Path,
) -> Result<(), StoreError> {
    let tags: Vec<String> = tags_of_segments(disk, data_dir)
        .map_err(StoreError::NodeTokens)?
        .iter()
        .map(Tag::to_string)
        .collect();
    for tags in tags.chunks(TAGS) {
        let rows = transaction
            .query_typed(SELECT_COPIED, &[(&tags, Type::TEXT_ARRAY)])
            .map_err(target.failed("compare its segments with those of other nodes"))?;
        if let Some(row) = rows.first() {
            return Err(copied(target, data_dir, row));
        }
    }
    refuse_copied_import(transaction, target, disk, data_dir)
}

/// Rejects an archive with an imported file that another node applied: same name, length and checksum. If all its
/// events have an id, it does no harm.
fn refuse_copied_import(
    transaction: &mut Transaction<'_>,
    target: &Target,
    disk: &dyn Disk,
    data_dir: &Path,
) -> Result<(), StoreError> {
    let files = archived_imports(disk, data_dir).map_err(StoreError::NodeTokens)?;
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    for names in names.chunks(TAGS) {
        let rows = transaction
            .query_typed(SELECT_COPIED_IMPORTS, &[(&names, Type::TEXT_ARRAY)])
            .map_err(target.failed("compare its files with those of other nodes"))?;
        for row in rows {
            let (name, length, checksum): (&str, i64, i64) = (row.get(0), row.get(3), row.get(4));
            let Some(path) = files.get(name) else {
                continue;
            };
            let is_same = || -> io::Result<bool> {
                let file = disk.open_read(path)?;
                let size = file.size()?;
                Ok(i64::try_from(size) == Ok(length)
                    && i64::from(lines::checksum(&*file, size)?) == checksum)
            };
            let is_same = is_same().map_err(DataDirError::io("read", path));
            if is_same.map_err(StoreError::NodeTokens)? {
                return Err(copied(target, data_dir, &row));
            }
        }
    }
    Ok(())
}

/// The error of a copy. The row begins with the segment, and the name and the UUID of the node that applied it.
fn copied(target: &Target, data_dir: &Path, row: &Row) -> StoreError {
    let (segment, name, id): (String, String, Uuid) = (row.get(0), row.get(1), row.get(2));
    fenced(
        target,
        format!(
            "this data directory ({}) is a copy with another UUID: the node {id} on {name} has applied {segment}, whose events would be counted twice. Remove the files of that node from this directory; or, if that node is gone for good, put its UUID into directory.json here and run `tallyline nodes adopt`",
            data_dir.display()
        ),
    )
}
