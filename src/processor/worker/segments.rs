//! Sealed files: found by listing the data directory, then applied and archived, or marked as corrupt.
//!
//! An error of one file is reported in readiness, and the file is tried again later; the others are still
//! applied.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Instant;

use super::{
    Applier, Claims, Confirmed, Corrupt, FILE_RETRY_AFTER, Found, Opened, Place, ProcessError,
    Sealed, SegmentFile, SegmentId, SegmentRow, SegmentState, Small, Tag, Worker, archive,
    compare_claims, describe, describe_rivals, open_sealed, open_together, retention, topic,
};
use crate::aggregate::lines;
use crate::data_dir::DataDirError;
use crate::data_dir::disk::Unusable;
use crate::processor::applier::TOGETHER_MAX;
use crate::processor::archive::Leaving;

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
        let mut claims = compare_claims(&*self.disk, found, row.as_ref());
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

    /// Applies the first of these files, those that are small together; how many it went through. A
    /// file that fails is named in readiness and tried again later; the others go on.
    pub(super) fn sealed_files(
        &mut self,
        applier: &mut Applier<'_>,
        ids: &[SegmentId],
    ) -> Result<usize, ProcessError> {
        let sealed = &self.board.sealed;
        let due: Vec<_> = ids
            .iter()
            .take(TOGETHER_MAX)
            .map(|id| {
                let sealed = sealed.get(id)?;
                let waits = sealed.retry_at.is_some_and(|at| at > Instant::now());
                (!waits).then(|| (id, sealed.tag, sealed.path.clone(), sealed.place))
            })
            .collect();
        let files = due.iter().flatten();
        let opened = open_together(
            &*self.disk,
            &self.config.data_dir,
            files.map(|(id, tag, path, _)| (*id, *tag, &**path)),
            applier.small_bytes(),
        );
        let mut opened = opened.into_iter();
        let mut together = Together::default();
        for (done, due) in due.iter().enumerate() {
            let Some((id, tag, path, place)) = due else {
                continue;
            };
            let file = match opened.next() {
                // No descriptor was left for it.
                None => {
                    self.commit_together(applier, together)?;
                    return Ok(done);
                }
                Some(Opened::Small(segment)) => {
                    self.small_file(applier, segment, *place, &mut together)
                }
                Some(Opened::Large) => {
                    self.commit_together(applier, std::mem::take(&mut together))?;
                    self.large_file(applier, id, *tag, path, *place)
                }
                // In the archive: it was moved there, or the sync after our rename failed.
                Some(Opened::Failed(ProcessError::Io(DataDirError { source, .. })))
                    if source.kind() == io::ErrorKind::NotFound && self.is_applied(id) =>
                {
                    self.done_with(applier, id);
                    Ok(())
                }
                Some(Opened::Failed(error)) => Err(error),
            };
            if let Err(error) = file {
                self.go_on_after(id, error)?;
            }
            if together.bytes > applier.held_bytes_max() {
                self.commit_together(applier, std::mem::take(&mut together))?;
            }
        }
        self.commit_together(applier, together)?;
        Ok(due.len())
    }

    /// An error of one file is named; one of the database ends the round.
    fn go_on_after(&mut self, id: &SegmentId, error: ProcessError) -> Result<(), ProcessError> {
        match error {
            ProcessError::Store(_) | ProcessError::Stopped | ProcessError::Raced { .. } => {
                Err(error)
            }
            error => {
                self.failed(id, &error);
                Ok(())
            }
        }
    }

    /// Nothing is left to be done with the file.
    fn done_with(&mut self, applier: &mut Applier<'_>, id: &SegmentId) {
        // What contradicts it stays named.
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

    /// A file that is applied by itself.
    fn large_file(
        &mut self,
        applier: &mut Applier<'_>,
        id: &SegmentId,
        tag: Option<Tag>,
        path: &std::path::Path,
        place: Place,
    ) -> Result<(), ProcessError> {
        let segment = open_sealed(&*self.disk, id, tag, path)?;
        match self.start(applier, &segment)? {
            Start::Later => Ok(()),
            Start::Done => {
                self.done_with(applier, id);
                Ok(())
            }
            Start::Whole(row) => self.archive(applier, &[(segment, place, row)]),
            Start::At(start, size) => {
                applier.apply_sealed(&segment, start, size, &mut self.board)?;
                self.now_whole(id);
                // Before the archive's syncs: it does not lag behind.
                self.board.publish();
                if let Some(row) = applier.writer.segment(id)? {
                    return self.archive(applier, &[(segment, place, row)]);
                }
                self.done_with(applier, id);
                Ok(())
            }
        }
    }

    /// A file that is applied with others.
    fn small_file(
        &mut self,
        applier: &mut Applier<'_>,
        segment: SegmentFile,
        place: Place,
        together: &mut Together,
    ) -> Result<(), ProcessError> {
        match self.start(applier, &segment)? {
            Start::Later => {}
            Start::Done => self.done_with(applier, &segment.id),
            Start::Whole(row) => together.whole.push((segment, place, row)),
            Start::At(start, size) => {
                let small = applier.read_small(segment, start, size)?;
                together.bytes += small.memory_bytes();
                together.places.push(place);
                together.small.push(small);
            }
        }
        Ok(())
    }

    /// Applies small files in one transaction, then moves them to the archive.
    fn commit_together(
        &mut self,
        applier: &mut Applier<'_>,
        together: Together,
    ) -> Result<(), ProcessError> {
        let Together {
            small,
            places,
            mut whole,
            ..
        } = together;
        if !small.is_empty() {
            applier.commit_together(&small, &mut self.board)?;
            for small in &small {
                self.now_whole(&small.segment.id);
            }
            // Before the archive's syncs: it does not lag behind.
            self.board.publish();
        }
        for (small, place) in small.into_iter().zip(places) {
            match applier.writer.segment(&small.segment.id)? {
                Some(row) => whole.push((small.segment, place, row)),
                None => self.done_with(applier, &small.segment.id),
            }
        }
        self.archive(applier, &whole)
    }

    /// From where a file is to be applied, if it is.
    fn start(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
    ) -> Result<Start, ProcessError> {
        let (id, path) = (&segment.id, &segment.path);
        let pruned = self.board.pruned;
        if id.number().is_some_and(|number| number <= pruned)
            && applier.writer.segment(id)?.is_none()
        {
            let stat = segment
                .file
                .stat()
                .map_err(ProcessError::io("look at", path))?;
            self.left_alone.insert(path.clone(), stat.identity);
            self.board
                .health
                .set(&topic(id), retention::was_pruned(path, pruned));
            return Ok(Start::Done);
        }
        let start = match applier.confirm(segment)? {
            Confirmed::At(bytes) => bytes,
            Confirmed::Applied(row) => return Ok(Start::Whole(row)),
            Confirmed::Rival(reason) => {
                self.leave_rival(segment, reason)?;
                return Ok(Start::Done);
            }
            Confirmed::Corrupt(corrupt) => {
                self.mark_corrupt(applier, segment, &corrupt)?;
                return Ok(Start::Done);
            }
            Confirmed::Restored(row) => {
                applier.note(&row, SegmentState::Sealed, None)?;
                self.board.restored(id, row.corrupt_lines);
                return Ok(Start::Later);
            }
        };
        let size = segment
            .file
            .size()
            .map_err(ProcessError::io("inspect", path))?;
        if !self.is_complete(id, size) {
            return Ok(Start::Later);
        }
        self.count_once(id, segment, start, size)?;
        Ok(Start::At(start, size))
    }

    fn now_whole(&mut self, id: &SegmentId) {
        if let Some(sealed) = self.board.sealed.get_mut(id) {
            sealed.whole = true;
        }
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

    /// Moves whole files away; what can't be moved stays and is named.
    fn archive(
        &mut self,
        applier: &mut Applier<'_>,
        files: &[(SegmentFile, Place, SegmentRow)],
    ) -> Result<(), ProcessError> {
        let mut leaving = Vec::new();
        let mut identities = Vec::new();
        for (segment, place, row) in files {
            if *place != Place::Incoming {
                self.done_with(applier, &segment.id);
                continue;
            }
            match segment.file.stat() {
                Ok(stat) => {
                    leaving.push(Leaving {
                        segment,
                        row,
                        has_read: applier.has_read(&row.id, stat.identity, stat.size),
                    });
                    identities.push(stat.identity);
                }
                Err(error) => {
                    let error = ProcessError::io("look at", &segment.path)(error);
                    self.go_on_after(&segment.id, error)?;
                }
            }
        }
        let archived = archive::archive(&*self.disk, &self.config.data_dir, &leaving);
        for ((file, identity), archived) in leaving.iter().zip(identities).zip(archived) {
            let segment = file.segment;
            match archived {
                Err(error) => {
                    self.go_on_after(&segment.id, error)?;
                    continue;
                }
                Ok(archived) => {
                    if archived == archive::Archived::RelativeLink {
                        self.left_alone.insert(segment.path.clone(), identity);
                    }
                    if let Some(refusal) = archived.refusal() {
                        self.left_alone.insert(segment.path.clone(), identity);
                        let words =
                            format!("{}: {refusal}. Move this one away", segment.path.display());
                        self.board.health.set(&topic(&segment.id), words);
                    }
                }
            }
            self.done_with(applier, &segment.id);
        }
        Ok(())
    }
}

/// Small files of a round that are applied and archived together.
#[derive(Default)]
struct Together {
    small: Vec<Small>,
    /// Where each of them lies.
    places: Vec<Place>,
    /// Those of which only the move to the archive is left.
    whole: Vec<(SegmentFile, Place, SegmentRow)>,
    /// Of memory, for `small`.
    bytes: usize,
}

/// What is to be done with a sealed file.
enum Start {
    /// It is applied from here to its size.
    At(u64, u64),
    /// Only its move to the archive is left.
    Whole(SegmentRow),
    /// Nothing.
    Done,
    /// It is checked again in the next round.
    Later,
}
