//! Finds the files of a batch run: those of the data directory, or those that were named.

use std::collections::HashSet;
use std::path::PathBuf;

use super::{Batch, RunProgress, Step};
use crate::data_dir::disk::Unusable;
use crate::data_dir::numbers::{MISSING_MAX, gaps};
use crate::data_dir::segment::SegmentId;
use crate::data_dir::{Catalog, Found, Place, active_label, given_out};
use crate::processor::import::{ImportOutcome, Importer};
use crate::processor::other_names::OtherNames;
use crate::processor::{ProcessError, Refused, describe, retention};
use crate::store::{AppliedSegments, Writer};
use crate::verify::contents::{accounts_for, compare_claims, describe_rivals};

impl Batch<'_> {
    /// The files in the data directory that are not fully applied, or not yet archived. Reports missing
    /// segments.
    pub(super) fn pending_files(&mut self, writer: &Writer) -> Result<Vec<Found>, ProcessError> {
        let data_dir = &self.config.data_dir;
        let pruned = writer.pruned()?.number;
        // Read before the listing, which then has every segment sealed by now.
        let given_out = given_out(self.disk, data_dir)?;
        let tag = self.config.directory_tag();
        let active = active_label(self.disk, data_dir, tag)?;
        let (applied, _) = writer.applied()?;
        let mut catalog = Catalog::scan_unapplied(self.disk, data_dir, tag, &applied.native)
            .map_err(ProcessError::io("list", data_dir))?;
        if let Err(error) = retention::finish_at_start(self.disk, self.config, &mut catalog, writer)
        {
            tracing::warn!("{}", describe(&error));
        }
        for dir in &catalog.dirs {
            self.disk
                .sync_dir(dir)
                .map_err(ProcessError::io("sync", dir))?;
        }
        self.report_other_entries();
        let pending = self.usable_files(writer, &catalog, &applied, pruned)?;
        let mut present = applied.native;
        present.extend(active.map(|label| label.number));
        for (id, found) in &catalog.sealed {
            let Some(number) = id.number().filter(|number| !present.contains(*number)) else {
                continue;
            };
            let row = writer.segment(id)?;
            if accounts_for(self.disk, found, row.as_ref()) {
                present.insert(number);
            }
        }
        let highest = present.last().unwrap_or(0).max(given_out);
        let highest = highest.max(catalog.highest_number());
        self.summary.missing = gaps(pruned + 1, highest + 1, present.ranges())
            .take(MISSING_MAX)
            .collect();
        Ok(pending)
    }

    /// Reports directories that have the name of a segment, and files of events that do not.
    fn report_other_entries(&mut self) {
        let mut other_names = OtherNames::default();
        let (data_dir, tag) = (&self.config.data_dir, self.config.directory_tag());
        for (name, is_dir) in self.disk.list(data_dir).unwrap_or_default() {
            let is_segment = SegmentId::of_file(&name, tag).is_some();
            if !is_dir && !is_segment {
                other_names.report(data_dir, &name);
            }
            if is_dir && is_segment {
                self.summary.unusable.push(Refused {
                    path: data_dir.join(name),
                    reason: Unusable::NotRegular("directory").to_string(),
                });
            }
        }
    }

    /// The listed files that are to be applied or archived. Refuses rivals.
    fn usable_files(
        &mut self,
        writer: &Writer,
        catalog: &Catalog,
        applied: &AppliedSegments,
        pruned: u64,
    ) -> Result<Vec<Found>, ProcessError> {
        let mut usable = Vec::new();
        for (id, found) in &catalog.sealed {
            let is_applied = applied.contains(id);
            let row = match found[..] {
                [_] if is_applied => None,
                _ => writer.segment(id)?,
            };
            // A pruned segment in the archive is not reported.
            let is_gone =
                !is_applied && row.is_none() && id.number().is_some_and(|number| number <= pruned);
            let claims = compare_claims(self.disk, found, row.as_ref());
            if !(claims.rivals.is_empty() || is_gone) {
                let reason = describe_rivals(self.disk, id, &claims.rivals, row.as_ref());
                self.refuse(&claims.rivals[0].path, reason);
            }
            if let Some(found) = claims.usable
                && (found.place == Place::Incoming || !(is_gone || is_applied))
            {
                usable.push(found.clone());
            }
        }
        Ok(usable)
    }

    /// The named files, after those outside the data directory were imported.
    pub(super) fn named_files(
        &mut self,
        writer: &Writer,
        files: &[PathBuf],
    ) -> Result<Vec<Found>, ProcessError> {
        let mut importer = Importer::new(self.config, self.disk)?;
        let mut pending = Vec::new();
        let mut paths = HashSet::new();
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let on_progress = &mut *self.on_progress;
            let mut on_read = |bytes, bytes_total| {
                on_progress(RunProgress {
                    step: Step::Import,
                    segment: &name,
                    bytes,
                    bytes_total,
                });
            };
            let outcome = match importer.import_file(writer, file, &mut on_read) {
                Err(error @ ProcessError::Io(_)) => ImportOutcome::Refused(describe(&error)),
                outcome => outcome?,
            };
            match outcome {
                ImportOutcome::New(found) => {
                    if paths.insert(found.path.clone()) {
                        pending.push(found);
                    }
                }
                ImportOutcome::Known(name) => self.summary.skipped.push(name),
                ImportOutcome::Repeated => {}
                ImportOutcome::Refused(reason) => self.refuse(file, reason),
            }
        }
        self.summary.forks = importer.forks;
        Ok(pending)
    }
}
