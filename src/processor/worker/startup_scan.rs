//! Starting over: everything the coordinator knows, read anew from the rows and the directory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::Builder;
use std::time::SystemTime;

use super::{
    ACTIVE_FILE, Applier, Catalog, DeadSegment, Disk, Label, MISSING, Place, ProcessConfig,
    ProcessError, SEGMENT, SUMS, Sealed, SegmentId, SegmentRow, SegmentState, Settled, Tag, Tail,
    Worker, describe, retention, settle, stand_for, topic,
};
use crate::aggregate::lines;
use crate::data_dir::QUARANTINE_DIR;
use crate::data_dir::numbers::{MISSING_MAX, gaps, ranges};
use crate::data_dir::segment::sealed_file_name;
use crate::verify::sums;

impl Worker {
    /// Everything that is known of the database and the directory, from them alone.
    pub(super) fn start_over(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        let data_dir = &self.config.data_dir;
        self.left_alone.clear();
        self.board.health.clear_all(SEGMENT);
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
            self.board
                .health
                .set(retention::RETENTION, describe(&error));
        }
        for dir in &catalog.dirs {
            self.disk
                .sync_dir(dir)
                .map_err(ProcessError::io("sync", dir))?;
        }
        let board = &mut self.board;
        board.sealed.clear();
        board.lost.clear();
        board.applied.clear();
        board.active = tail.number;
        board.pruned = pruned.number;
        self.journal.reserve_up_to(pruned.number);
        self.journal.reserve_all(&settled.native);
        self.journal.reserve_all(&catalog.numbers());
        let unfinished = rows.iter().filter_map(|row| row.id.number());
        self.journal.reserve_all(&unfinished.collect());
        for (id, found) in &catalog.sealed {
            let row = rows.iter().find(|row| row.id == *id);
            let is_applied = settled.contains(id);
            if !is_applied
                && row.is_none()
                && id.number().is_some_and(|number| number <= pruned.number)
            {
                continue; // Let go: named where it lies in the directory itself, never applied.
            }
            // Only of the few that more than one file bears, the row is read.
            let row = match found[..] {
                [_] if is_applied => None,
                _ if is_applied => applier.writer.segment(id)?,
                _ => row.cloned(),
            };
            let mut claims = settle(&*self.disk, found, row.as_ref());
            self.against_active(id, &mut claims);
            self.leave_rivals(id, &claims, row.as_ref())?;
            let Some(usable) = claims.usable else {
                continue;
            };
            // Of what is applied already, only the move to the archive may be left.
            if !is_applied || usable.place == Place::Incoming {
                let ahead = id.number() > Some(self.journal.tail().number);
                let sealed = Sealed {
                    ahead,
                    whole: is_applied,
                    counted: is_applied,
                    ..Sealed::new(usable)
                };
                self.board.sealed.insert(id.clone(), sealed);
            }
        }
        self.find_missing(applier, &catalog, &rows)?;
        self.count_pending(applier, &rows, &tail)?;
        for row in rows {
            if let Some(number) = row.id.number() {
                self.board.applied.insert(number, row.applied_bytes);
            }
        }
        self.board.publish();
        self.check_sums();
        Ok(())
    }

    /// Names the segments of ours that have neither a file, nor a whole row, nor were pruned; those
    /// with a row are noted as lost.
    pub(super) fn find_missing(
        &mut self,
        applier: &mut Applier<'_>,
        catalog: &Catalog,
        rows: &[SegmentRow],
    ) -> Result<(), ProcessError> {
        let active = self.board.active;
        let is_there = |id: &SegmentId| {
            let row = rows.iter().find(|row| row.id == *id);
            let found = catalog.sealed.get(id);
            found.is_some_and(|found| stand_for(&*self.disk, found, row))
                || id
                    .number()
                    .is_some_and(|number| catalog.archived.contains(number))
        };
        let numbers = applier.writer.numbers()?;
        let unfinished: BTreeSet<u64> = rows.iter().filter_map(|row| row.id.number()).collect();
        let pruned = applier.writer.pruned()?.number;
        self.missing = gaps(pruned + 1, active, numbers.ranges())
            .filter(|&number| !is_there(&SegmentId::Native(number)))
            .take(MISSING_MAX)
            .collect();
        let without_file = |number: &u64| {
            (pruned + 1..active).contains(number) && !is_there(&SegmentId::Native(*number))
        };
        self.missing
            .extend(unfinished.iter().copied().filter(without_file));
        for row in rows
            .iter()
            .filter(|row| row.id.number() != Some(active) && !is_there(&row.id))
        {
            let reason = "its file is gone before it was wholly applied";
            if matches!(row.state, SegmentState::Active | SegmentState::Sealed) {
                applier.note(row, SegmentState::Missing, Some(reason))?;
            }
            if let SegmentId::Imported(name) = &row.id {
                self.board.health.set(
                    &topic(&row.id),
                    format!(
                        "{name}: {reason}; put it back into {}",
                        self.config.data_dir.display()
                    ),
                );
            }
        }
        for &number in &self.missing {
            let row = rows.iter().find(|row| row.id.number() == Some(number));
            let applied_bytes = row.map_or(0, |row| row.applied_bytes);
            self.board.lost.insert(
                number,
                DeadSegment {
                    number,
                    applied_bytes,
                },
            );
        }
        // DeadSegment for good, too: what stands for it in the quarantine is never applied.
        let waits = |id: &SegmentId| self.board.sealed.contains_key(id);
        let given_up = |row: &SegmentRow| match row.state {
            SegmentState::Corrupt => true,
            SegmentState::Missing => !waits(&row.id),
            _ => false,
        };
        let given_up: Vec<&SegmentRow> = rows.iter().filter(|row| given_up(row)).collect();
        for row in given_up {
            if let Some(number) = row.id.number() {
                self.board.lost.insert(
                    number,
                    DeadSegment {
                        number,
                        applied_bytes: row.applied_bytes,
                    },
                );
            }
        }
        self.tell_missing();
        Ok(())
    }

    pub(super) fn tell_missing(&self) {
        match missing_in_words(&self.missing, &self.config) {
            Some(words) => self.board.health.set(MISSING, words),
            None => self.board.health.clear(MISSING),
        }
    }

    /// Counts the lines that wait, so that the ledger balances from the start.
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
        // What was sealed after the look at the tail is counted by the tail.
        let of_journal = tail.number..=self.journal.tail().number;
        for (id, sealed) in &mut self.board.sealed {
            let of_tail = id
                .number()
                .is_some_and(|number| of_journal.contains(&number));
            if !sealed.whole && !of_tail && !corrupt(id) {
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
        self.board.settled = Settled {
            ledger,
            lines: settled + pending,
            tail_lines: tail.lines,
            settled_before: *self.board.settled_before.get_or_insert(settled),
        };
        Ok(())
    }

    /// After an unclean stop, or when the file was replaced: the totals and the segments must add
    /// up to the same. In the background.
    pub(super) fn check_sums(&mut self) {
        if !std::mem::take(&mut self.to_check) {
            return;
        }
        let (config, health) = (self.config.clone(), Arc::clone(&self.board.health));
        let check = move || match sums::difference(&config.database()) {
            Ok(Some(words)) => health.set(SUMS, words),
            Ok(None) => health.clear(SUMS),
            Err(error) => {
                let error = describe(&error);
                tracing::warn!(error, "the totals could not be checked");
            }
        };
        self.finish_check();
        match Builder::new().name("process-check".to_owned()).spawn(check) {
            Ok(thread) => self.check = Some(thread),
            Err(error) => tracing::warn!(%error, "the totals could not be checked"),
        }
    }

    pub(super) fn finish_check(&mut self) {
        if let Some(thread) = self.check.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that checks the totals panicked");
        }
    }
}

pub(super) fn count_lines(
    disk: &dyn Disk,
    path: &std::path::Path,
    from: u64,
) -> std::io::Result<u64> {
    let file = disk.open_read(path)?;
    let size = file.size()?;
    lines::count(&*file, from.min(size), size)
}

/// That segments are missing, and what to do; `None` if none is.
pub(in crate::processor) fn missing_in_words(
    missing: &BTreeSet<u64>,
    config: &ProcessConfig,
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
        "{segments} {named}: no file and not wholly applied, so events may be missing from the totals. Put what is missing back into {data_dir}, from a backup or from {QUARANTINE_DIR}/. Or accept that it is gone: put an empty file {stand_in} (each under its number, and in place of the one that lies there) into {data_dir}/{QUARANTINE_DIR} and restart"
    ))
}
