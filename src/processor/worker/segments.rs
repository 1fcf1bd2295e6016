//! Sealed files: found by listing the data directory, then applied and archived, or marked as corrupt.
//!
//! An error of one file is reported in readiness, and the file is tried again later; the others are still
//! applied.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::Instant;

use super::status::Sealed;
use super::{
    Applier, Claims, Confirmed, Corrupt, FILE_RETRY_AFTER, Found, Place, ProcessError, SegmentFile,
    SegmentId, SegmentRow, SegmentState, Watch, Worker, compare_claims, describe, describe_rivals,
    topic,
};
use crate::aggregate::lines;
use crate::aggregate::pool::RANGE_BYTES;
use crate::data_dir::DataDirError;
use crate::data_dir::disk::{Identity, Unusable};
use crate::processor::archive::Archived;
use crate::processor::sealed_files::{Run, Start};

impl Worker {
    /// Finds new sealed files in the data directory, and files that were removed.
    pub(super) fn find_files(&mut self, applier: &Applier<'_>) -> Result<(), ProcessError> {
        let data_dir = self.config.data_dir.clone();
        let names = self
            .disk
            .list(&data_dir)
            .map_err(ProcessError::io("list", &data_dir))?;
        let mut new = BTreeMap::<SegmentId, Vec<Found>>::new();
        let mut skipped = BTreeSet::new();
        // A directory with such a name is reported in readiness when it cannot be opened.
        for (name, is_dir) in names {
            let Some((id, tag)) = SegmentId::of_file(&name, self.config.directory_tag()) else {
                if !is_dir {
                    self.other_names.report(&data_dir, &name);
                }
                continue;
            };
            let path = data_dir.join(&name);
            if self.skipped.contains(&*self.disk, &path) {
                skipped.insert(path);
            } else if !self.status.sealed.contains_key(&id) {
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
        let archived = self.skipped.in_archive(&*self.disk, &data_dir);
        skipped.extend(archived.iter().map(|found| found.path.clone()));
        let released = self.skipped.retain(&skipped);
        for id in &released {
            self.status.health.clear(&topic(id));
        }
        // Those in the data directory are new in the next listing.
        for found in archived {
            if released.contains(&found.id) {
                new.entry(found.id.clone()).or_default().push(found);
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        for (id, found) in &new {
            self.new_files(applier, id, found)?;
        }
        self.report_missing();
        self.disk
            .sync_dir(&data_dir)
            .map_err(ProcessError::io("sync", &data_dir))
    }

    /// The sealed files that are tried in this round.
    pub(super) fn due_files(&self) -> Vec<Found> {
        let now = Instant::now();
        let sealed = self.status.sealed.iter();
        sealed
            .filter(|(_, sealed)| sealed.retry_at.is_none_or(|at| at <= now))
            .map(|(id, sealed)| Found {
                id: id.clone(),
                tag: sealed.tag,
                place: sealed.place,
                path: sealed.path.clone(),
            })
            .collect()
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
        let mut claims = compare_claims(&*self.disk, found, row.as_ref());
        self.against_active(id, &mut claims);
        self.skip_rivals(id, &claims, row.as_ref())?;
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
    pub(super) fn skip_rivals(
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
            let identity = self.disk.identity(path);
            if let Some(identity) = identity.map_err(ProcessError::io("inspect", path))? {
                self.skipped.insert(path.clone(), identity);
            }
        }
        let reason = describe_rivals(&*self.disk, id, &claims.rivals, row);
        self.status.health.set(&topic(id), reason);
        Ok(())
    }

    /// Skips a file and gives the reason in readiness.
    fn skip(&mut self, segment: &SegmentFile, reason: String) -> Result<(), ProcessError> {
        self.skipped
            .insert(segment.path.clone(), identity(segment)?);
        self.status.health.set(&topic(&segment.id), reason);
        Ok(())
    }

    /// Removes a file for which nothing is left to be done.
    fn remove(&mut self, applier: &mut Applier<'_>, id: &SegmentId) {
        // The topic of a skipped file stays.
        if !self.skipped.has_file_of(id) {
            self.status.health.clear(&topic(id));
        }
        self.status.sealed.remove(id);
        if let Some(number) = id.number() {
            self.status.applied.remove(&number);
        }
        applier.forget(id);
        self.status.publish();
    }

    fn new_file(&mut self, found: &Found) {
        let number = found.id.number();
        if let Some(number) = number {
            self.status.dead.remove(&number);
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
        self.status.sealed.insert(
            found.id.clone(),
            Sealed {
                counted,
                found_at: (!counted).then(Instant::now),
                ahead: ahead.is_some(),
                ..Sealed::new(found)
            },
        );
    }

    fn mark_corrupt(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
        corrupt: Corrupt,
    ) -> Result<(), ProcessError> {
        if corrupt.known {
            applier.forget(&segment.id);
        } else {
            let lines = applier.mark_corrupt(segment, &corrupt)?;
            self.status
                .marked_corrupt(&segment.id, corrupt.applied_bytes, lines);
        }
        self.skip(segment, corrupt.reason)
    }

    /// Records a file that is not the segment with its number. Nothing of it is applied, and waits for a
    /// position in it end with `WaitOutcome::Gone`.
    fn skip_rival(&mut self, segment: &SegmentFile, reason: String) -> Result<(), ProcessError> {
        let sealed = self.status.sealed.get(&segment.id);
        let counted = sealed.is_some_and(|sealed| sealed.counted);
        let size = segment.file.size();
        let lines = size.and_then(|size| lines::count(&*segment.file, 0, size));
        let lines = lines.map_err(ProcessError::io("read", &segment.path))?;
        if !counted {
            self.status.found(lines);
        }
        self.status.marked_corrupt(&segment.id, 0, lines);
        self.skip(segment, reason)
    }

    /// Whether the file is complete: a native segment always, an imported file if its size has not changed
    /// since the previous round.
    fn is_complete(&mut self, id: &SegmentId, size: u64) -> bool {
        let Some(sealed) = self.status.sealed.get_mut(id) else {
            return true;
        };
        id.number().is_some() || sealed.size.replace(size) == Some(size)
    }

    /// Adds the pending lines of a file to the ledger, once.
    fn count_once(
        &mut self,
        id: &SegmentId,
        segment: &SegmentFile,
        from: u64,
        size: u64,
    ) -> Result<(), ProcessError> {
        let Some(sealed) = self.status.sealed.get_mut(id) else {
            return Ok(());
        };
        if !std::mem::replace(&mut sealed.counted, true) {
            let lines = lines::count(&*segment.file, from, size)
                .map_err(ProcessError::io("read", &segment.path))?;
            self.status.found(lines);
        }
        Ok(())
    }
}

impl Run for Worker {
    fn watch(&mut self) -> &mut dyn Watch {
        &mut self.status
    }

    /// Readers see the totals of a catch-up in steps of this size.
    fn together_bytes_max(&self) -> u64 {
        RANGE_BYTES
    }

    fn pruned(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
        reason: String,
    ) -> Result<(), ProcessError> {
        self.skip(segment, reason)?;
        self.remove(applier, &segment.id);
        Ok(())
    }

    fn start(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
    ) -> Result<Start, ProcessError> {
        let (id, path) = (&segment.id, &segment.path);
        let from = match applier.confirm(segment)? {
            Confirmed::At(bytes) => bytes,
            Confirmed::Applied(row) => return Ok(Start::Applied(row)),
            Confirmed::Rival(reason) => {
                self.refused(applier, segment, reason)?;
                return Ok(Start::Skip);
            }
            Confirmed::Corrupt(corrupt) => {
                self.mark_corrupt(applier, segment, corrupt)?;
                self.remove(applier, id);
                return Ok(Start::Skip);
            }
            Confirmed::Restored(row) => {
                applier.note(&row, SegmentState::Sealed, None)?;
                self.status.restored(id, row.corrupt_lines);
                return Ok(Start::Skip); // The next round applies the rest.
            }
        };
        let size = segment
            .file
            .size()
            .map_err(ProcessError::io("inspect", path))?;
        if !self.is_complete(id, size) {
            return Ok(Start::Skip);
        }
        self.count_once(id, segment, from, size)?;
        Ok(Start::At { from, size })
    }

    fn refused(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
        reason: String,
    ) -> Result<(), ProcessError> {
        self.skip_rival(segment, reason)?;
        self.remove(applier, &segment.id);
        Ok(())
    }

    fn applied(&mut self, segments: &[&SegmentFile]) {
        for segment in segments {
            if let Some(sealed) = self.status.sealed.get_mut(&segment.id) {
                sealed.applied = true;
            }
        }
        // Before the syncs of the archive, which do not delay it.
        self.status.publish();
    }

    fn archived(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
        archived: Archived,
        _now: bool,
    ) -> Result<(), ProcessError> {
        match archived.refusal() {
            Some(refusal) => {
                let reason = format!("{}: {refusal}. Move this one away", segment.path.display());
                self.skip(segment, reason)?;
            }
            None if archived == Archived::RelativeLink => {
                self.skipped
                    .insert(segment.path.clone(), identity(segment)?);
            }
            None => {}
        }
        self.remove(applier, &segment.id);
        Ok(())
    }

    fn failed(
        &mut self,
        applier: &mut Applier<'_>,
        id: &SegmentId,
        _path: &Path,
        error: ProcessError,
    ) {
        let cause = match &error {
            ProcessError::Io(DataDirError { source, .. }) => Some(source),
            _ => None,
        };
        let is_gone = cause.is_some_and(|cause| cause.kind() == io::ErrorKind::NotFound);
        let Some(sealed) = self.status.sealed.get_mut(id) else {
            return;
        };
        if is_gone && sealed.applied {
            // It was archived, but the sync after the rename failed.
            self.remove(applier, id);
            return;
        }
        if is_gone && sealed.unusable {
            // It was never a segment, and it was moved away.
            self.status.sealed.remove(id);
            self.status.health.clear(&topic(id));
            return;
        }
        if cause.is_some_and(Unusable::is_reason_of) {
            sealed.unusable = true;
            sealed.counted = false;
        }
        sealed.retry_at = Some(Instant::now() + FILE_RETRY_AFTER);
        self.status.health.set(&topic(id), describe(&error));
    }
}

fn identity(segment: &SegmentFile) -> Result<Identity, ProcessError> {
    let stat = segment.file.stat();
    let stat = stat.map_err(ProcessError::io("inspect", &segment.path))?;
    Ok(stat.identity)
}
