//! Applies sealed files and moves them to the archive, both in the server and in a batch run.
//!
//! Small files are committed in one transaction and archived together. Of several files that wait, of which one
//! is large, the sums are added up and committed together (`folding`). A large file that waits alone is applied
//! by itself. [`Run`] decides where a file is applied from, and handles results and errors: an error of one file does
//! not keep the others from being applied, an error of the database ends the call.

mod folding;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use self::folding::Folding;
use super::applier::{Applier, Opened, Small, Watch, can_fold, open_together};
use super::archive::{self, Archived, Leaving};
use super::import::in_common;
use super::{ProcessError, retention};
use crate::data_dir::disk::{Disk, Identity, last_line_end};
use crate::data_dir::segment::{DirectoryTag, Label, Part, SegmentId};
use crate::data_dir::{Catalog, Found, Place, SegmentFile};
use crate::store::SegmentRow;
use crate::verify::contents::{begins_with, describe_same_segment};

/// What is done with an open file.
pub(super) enum Start {
    /// It is applied from the offset `from` to its size.
    At { from: u64, size: u64 },
    /// It was applied before and is only archived.
    Applied(SegmentRow),
    /// Nothing, at least for now.
    Skip,
}

/// The server or the batch run for which files are applied.
pub(super) trait Run {
    fn watch(&mut self) -> &mut dyn Watch;
    /// The most bytes of several large files that are committed together.
    fn together_bytes_max(&self) -> u64;
    /// The open file has the number of a pruned segment and no row, so it is not applied.
    fn pruned(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
        reason: String,
    ) -> Result<(), ProcessError>;
    /// Decides what is done with an open file, whose bytes are durable.
    fn start(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
    ) -> Result<Start, ProcessError>;
    /// A file is not applied, for this reason.
    fn refused(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
        reason: String,
    ) -> Result<(), ProcessError>;
    /// These files were fully applied and committed, and are archived next.
    fn applied(&mut self, segments: &[&SegmentFile]);
    /// A fully applied file was archived, or could not be. `now` is whether it was applied in this call.
    fn archived(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
        archived: Archived,
        now: bool,
    ) -> Result<(), ProcessError>;
    /// A file could not be opened, read or archived.
    fn failed(
        &mut self,
        applier: &mut Applier<'_>,
        id: &SegmentId,
        path: &Path,
        error: ProcessError,
    );
}

/// Applies the first of these files and archives them. Segments up to the number `pruned` were pruned.
/// Returns how many files were handled, at least one; the rest needs further calls.
pub(super) fn apply_some(
    disk: &dyn Disk,
    data_dir: &Path,
    applier: &mut Applier<'_>,
    pruned: u64,
    files: &[Found],
    run: &mut dyn Run,
) -> Result<usize, ProcessError> {
    let opened = open_together(
        disk,
        data_dir,
        files.iter().map(|file| (&file.id, file.tag, &*file.path)),
        applier.small_bytes(),
    );
    let handled = opened.len();
    let mut step = Step {
        disk,
        data_dir,
        applier,
        pruned,
        run,
        group: Group::default(),
        folding: None,
        is_separate: false,
        linked: None,
    };
    for (at, (file, opened)) in files.iter().zip(opened).enumerate() {
        let result = match opened {
            Opened::Small(segment) => {
                step.finish_if_it_has(&segment.id)?;
                step.small(segment, file.place)
            }
            Opened::Large => {
                step.finish_group()?;
                step.finish_if_it_has(&file.id)?;
                step.large(file, at + 1 == handled)
            }
            Opened::Failed(error) => Err(error),
        };
        if let Err(error) = result {
            step.failed(&file.id, &file.path, error)?;
        }
        if step.group.memory_bytes > step.applier.held_bytes_max() {
            step.finish_group()?;
        }
    }
    step.finish_fold()?;
    step.finish_group()?;
    Ok(handled)
}

/// Small files that are committed and archived together.
#[derive(Default)]
struct Group {
    small: Vec<(Small, Place)>,
    /// Files that were applied before and are only archived.
    applied: Vec<Complete>,
    /// Memory for `small`, in bytes.
    memory_bytes: usize,
}

impl Group {
    fn has(&self, id: &SegmentId) -> bool {
        self.small.iter().any(|(small, _)| small.segment.id == *id)
    }
}

/// A fully applied file that is to be archived.
struct Complete {
    segment: SegmentFile,
    place: Place,
    row: SegmentRow,
    /// Whether it was applied in this call.
    now: bool,
}

struct Step<'s, 'p> {
    disk: &'s dyn Disk,
    data_dir: &'s Path,
    applier: &'s mut Applier<'p>,
    pruned: u64,
    run: &'s mut dyn Run,
    group: Group,
    /// Files that were scanned and are committed after further ones. While there are any, the group has no
    /// file that is to be applied.
    folding: Option<Folding>,
    /// Sums that were added up could not be applied. The totals that may overflow are usually the same in the
    /// next files, so these are applied one by one.
    is_separate: bool,
    /// The first path of each imported file, in the archive or else by name; listed when it is first
    /// needed.
    linked: Option<HashMap<Identity, PathBuf>>,
}

impl Step<'_, '_> {
    /// Commits what is scanned if another file with this id is in it.
    fn finish_if_it_has(&mut self, id: &SegmentId) -> Result<(), ProcessError> {
        if self.group.has(id) {
            self.finish_group()?;
        }
        if self.folding.as_ref().is_some_and(|fold| fold.has(id)) {
            self.finish_fold()?;
        }
        Ok(())
    }

    /// Decides what is done with an open file. An imported file with several names in the data directory
    /// (hard links) is applied under one of them.
    fn start(&mut self, segment: &SegmentFile) -> Result<Start, ProcessError> {
        let id = &segment.id;
        if id.number().is_some_and(|number| number <= self.pruned)
            && self.applier.writer.segment(id)?.is_none()
        {
            let reason = retention::was_pruned(&segment.path, self.pruned);
            self.run.pruned(self.applier, segment, reason)?;
            return Ok(Start::Skip);
        }
        let start = self.run.start(self.applier, segment)?;
        if matches!(start, Start::At { from: 0, .. })
            && let Some(first) = self.other_link(segment)?
        {
            let reason = format!(
                "{}: it is the same file as {} (a hard link), whose events are counted once; remove this name",
                segment.path.display(),
                first.display()
            );
            self.run.refused(self.applier, segment, reason)?;
            return Ok(Start::Skip);
        }
        if matches!(start, Start::At { from: 0, .. })
            && let Some(reason) = self.in_own_segment(segment)?
        {
            self.run.refused(self.applier, segment, reason)?;
            return Ok(Start::Skip);
        }
        Ok(start)
    }

    /// Describes why an imported part of a segment of this data directory is not applied: the segment's own file has
    /// its first line. `None` if it does not, or if the file is not such a part.
    fn in_own_segment(&mut self, segment: &SegmentFile) -> Result<Option<String>, ProcessError> {
        let tag = self.applier.directory();
        let Some(part) = Part::of_name(&segment.name()) else {
            return Ok(None);
        };
        let Label { number, tag: own } = part.label;
        let id = SegmentId::Native(number);
        if own.directory != tag {
            return Ok(None);
        }
        self.finish_if_it_has(&id)?;
        let row = self.applier.writer.segment(&id)?;
        let Some(row) = row.filter(|row| row.tag == Some(own) && row.applied_bytes > 0) else {
            return Ok(None);
        };
        let reason = describe_same_segment(&segment.path, part.label, &row.file_name);
        if part.from.length == 0 || part.to == row.applied_prefix() {
            return Ok(Some(reason));
        }
        let catalog = Catalog::scan(self.disk, self.data_dir, tag)
            .map_err(ProcessError::io("list", self.data_dir))?;
        let found = catalog.sealed.get(&id).into_iter().flatten();
        let mut kept =
            found.filter(|found| found.place != Place::Quarantine && found.tag == Some(own));
        let path = kept.next().map_or_else(
            || self.data_dir.join(&row.file_name),
            |found| found.path.clone(),
        );
        let io = || ProcessError::io("read", &path);
        let kept = match self.disk.open_read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(io())?,
        };
        let size = kept.size().map_err(io())?;
        if !begins_with(&*kept, size, part.from).map_err(io())? {
            return Ok(None);
        }
        let common = in_common(&*kept, part.from.length, &*segment.file).map_err(io())?;
        let end = part.from.length + common;
        let lines_end = last_line_end(&*kept, end).map_err(io())?;
        Ok((lines_end > part.from.length).then_some(reason))
    }

    /// The path under which an imported file is applied, if that is another one.
    fn other_link(&mut self, segment: &SegmentFile) -> Result<Option<PathBuf>, ProcessError> {
        let io = || ProcessError::io("inspect", &segment.path);
        let stat = segment.file.stat().map_err(io())?;
        if stat.links < 2 || segment.id.number().is_some() {
            return Ok(None);
        }
        if self.linked.is_none() {
            let tag = self.applier.directory();
            self.linked = Some(first_links(self.disk, self.data_dir, tag)?);
        }
        let first = self.linked.as_ref().and_then(|all| all.get(&stat.identity));
        Ok(first.filter(|first| **first != segment.path).cloned())
    }

    /// Reads a small file into the group.
    fn small(&mut self, segment: SegmentFile, place: Place) -> Result<(), ProcessError> {
        match self.start(&segment)? {
            Start::Skip => {}
            Start::Applied(row) => self.group.applied.push(Complete {
                segment,
                place,
                row,
                now: false,
            }),
            Start::At { from, size } if self.folding.is_some() => {
                if can_fold(&segment, size)? {
                    return self.fold(segment, place, from, size);
                }
                self.finish_fold()?;
                self.read_small(segment, place, from, size)?;
            }
            Start::At { from, size } => self.read_small(segment, place, from, size)?,
        }
        Ok(())
    }

    fn read_small(
        &mut self,
        segment: SegmentFile,
        place: Place,
        from: u64,
        size: u64,
    ) -> Result<(), ProcessError> {
        let small = self.applier.read_small(segment, from, size)?;
        self.group.memory_bytes += small.memory_bytes();
        self.group.small.push((small, place));
        Ok(())
    }

    /// Commits and archives the group, and begins another one.
    fn finish_group(&mut self) -> Result<(), ProcessError> {
        let Group { small, applied, .. } = std::mem::take(&mut self.group);
        let mut complete = applied;
        let (small, places): (Vec<Small>, Vec<Place>) = small.into_iter().unzip();
        if !small.is_empty() {
            self.applier.commit_together(&small, self.run.watch())?;
            let segments: Vec<&SegmentFile> = small.iter().map(|small| &small.segment).collect();
            self.run.applied(&segments);
        }
        for (small, place) in small.into_iter().zip(places) {
            let row = self.completed(&small.segment)?;
            complete.push(Complete {
                segment: small.segment,
                place,
                row,
                now: true,
            });
        }
        self.archive(&complete)
    }

    /// The row of a segment that was just applied. Logs whether it has the content of another file.
    fn completed(&mut self, segment: &SegmentFile) -> Result<SegmentRow, ProcessError> {
        let row = self.applier.writer.segment(&segment.id)?;
        let row = row.ok_or_else(|| ProcessError::Raced {
            segment: segment.id.to_string(),
        })?;
        if let Some(same) = self.applier.same_content(&row)? {
            tracing::warn!("{same}");
        }
        Ok(row)
    }

    /// Moves fully applied files to the archive, unless they are there.
    fn archive(&mut self, files: &[Complete]) -> Result<(), ProcessError> {
        let mut leaving = Vec::new();
        let mut left_now = Vec::new();
        for file in files {
            let Complete { segment, row, .. } = file;
            if file.place != Place::Incoming {
                self.archived(segment, Ok(Archived::Moved), file.now)?;
                continue;
            }
            match segment.file.stat() {
                Ok(stat) => {
                    let has_read = self.applier.has_read(&row.id, stat.identity, stat.size);
                    leaving.push(Leaving {
                        segment,
                        row,
                        has_read,
                    });
                    left_now.push(file.now);
                }
                Err(error) => {
                    let error = ProcessError::io("inspect", &segment.path)(error);
                    self.failed(&segment.id, &segment.path, error)?;
                }
            }
        }
        let archived = archive::archive(self.disk, self.data_dir, &leaving);
        for ((file, archived), now) in leaving.iter().zip(archived).zip(left_now) {
            self.archived(file.segment, archived, now)?;
        }
        Ok(())
    }

    fn archived(
        &mut self,
        segment: &SegmentFile,
        archived: Result<Archived, ProcessError>,
        now: bool,
    ) -> Result<(), ProcessError> {
        archived
            .and_then(|archived| self.run.archived(self.applier, segment, archived, now))
            .or_else(|error| self.failed(&segment.id, &segment.path, error))
    }

    /// Reports an error of one file; returns an error of the database.
    fn failed(
        &mut self,
        id: &SegmentId,
        path: &Path,
        error: ProcessError,
    ) -> Result<(), ProcessError> {
        match error {
            ProcessError::Io(_)
            | ProcessError::NotArchived { .. }
            | ProcessError::Changed { .. } => {
                self.run.failed(self.applier, id, path, error);
                Ok(())
            }
            error => Err(error),
        }
    }
}

/// The first path of each imported file outside the quarantine: the one in the archive, which is applied,
/// or else the first by name.
fn first_links(
    disk: &dyn Disk,
    data_dir: &Path,
    directory: DirectoryTag,
) -> Result<HashMap<Identity, PathBuf>, ProcessError> {
    let catalog =
        Catalog::scan(disk, data_dir, directory).map_err(ProcessError::io("list", data_dir))?;
    let found = catalog.sealed.values().flatten();
    let mut imported: Vec<&Found> = found
        .filter(|found| found.id.number().is_none() && found.place != Place::Quarantine)
        .collect();
    // `Place::Applied` is after `Place::Incoming`; the sort keeps the order by name.
    imported.sort_by_key(|found| std::cmp::Reverse(found.place));
    let mut first = HashMap::new();
    for found in imported {
        let identity = disk.identity(&found.path);
        if let Some(identity) = identity.map_err(ProcessError::io("inspect", &found.path))? {
            first.entry(identity).or_insert_with(|| found.path.clone());
        }
    }
    Ok(first)
}
