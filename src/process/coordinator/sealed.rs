//! Sealed files: found by listing, applied to their end, archived or distrusted.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use super::{
    Applier, Confirmed, Coordinator, FILE_RETRY_AFTER, Found, Place, ProcessError, Sealed,
    SegmentFile, SegmentId, SegmentRow, SegmentState, Untrusted, archive, in_words, lines,
    open_sealed, prune, topic,
};

impl Coordinator {
    /// New sealed files in the directory itself.
    pub(super) fn look_for_files(&mut self) -> Result<(), ProcessError> {
        let data_dir = self.config.data_dir.clone();
        let names = self
            .disk
            .list(&data_dir)
            .map_err(ProcessError::io("list", &data_dir))?;
        let mut new = false;
        let mut left_alone = BTreeMap::new();
        for name in names
            .into_iter()
            .filter(|(_, is_dir)| !is_dir)
            .map(|(name, _)| name)
        {
            let Some(id) = SegmentId::of_file(&name) else {
                continue;
            };
            let path = data_dir.join(&name);
            if let Some(&identity) = self.left_alone.get(&path)
                && self.disk.identity(&path).ok().flatten() == Some(identity)
            {
                left_alone.insert(path, identity);
            } else if !self.board.sealed.contains_key(&id) {
                new = true;
                self.new_file(id, path);
            }
        }
        let before = std::mem::replace(&mut self.left_alone, left_alone);
        for gone in before
            .keys()
            .filter(|path| !self.left_alone.contains_key(*path))
        {
            let name = gone.file_name().unwrap_or_default().to_string_lossy();
            if let Some(id) = SegmentId::of_file(&name) {
                self.board.health.clear(&topic(&id));
            }
        }
        if new {
            self.tell_missing();
            self.disk
                .sync_dir(&data_dir)
                .map_err(ProcessError::io("sync", &data_dir))?;
        }
        Ok(())
    }

    pub(super) fn new_file(&mut self, id: SegmentId, path: PathBuf) {
        let back = id.number().is_some_and(|number| {
            self.board.lost.remove(&number);
            self.missing.remove(&number)
        });
        let found = Found {
            id: id.clone(),
            place: Place::Incoming,
            path,
        };
        // What this journal sealed is counted by it.
        let counted = id.number().is_some() && !back;
        self.board.sealed.insert(
            id,
            Sealed {
                counted,
                ..Sealed::new(&found)
            },
        );
    }

    /// A file that fails is named in readiness and tried again later; the others go on.
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
        let (path, place) = (sealed.path.clone(), sealed.place);
        let done = match self.apply_sealed(applier, id, &path, place) {
            Err(
                error @ (ProcessError::Store(_)
                | ProcessError::Stopped
                | ProcessError::Raced { .. }),
            ) => {
                return Err(error);
            }
            Err(error) => {
                self.board.health.set(&topic(id), in_words(&error));
                if let Some(sealed) = self.board.sealed.get_mut(id) {
                    sealed.retry_at = Some(Instant::now() + FILE_RETRY_AFTER);
                }
                return Ok(());
            }
            Ok(done) => done,
        };
        if done {
            if !self.left_alone.contains_key(&path) {
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

    /// Whether nothing is left to be done with the file.
    pub(super) fn apply_sealed(
        &mut self,
        applier: &mut Applier<'_>,
        id: &SegmentId,
        path: &std::path::Path,
        place: Place,
    ) -> Result<bool, ProcessError> {
        let segment = match open_sealed(&*self.disk, id, path) {
            // In the archive: somebody put it there, or the sync after our rename failed.
            Err(ProcessError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound && self.is_whole(id) =>
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
                .map_err(ProcessError::io("look at", path))?;
            self.left_alone.insert(path.to_owned(), stat.identity);
            self.board
                .health
                .set(&topic(id), prune::was_let_go(path, pruned));
            return Ok(true);
        }
        let start = match applier.confirm(&segment)? {
            Confirmed::At(bytes) => bytes,
            Confirmed::Whole(row) => {
                return self.archive(applier, &segment, place, &row).map(|()| true);
            }
            Confirmed::Untrusted(untrusted) => {
                return self.distrust(applier, &segment, &untrusted).map(|()| true);
            }
            Confirmed::Restored(row) => {
                applier.note(&row, SegmentState::Sealed, None)?;
                self.board.restored(id, row.untrusted_lines);
                return Ok(false);
            }
        };
        let size = segment
            .file
            .size()
            .map_err(ProcessError::io("look at", path))?;
        if !self.is_complete(id, size) {
            return Ok(false);
        }
        self.count_once(id, &segment, start, size)?;
        applier.apply_sealed(&segment, start, size, &mut self.board)?;
        if let Some(sealed) = self.board.sealed.get_mut(id) {
            sealed.whole = true;
        }
        // Before the archive's syncs: it does not lag behind.
        self.board.publish();
        if let Some(row) = applier.writer.segment(id)? {
            self.archive(applier, &segment, place, &row)?;
        }
        Ok(true)
    }

    fn is_whole(&self, id: &SegmentId) -> bool {
        let sealed = self.board.sealed.get(id);
        sealed.is_some_and(|sealed| sealed.whole)
    }

    pub(super) fn distrust(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
        untrusted: &Untrusted,
    ) -> Result<(), ProcessError> {
        let stat = segment
            .file
            .stat()
            .map_err(ProcessError::io("look at", &segment.path))?;
        if untrusted.known {
            applier.forget(&segment.id);
        } else {
            let lines = applier.distrust(segment, untrusted)?;
            self.board
                .distrusted(&segment.id, untrusted.applied_bytes, lines);
        }
        self.left_alone.insert(segment.path.clone(), stat.identity);
        self.board
            .health
            .set(&topic(&segment.id), untrusted.reason.clone());
        Ok(())
    }

    /// Ours are complete when sealed; one from elsewhere once its size stands still for a round.
    pub(super) fn is_complete(&mut self, id: &SegmentId, size: u64) -> bool {
        let Some(sealed) = self.board.sealed.get_mut(id) else {
            return true;
        };
        id.number().is_some() || sealed.size.replace(size) == Some(size)
    }

    /// Adds a file's lines to those that wait, unless they are among them.
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

    /// Moves a whole file away; what can't be moved stays and is named.
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
            .map_err(ProcessError::io("look at", &segment.path))?;
        let has_read = applier.has_read(&row.id, stat.identity, stat.size);
        let data_dir = &self.config.data_dir;
        let archived = archive::archive(&*self.disk, data_dir, segment, row, has_read)?;
        if let Some(refusal) = archived.refusal() {
            self.left_alone.insert(segment.path.clone(), stat.identity);
            let words = format!(
                "{}: {refusal}. Move it away or rename it",
                segment.path.display()
            );
            self.board.health.set(&topic(&row.id), words);
        }
        Ok(())
    }
}
