//! Files that are not in the totals: rivals, pending and quarantined files, and missing numbers.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use crc32fast::Hasher;

use super::{Finding, Recount, in_quarantine};
use crate::data_dir::disk::DiskFile;
use crate::data_dir::segment::{ACTIVE_FILE, SegmentId, label_in_name};
use crate::data_dir::{Place, numbers, read_label};
use crate::store::SegmentRow;
use crate::verify::contents::{
    compare_claims, describe_other_label, describe_rivals, label_of_import, same_segment,
};
use crate::verify::seal;

impl Recount<'_> {
    /// Reports files with the number of a segment that is another file.
    pub(super) fn rivals(&mut self) {
        let rows = self.snapshot.rows.iter().map(|row| (&row.id, row));
        let known: HashMap<&SegmentId, &SegmentRow> = rows.collect();
        let mut findings = Vec::new();
        for (id, found) in &self.catalog.sealed {
            let row = known.get(id).copied();
            let claims = compare_claims(self.disk, found, row);
            let pruned = id
                .number()
                .is_some_and(|number| number <= self.snapshot.pruned.number);
            if !claims.rivals.is_empty() && (known.contains_key(id) || !pruned) {
                findings.push(describe_rivals(self.disk, id, &claims.rivals, row));
            }
        }
        let path = self.config.data_dir.join(ACTIVE_FILE);
        if let Some(label) = self.active
            && let Some(row) = known.get(&SegmentId::Native(label.number))
            && row.tag != Some(label.tag)
        {
            findings.push(format!(
                "segment {}: {} is not the segment of that number that was applied",
                SegmentId::Native(label.number),
                path.display()
            ));
        }
        for finding in findings {
            self.add_finding(&Finding::Mismatch(finding));
        }
    }

    /// Reports files without a row in the database: pending, pruned or in the quarantine.
    pub(super) fn files_without_row(&mut self) {
        let known: HashSet<&SegmentId> = self.snapshot.rows.iter().map(|row| &row.id).collect();
        let mut others: Vec<(SegmentId, PathBuf, Place)> = self
            .catalog
            .sealed
            .values()
            .flatten()
            .filter(|found| !known.contains(&found.id))
            .map(|found| (found.id.clone(), found.path.clone(), found.place))
            .collect();
        let active = self.active.map(|label| SegmentId::Native(label.number));
        if let Some(active) = active.filter(|active| !known.contains(active)) {
            let path = self.config.data_dir.join(ACTIVE_FILE);
            others.push((active, path, Place::Incoming));
        }
        for (id, path, place) in others {
            self.file_without_row(&id, &path, place);
        }
        let (files, bytes) = self.pending;
        if files > 0 {
            self.add_finding(&Finding::Note(format!(
                "pending: {bytes} bytes in {files} files are not applied yet"
            )));
        }
    }

    fn file_without_row(&mut self, id: &SegmentId, path: &Path, place: Place) {
        let pruned = self.snapshot.pruned.number;
        if id.number().is_some_and(|number| number <= pruned) {
            self.add_finding(&Finding::Note(format!(
                "{}: not counted here; retention has pruned all segments up to {pruned}",
                path.display()
            )));
        } else if place == Place::Quarantine
            && id.number().is_some()
            && !self.has_other_file(id)
            && let Some(size) = self.disk.size_at(path).ok().filter(|size| *size > 0)
        {
            self.add_finding(&Finding::Inconclusive(in_quarantine(id, path, size)));
        } else if place == Place::Quarantine {
            self.add_finding(&Finding::Note(format!(
                "{}: in the quarantine, not counted",
                path.display()
            )));
        } else {
            self.pending_file(id, path);
        }
    }

    /// Adds a file of which nothing is applied to the pending ones, unless it contradicts its seal.
    fn pending_file(&mut self, id: &SegmentId, path: &Path) {
        let opened = self.disk.open_read(path);
        if let Some(other) = opened
            .as_ref()
            .ok()
            .and_then(|file| self.other_name(&**file, id, path))
        {
            self.add_finding(&Finding::Mismatch(other));
            return;
        }
        let compared = opened.and_then(|file| seal::contradiction(&*file, path, &Hasher::new()));
        if let Ok(Some(broken)) = compared {
            self.add_finding(&Finding::Mismatch(format!("segment {id}: {broken}")));
            return;
        }
        let size = match self.disk.open_read(path).and_then(|file| file.size()) {
            // Moved since the listing, or there is no active file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => {
                let note = format!("{}: not counted: {error}", path.display());
                self.add_finding(&Finding::Note(note));
                0
            }
            Ok(size) => size,
        };
        self.pending.0 += u64::from(size > 0);
        self.pending.1 += size;
    }

    /// Describes why a file is not applied whose name and label contradict each other; `None` if they do not,
    /// or if the file cannot be read.
    fn other_name(&self, file: &dyn DiskFile, id: &SegmentId, path: &Path) -> Option<String> {
        let label = read_label(file).ok()?;
        let SegmentId::Imported(name) = id else {
            let named = label_in_name(path.file_name()?.to_str()?)?;
            return (label != Some(named)).then(|| describe_other_label(id, path));
        };
        let label = match label_of_import(path, name, label, self.config.tag()) {
            Ok(label) => label?,
            Err(reason) => return Some(reason),
        };
        let size = file.size().ok()?;
        let others = self.snapshot.imports_of(label).ok()?.into_iter();
        let others = others.map(|(other, applied)| (other, Some(applied)));
        same_segment((file, size, name), (path, label), others).ok()?
    }

    /// Whether the segment has a file outside the quarantine.
    fn has_other_file(&self, id: &SegmentId) -> bool {
        let found = self.catalog.sealed.get(id).into_iter().flatten();
        found
            .into_iter()
            .any(|file| file.place != Place::Quarantine)
    }

    /// Reports numbers that have neither a file nor a row.
    pub(super) fn missing(&mut self) {
        let rows = self.snapshot.rows.iter().filter_map(|row| row.id.number());
        let files = self.catalog.sealed.keys().filter_map(SegmentId::number);
        let active = self.active.map(|label| label.number);
        let present: BTreeSet<u64> = rows.chain(files).chain(active).collect();
        let highest = present
            .last()
            .copied()
            .unwrap_or(0)
            .max(self.catalog.highest_number())
            .max(self.given_out);
        let first = self.snapshot.pruned.number + 1;
        let missing: BTreeSet<u64> = numbers::gaps(
            first,
            highest + 1,
            present.iter().map(|&number| number..=number),
        )
        .take(numbers::MISSING_MAX)
        .collect();
        if !missing.is_empty() {
            self.add_finding(&Finding::Inconclusive(format!(
                "segments {}: neither a file nor a row in the database; their events may not be counted",
                numbers::ranges(&missing)
            )));
        }
    }
}
