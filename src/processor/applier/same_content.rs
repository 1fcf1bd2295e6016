//! Imported files with the content of another one. A file is identified by its name, and two exports may have
//! the same lines, so both are counted; but one may be a copy of the other.

use std::collections::HashMap;

use super::Applier;
use crate::store::{ImportContent, SegmentRow, StoreError};
use crate::verify::contents::describe_same_content;

/// The contents of the imported files, each with the name of one file that has it. Read when an imported file
/// was applied for the first time.
#[derive(Default)]
pub(super) struct Imports(Option<HashMap<ImportContent, String>>);

impl Applier<'_> {
    /// Describes which other applied file has the content of this imported file, whose last byte was applied
    /// just now; `None` if none has it. Of several files that were applied together, one is described as the
    /// original of the others.
    pub(in crate::processor) fn same_content(
        &mut self,
        row: &SegmentRow,
    ) -> Result<Option<String>, StoreError> {
        let Some(content) = row.import_content() else {
            return Ok(None);
        };
        if self.imports.0.is_none() {
            let known = self.writer.import_contents()?.into_iter();
            self.imports.0 = Some(known.map(|(name, content)| (content, name)).collect());
        }
        let name = row.id.to_string();
        let known = self.imports.0.as_mut().map(|known| known.entry(content));
        let other = known.map(|known| known.or_insert_with(|| name.clone()));
        Ok(other
            .filter(|other| **other != name)
            .map(|other| describe_same_content(&name, other, row.applied_bytes)))
    }
}
