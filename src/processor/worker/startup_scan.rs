//! The startup scan: derives the whole state of the thread `process` from the database and the directory.
//!
//! It runs at the start, after any error, and when another program has changed the database. It determines
//! which sealed files are pending, which segments are missing or contradicted, and how many lines are pending.
//! After an unclean shutdown it starts the thread `process-check`, which compares the sums.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use super::status::Sealed;
use super::{
    ACTIVE_FILE, Applier, Catalog, DeadSegment, Disk, Label, MISSING, Place, ProcessError,
    ProcessorConfig, SEGMENT, SegmentId, SegmentRow, SegmentState, Settled, Tag, Tail, Worker,
    accounts_for, compare_claims, describe, retention, topic,
};
use crate::aggregate::lines;
use crate::data_dir::QUARANTINE_DIR;
use crate::data_dir::numbers::{MISSING_MAX, gaps, ranges};
use crate::data_dir::segment::sealed_file_name;
use crate::store::AppliedSegments;

impl Worker {
    /// Discards the state and derives it again.
    pub(super) fn start_over(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        let data_dir = &self.config.data_dir;
        self.skipped.clear();
        self.status.health.clear_all(SEGMENT);
        let tail = self.journal.tail();
        self.since = tail.number;
        let pruned = applier.writer.pruned()?;
        let (settled, rows) = applier.writer.applied()?;
        let tag = self.config.directory_tag();
        let mut catalog = Catalog::scan_unapplied(&*self.disk, data_dir, tag, &settled.native)
            .map_err(ProcessError::io("list", data_dir))?;
        let writer = &applier.writer;
        if let Err(error) =
            retention::finish_at_start(&*self.disk, &self.config, &mut catalog, writer)
        {
            self.status
                .health
                .set(retention::RETENTION, describe(&error));
        }
        for dir in &catalog.dirs {
            self.disk
                .sync_dir(dir)
                .map_err(ProcessError::io("sync", dir))?;
        }
        let status = &mut self.status;
        status.sealed.clear();
        status.dead.clear();
        status.applied.clear();
        status.active = tail.number;
        status.pruned = pruned.number;
        self.journal.reserve_up_to(pruned.number);
        self.journal.reserve_all(&settled.native);
        self.journal.reserve_all(&catalog.numbers());
        let unfinished = rows.iter().filter_map(|row| row.id.number());
        self.journal.reserve_all(&unfinished.collect());
        self.add_sealed_files(applier, &catalog, &settled, &rows)?;
        self.find_missing(applier, &catalog, &rows)?;
        self.count_pending(applier, &rows, &tail)?;
        for row in rows {
            if let Some(number) = row.id.number() {
                self.status.applied.insert(number, row.applied_bytes);
            }
        }
        self.status.publish();
        self.sums_check
            .start_if_due(&self.config, Arc::clone(&self.status.health));
        Ok(())
    }

    /// Adds the sealed files that are pending or not yet archived, and reports rivals.
    fn add_sealed_files(
        &mut self,
        applier: &Applier<'_>,
        catalog: &Catalog,
        settled: &AppliedSegments,
        rows: &[SegmentRow],
    ) -> Result<(), ProcessError> {
        let pruned = self.status.pruned;
        for (id, found) in &catalog.sealed {
            let row = rows.iter().find(|row| row.id == *id);
            let is_applied = settled.contains(id);
            if !is_applied && row.is_none() && id.number().is_some_and(|number| number <= pruned) {
                continue; // Pruned and never applied; reported if the file is in the data directory itself.
            }
            // Rows of applied segments are read only for the few that have several files.
            let row = match found[..] {
                [_] if is_applied => None,
                _ if is_applied => applier.writer.segment(id)?,
                _ => row.cloned(),
            };
            let mut claims = compare_claims(&*self.disk, found, row.as_ref());
            self.against_active(id, &mut claims);
            self.skip_rivals(id, &claims, row.as_ref())?;
            let Some(usable) = claims.usable else {
                continue;
            };
            // An applied file may still have to be archived.
            if !is_applied || usable.place == Place::Incoming {
                let ahead = id.number() > Some(self.journal.tail().number);
                let sealed = Sealed {
                    ahead,
                    applied: is_applied,
                    counted: is_applied,
                    ..Sealed::new(usable)
                };
                self.status.sealed.insert(id.clone(), sealed);
            }
        }
        Ok(())
    }

    /// Reports native segments that have no file, are not fully applied and were not pruned. Those with a row
    /// are marked as missing in the database.
    pub(super) fn find_missing(
        &mut self,
        applier: &mut Applier<'_>,
        catalog: &Catalog,
        rows: &[SegmentRow],
    ) -> Result<(), ProcessError> {
        let active = self.status.active;
        let is_present = |id: &SegmentId| {
            let row = rows.iter().find(|row| row.id == *id);
            let found = catalog.sealed.get(id);
            found.is_some_and(|found| accounts_for(&*self.disk, found, row))
                || id
                    .number()
                    .is_some_and(|number| catalog.archived.contains(number))
        };
        let numbers = applier.writer.numbers()?;
        let unfinished: BTreeSet<u64> = rows.iter().filter_map(|row| row.id.number()).collect();
        let pruned = applier.writer.pruned()?.number;
        self.missing = gaps(pruned + 1, active, numbers.ranges())
            .filter(|&number| !is_present(&SegmentId::Native(number)))
            .take(MISSING_MAX)
            .collect();
        let without_file = |number: &u64| {
            (pruned + 1..active).contains(number) && !is_present(&SegmentId::Native(*number))
        };
        self.missing
            .extend(unfinished.iter().copied().filter(without_file));
        for row in rows
            .iter()
            .filter(|row| row.id.number() != Some(active) && !is_present(&row.id))
        {
            let reason = "its file is missing and was not fully applied";
            if matches!(row.state, SegmentState::Active | SegmentState::Sealed) {
                applier.note(row, SegmentState::Missing, Some(reason))?;
            }
            if let SegmentId::Imported(name) = &row.id {
                self.status.health.set(
                    &topic(&row.id),
                    format!(
                        "{name}: {reason}; put it back into {}",
                        self.config.data_dir.display()
                    ),
                );
            }
        }
        self.add_dead_segments(rows);
        self.report_missing();
        Ok(())
    }

    /// Records the missing and corrupt segments, of which no more is applied.
    fn add_dead_segments(&mut self, rows: &[SegmentRow]) {
        for &number in &self.missing {
            let row = rows.iter().find(|row| row.id.number() == Some(number));
            let applied_bytes = row.map_or(0, |row| row.applied_bytes);
            self.status.dead.insert(
                number,
                DeadSegment {
                    number,
                    applied_bytes,
                },
            );
        }
        // Corrupt segments are never completed, and neither are missing ones that have a file in the quarantine.
        let is_pending = |id: &SegmentId| self.status.sealed.contains_key(id);
        let is_dead = |row: &SegmentRow| match row.state {
            SegmentState::Corrupt => true,
            SegmentState::Missing => !is_pending(&row.id),
            _ => false,
        };
        let dead: Vec<&SegmentRow> = rows.iter().filter(|row| is_dead(row)).collect();
        for row in dead {
            if let Some(number) = row.id.number() {
                self.status.dead.insert(
                    number,
                    DeadSegment {
                        number,
                        applied_bytes: row.applied_bytes,
                    },
                );
            }
        }
    }

    /// Sets or clears the readiness topic of missing segments.
    pub(super) fn report_missing(&self) {
        match describe_missing(&self.missing, &self.config) {
            Some(reason) => self.status.health.set(MISSING, reason),
            None => self.status.health.clear(MISSING),
        }
    }

    /// Counts the pending lines, so that the ledger balances from the start.
    pub(super) fn count_pending(
        &mut self,
        applier: &Applier<'_>,
        rows: &[SegmentRow],
        tail: &Tail,
    ) -> Result<(), ProcessError> {
        let done = |id: &SegmentId| {
            rows.iter()
                .find(|row| row.id == *id)
                .map_or(0, |row| row.applied_bytes)
        };
        let corrupt = |id: &SegmentId| {
            rows.iter()
                .any(|row| row.id == *id && row.state == SegmentState::Corrupt)
        };
        let mut pending = 0;
        // The lines of segments sealed since the tail was read are included in it.
        let of_journal = tail.number..=self.journal.tail().number;
        for (id, sealed) in &mut self.status.sealed {
            let of_tail = id
                .number()
                .is_some_and(|number| of_journal.contains(&number));
            if !sealed.applied && !of_tail && !corrupt(id) {
                if id.number().is_none() {
                    continue; // It may still grow: its lines are counted when it is complete.
                }
                pending += count_lines(&*self.disk, &sealed.path, done(id)).unwrap_or(0);
            }
            sealed.counted = true;
        }
        let id = SegmentId::Native(tail.number);
        let from = done(&id).min(tail.durable_end);
        let path = self.config.data_dir.join(ACTIVE_FILE);
        pending += lines::count(&*tail.file, from, tail.durable_end)
            .map_err(ProcessError::io("read", &path))?;
        let ledger = applier.writer.ledger()?;
        let settled = ledger.settled();
        self.status.settled = Settled {
            ledger,
            overall: applier.writer.overall()?,
            lines: settled + pending,
            tail_lines: tail.lines,
            settled_before: *self.status.settled_before.get_or_insert(settled),
            found_since: None, // determined when the status is published
        };
        Ok(())
    }
}

/// Counts the lines of a file from the offset `from` to its end.
pub(super) fn count_lines(
    disk: &dyn Disk,
    path: &std::path::Path,
    from: u64,
) -> std::io::Result<u64> {
    let file = disk.open_read(path)?;
    let size = file.size()?;
    lines::count(&*file, from.min(size), size)
}

/// Describes the missing segments and what to do; `None` if there are none.
pub(in crate::processor) fn describe_missing(
    missing: &BTreeSet<u64>,
    config: &ProcessorConfig,
) -> Option<String> {
    let first = missing.first()?;
    let segments = if missing.len() == 1 {
        "segment"
    } else {
        "segments"
    };
    let named = ranges(missing);
    let data_dir = config.data_dir.display();
    let tag = Tag {
        directory: config.directory_tag(),
        token: 0,
    };
    let label = Label {
        number: *first,
        tag,
    };
    let stand_in = sealed_file_name(label, SystemTime::now());
    Some(format!(
        "{segments} {named}: no file and not fully applied, so events may be missing from the totals. Restore the files to {data_dir} from a backup or from {QUARANTINE_DIR}/. Or, to accept the loss, put an empty file {stand_in} (for each number, replacing the present file if there is one) into {data_dir}/{QUARANTINE_DIR} and restart"
    ))
}
