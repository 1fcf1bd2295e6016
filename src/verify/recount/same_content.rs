//! Imported files with the same content, which may be copies: no file can prove whether they are.

use std::collections::HashMap;

use super::{Finding, Recount};
use crate::store::SegmentState;
use crate::verify::contents::describe_same_content;

impl Recount<'_> {
    /// Reports the imported files that have the length and checksum of an earlier one.
    pub(super) fn same_contents(&mut self) {
        let mut first: HashMap<_, String> = HashMap::new();
        let mut findings = Vec::new();
        // In the order in which they were found: keys of imported files descend.
        let rows = self.snapshot.rows.iter().rev();
        for row in rows.filter(|row| row.state == SegmentState::Applied) {
            let Some(content) = row.import_content() else {
                continue;
            };
            let name = row.id.to_string();
            if let Some(other) = first.get(&content) {
                findings.push(describe_same_content(&name, other, row.applied_bytes));
            } else {
                first.insert(content, name);
            }
        }
        for finding in findings {
            self.add_finding(&Finding::Note(finding));
        }
    }
}
