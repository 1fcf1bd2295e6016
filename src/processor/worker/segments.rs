//! Sealed files: found by listing the data directory, then applied and archived, or marked as corrupt.
//!
//! An error of one file is reported in readiness, and the file is tried again later; the others are still
//! applied.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Instant;

use super::{
    Applier, Claims, Confirmed, Corrupt, FILE_RETRY_AFTER, Found, Place, ProcessError, Sealed,
    SegmentFile, SegmentId, SegmentRow, SegmentState, Tag, Worker, archive, describe,
    describe_rivals, open_sealed, retention, settle, topic,
};
use crate::aggregate::lines;
use crate::data_dir::DataDirError;
use crate::data_dir::disk::Unusable;

impl Worker {
    /// Finds new sealed files in the data directory, and files that were removed.
    pub(super) fn look_for_files(&mut self, applier: &Applier<'_>) -> Result<(), ProcessError> {
        let data_dir = self.config.data_dir.clone();
        let names = self
            .disk
            .list(&data_dir)
            .map_err(ProcessError::io("list", &data_dir))?;
        let mut new = BTreeMap::<SegmentId, Vec<Found>>::new();
        let mut left_alone = BTreeMap::new();
        // A directory with such a name is reported in readiness when it cannot be opened.
        for (name, _) in names {
            let Some((id, tag)) = SegmentId::of_file(&name, self.config.directory_tag()) else {
                continue;
            };
            let path = data_dir.join(&name);
            if let Some(&identity) = self.left_alone.get(&path)
                && self.disk.identity(&path).ok().flatten() == Some(identity)
            {
                left_alone.insert(path, identity);
            } else if !self.board.sealed.contains_key(&id) {
                let place = Place::Incoming;
                let found = Found {
                    id,
                    tag,
                    place,
                    path,
                };
                new.entry(found.id.clone()).or_default().push(found);
            }
        }
        let mut released = BTreeSet::new();
        let before = std::mem::replace(&mut self.left_alone, left_alone);
        for gone in before
            .keys()
            .filter(|path| !self.left_alone.contains_key(*path))
        {
            let name = gone.file_name().unwrap_or_default().to_string_lossy();
            if let Some((id, _)) = SegmentId::of_file(&name, self.config.directory_tag()) {
                self.board.health.clear(&topic(&id));
                released.insert(id);
            }
        }
        // Files that contradicted a removed one are checked again in the next round.
        let directory = self.config.directory_tag();
        self.left_alone.retain(|path, _| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let id = SegmentId::of_file(&name, directory).map(|(id, _)| id);
            id.is_none_or(|id| !released.contains(&id))
        });
        if new.is_empty() {
            return Ok(());
        }
        for (id, found) in &new {
            self.new_files(applier, id, found)?;
        }
        self.tell_missing();
        self.disk
            .sync_dir(&data_dir)
            .map_err(ProcessError::io("sync", &data_dir))
    }

    /// Adds the new files with one id. Those that contradict each other or the applied prefix are not
    /// applied.
    fn new_files(
        &mut self,
        applier: &Applier<'_>,
        id: &SegmentId,
        found: &[Found],
    ) -> Result<(), ProcessError> {
        let row = match found {
            [_] => None,
            _ => applier.writer.segment(id)?,
        };
        let mut claims = settle(&*self.disk, found, row.as_ref());
        self.against_active(id, &mut claims);
        self.leave_rivals(id, &claims, row.as_ref())?;
        if let Some(found) = claims.usable {
            self.new_file(found);
        }
        Ok(())
    }

    /// Makes a file with the active segment's number a rival, unless it is that segment and was sealed
    /// meanwhile.
    pub(super) fn against_active(&self, id: &SegmentId, claims: &mut Claims<'_>) {
        let tail = self.journal.tail();
        if id.number() == Some(tail.number)
            && let Some(found) = claims.usable.filter(|found| found.tag != Some(tail.tag))
        {
            claims.usable = None;
            claims.rivals.push(found);
        }
    }

    /// Reports the rivals of a segment. They are not applied.
    pub(super) fn leave_rivals(
        &mut self,
        id: &SegmentId,
        claims: &Claims<'_>,
        row: Option<&SegmentRow>,
    ) -> Result<(), ProcessError> {
        if claims.rivals.is_empty() {
            return Ok(());
        }
        for rival in &claims.rivals {
            let path = &rival.path;
            let look = self.disk.identity(path);
            if let Some(identity) = look.map_err(ProcessError::io("inspect", path))? {
                self.left_alone.insert(path.clone(), identity);
            }
        }
        let words = describe_rivals(&*self.disk, id, &claims.rivals, row);
        self.board.health.set(&topic(id), words);
        Ok(())
    }

    fn new_file(&mut self, found: &Found) {
        let number = found.id.number();
        if let Some(number) = number {
            self.board.lost.remove(&number);
            self.missing.remove(&number);
        }
        // Read after the listing: every segment that this journal has sealed is below it.
        let ahead = number.filter(|&number| number > self.journal.tail().number);
        if let Some(number) = ahead {
            self.journal.reserve(number);
            tracing::warn!(
                "{} has a higher number than the active segment; the number is not used for a new segment",
                found.path.display()
            );
        }
        // The journal counts the lines of the segments that it has sealed.
        let counted = number.is_some_and(|number| number >= self.since) && ahead.is_none();
        self.board.sealed.insert(
            found.id.clone(),
            Sealed {
                counted,
                ahead: ahead.is_some(),
                ..Sealed::new(found)
            },
        );
    }

    /// Applies one sealed file. An error is reported in readiness, and the file is tried again later.
    pub(super) fn sealed_file(
        &mut self,
        applier: &mut Applier<'_>,
        id: &SegmentId,
    ) -> Result<(), ProcessError> {
        let Some(sealed) = self.board.sealed.get_mut(id) else {
            return Ok(());
        };
        if sealed.retry_at.is_some_and(|at| at > Instant::now()) {
            return Ok(());
        }
        let (path, tag, place) = (sealed.path.clone(), sealed.tag, sealed.place);
        let done = match self.apply_sealed(applier, id, tag, &path, place) {
            Err(
                error @ (ProcessError::Store(_)
                | ProcessError::Stopped
                | ProcessError::Raced { .. }),
            ) => {
                return Err(error);
            }
            Err(error) => {
                self.failed(id, &error);
                return Ok(());
            }
            Ok(done) => done,
        };
        if done {
            // Its rivals stay reported.
            let directory = self.config.directory_tag();
            let named = self.left_alone.keys().any(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                SegmentId::of_file(&name, directory).is_some_and(|(other, _)| other == *id)
            });
            if !named {
                self.board.health.clear(&topic(id));
            }
            self.board.sealed.remove(id);
            if let Some(number) = id.number() {
                self.board.applied.remove(&number);
            }
            applier.forget(id);
            self.board.publish();
        }
        Ok(())
    }

    fn failed(&mut self, id: &SegmentId, error: &ProcessError) {
        let (unusable, gone) = match error {
            ProcessError::Io(DataDirError { source, .. }) => (
                Unusable::is_reason_of(source),
                source.kind() == io::ErrorKind::NotFound,
            ),
            _ => (false, false),
        };
        let Some(sealed) = self.board.sealed.get_mut(id) else {
            return;
        };
        if gone && sealed.unusable {
            // It was never a segment, and it was moved away.
            self.board.sealed.remove(id);
            self.board.health.clear(&topic(id));
            return;
        }
        if unusable {
            sealed.unusable = true;
            sealed.counted = false;
        }
        sealed.retry_at = Some(Instant::now() + FILE_RETRY_AFTER);
        self.board.health.set(&topic(id), describe(error));
    }

    /// Applies and archives a file. Returns whether nothing remains to be done with it.
    pub(super) fn apply_sealed(
        &mut self,
        applier: &mut Applier<'_>,
        id: &SegmentId,
        tag: Option<Tag>,
        path: &std::path::Path,
        place: Place,
    ) -> Result<bool, ProcessError> {
        let segment = match open_sealed(&*self.disk, id, tag, path) {
            // Archived already: by another program, or the sync after the rename failed.
            Err(ProcessError::Io(DataDirError { source, .. }))
                if source.kind() == io::ErrorKind::NotFound && self.is_applied(id) =>
            {
                return Ok(true);
            }
            opened => opened?,
        };
        let pruned = self.board.pruned;
        if id.number().is_some_and(|number| number <= pruned)
            && applier.writer.segment(id)?.is_none()
        {
            let stat = segment
                .file
                .stat()
                .map_err(ProcessError::io("inspect", path))?;
            self.left_alone.insert(path.to_owned(), stat.identity);
            self.board
                .health
                .set(&topic(id), retention::was_pruned(path, pruned));
            return Ok(true);
        }
        let start = match applier.confirm(&segment)? {
            Confirmed::At(bytes) => bytes,
            Confirmed::Applied(row) => {
                return self.archive(applier, &segment, place, &row).map(|()| true);
            }
            Confirmed::Rival(reason) => {
                return self.leave_rival(&segment, reason).map(|()| true);
            }
            Confirmed::Corrupt(corrupt) => {
                return self
                    .mark_corrupt(applier, &segment, &corrupt)
                    .map(|()| true);
            }
            Confirmed::Restored(row) => {
                applier.note(&row, SegmentState::Sealed, None)?;
                self.board.restored(id, row.corrupt_lines);
                return Ok(false);
            }
        };
        let size = segment
            .file
            .size()
            .map_err(ProcessError::io("inspect", path))?;
        if !self.is_complete(id, size) {
            return Ok(false);
        }
        self.count_once(id, &segment, start, size)?;
        applier.apply_sealed(&segment, start, size, &mut self.board)?;
        if let Some(sealed) = self.board.sealed.get_mut(id) {
            sealed.whole = true;
        }
        // Published before the file is archived, because that takes several syncs.
        self.board.publish();
        if let Some(row) = applier.writer.segment(id)? {
            self.archive(applier, &segment, place, &row)?;
        }
        Ok(true)
    }

    fn is_applied(&self, id: &SegmentId) -> bool {
        let sealed = self.board.sealed.get(id);
        sealed.is_some_and(|sealed| sealed.whole)
    }

    pub(super) fn mark_corrupt(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
        corrupt: &Corrupt,
    ) -> Result<(), ProcessError> {
        let stat = segment
            .file
            .stat()
            .map_err(ProcessError::io("inspect", &segment.path))?;
        if corrupt.known {
            applier.forget(&segment.id);
        } else {
            let lines = applier.mark_corrupt(segment, corrupt)?;
            self.board
                .marked_corrupt(&segment.id, corrupt.applied_bytes, lines);
        }
        self.left_alone.insert(segment.path.clone(), stat.identity);
        self.board
            .health
            .set(&topic(&segment.id), corrupt.reason.clone());
        Ok(())
    }

    /// Records a file that is not the segment with its number. Nothing of it is applied, and waits for a
    /// position in it end with `WaitOutcome::Gone`.
    fn leave_rival(&mut self, segment: &SegmentFile, reason: String) -> Result<(), ProcessError> {
        let io = || ProcessError::io("inspect", &segment.path);
        let stat = segment.file.stat().map_err(io())?;
        let counted = self
            .board
            .sealed
            .get(&segment.id)
            .is_some_and(|sealed| sealed.counted);
        let lines = lines::count(&*segment.file, 0, stat.size).map_err(io())?;
        if !counted {
            self.board.found(lines);
        }
        self.board.marked_corrupt(&segment.id, 0, lines);
        self.left_alone.insert(segment.path.clone(), stat.identity);
        self.board.health.set(&topic(&segment.id), reason);
        Ok(())
    }

    /// Whether the file is complete: a native segment always, an imported file if its size has not changed
    /// since the previous round.
    pub(super) fn is_complete(&mut self, id: &SegmentId, size: u64) -> bool {
        let Some(sealed) = self.board.sealed.get_mut(id) else {
            return true;
        };
        id.number().is_some() || sealed.size.replace(size) == Some(size)
    }

    /// Adds the pending lines of a file to the ledger, once.
    pub(super) fn count_once(
        &mut self,
        id: &SegmentId,
        segment: &SegmentFile,
        from: u64,
        size: u64,
    ) -> Result<(), ProcessError> {
        let Some(sealed) = self.board.sealed.get_mut(id) else {
            return Ok(());
        };
        if !std::mem::replace(&mut sealed.counted, true) {
            let lines = lines::count(&*segment.file, from, size)
                .map_err(ProcessError::io("read", &segment.path))?;
            self.board.found(lines);
        }
        Ok(())
    }

    /// Archives a fully applied file. If that is not possible, it is reported in readiness.
    pub(super) fn archive(
        &mut self,
        applier: &Applier<'_>,
        segment: &SegmentFile,
        place: Place,
        row: &SegmentRow,
    ) -> Result<(), ProcessError> {
        if place != Place::Incoming {
            return Ok(());
        }
        let stat = segment
            .file
            .stat()
            .map_err(ProcessError::io("inspect", &segment.path))?;
        let has_read = applier.has_read(&row.id, stat.identity, stat.size);
        let data_dir = &self.config.data_dir;
        let archived = archive::archive(&*self.disk, data_dir, segment, row, has_read)?;
        if archived == archive::Archived::RelativeLink {
            self.left_alone.insert(segment.path.clone(), stat.identity);
        }
        if let Some(refusal) = archived.refusal() {
            self.left_alone.insert(segment.path.clone(), stat.identity);
            let words = format!("{}: {refusal}. Move this file away", segment.path.display());
            self.board.health.set(&topic(&row.id), words);
        }
        Ok(())
    }
}
