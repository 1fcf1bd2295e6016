//! The batch run behind `tallyline process`: applies every sealed file in the data directory, or the files
//! that were named.
//!
//! It runs on the caller's thread. The caller holds `process.lock`, and has sealed the active segment if no
//! server runs. A named file is first imported into the data directory (see [`import`](super::import)), so
//! that the data directory has every file from which the totals are derived.
//!
//! A file that cannot be applied is listed in the [`Summary`], and the others are still applied. An error of
//! the database ends the run; what was committed stays applied.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::applier::{
    Applier, Commit, Confirmed, Opened, Small, Watch, open_sealed, open_together, open_writer,
};
use super::archive::{self, Archived, Leaving};
use super::import::{Brought, Importer};
use super::{ProcessConfig, ProcessError, describe, rebuild, retention};
use crate::aggregate::pool::Pool;
use crate::data_dir::DataDirError;
use crate::data_dir::SegmentFile;
use crate::data_dir::disk::{Disk, Unusable};
use crate::data_dir::numbers::{MISSING_MAX, gaps};
use crate::data_dir::segment::SegmentId;
use crate::data_dir::{Catalog, Found, Place};
use crate::data_dir::{active_label, given_out};
use crate::store::{Counts, DATABASE_FILE, Opening, SegmentRow, SegmentState, StoreError, Writer};
use crate::verify::contents::{describe_rivals, settle, stand_for};
use crate::verify::sums;

/// How long to wait for a database that another program has locked.
const LOCKED_MAX: Duration = Duration::from_mins(1);

/// The result of a run.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Names of the files that were fully applied in this run.
    pub applied: Vec<String>,
    /// Names of the files that had been applied before.
    pub skipped: Vec<String>,
    /// Files that were not applied. Exit code 1 if there are any.
    pub refused: Vec<Refused>,
    /// Entries of the data directory that have the name of a segment but cannot be opened. Exit code 3 if there
    /// are any. Files that were named on the command line are in `refused` instead.
    pub unusable: Vec<Refused>,
    /// Numbers of native segments that have no file and no fully applied row. Exit code 1 if there are any.
    pub missing: BTreeSet<u64>,
    /// The lines applied in this run, by outcome. Exit code 3 if any was rejected.
    pub counts: Counts,
    /// Bytes applied in this run.
    pub bytes: u64,
}

/// A file that was not applied.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Its path; the file is unchanged.
    pub path: PathBuf,
    /// Why it was not applied, and what to do.
    pub reason: String,
}

/// A step of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A named file is converted.
    Import,
    /// A segment is applied.
    Apply,
}

/// The progress of a run.
#[derive(Clone, Copy, Debug)]
pub struct RunProgress<'a> {
    /// The present step.
    pub step: Step,
    /// The file being converted or the segment being applied.
    pub segment: &'a str,
    /// Bytes of the file converted so far, or bytes applied so far in this run.
    pub bytes: u64,
    /// Bytes of the file, or bytes to apply at the start of the run.
    pub bytes_total: u64,
}

/// Applies every sealed file in the data directory, or only `files` if there are any. `on_progress` is called
/// after each commit.
pub fn run_once(
    config: &ProcessConfig,
    disk: &Arc<dyn Disk>,
    files: &[PathBuf],
    on_progress: &mut dyn FnMut(RunProgress<'_>),
) -> Result<Summary, ProcessError> {
    let config = &when_unlocked(|| config.established(&**disk))?;
    if config.database.file() == Some(&*config.data_dir.join(DATABASE_FILE)) {
        rebuild::remove_unfinished(&config.data_dir)?;
    }
    let was_unclean = sums::was_left_open(&config.database);
    let writer = when_unlocked(|| Ok(open_writer(config, Opening::Load)?))?;
    let (writer, mut summary) = run_with(config, disk, files, writer, on_progress)?;
    writer.close()?;
    if was_unclean && let Some(reason) = sums::difference(&config.database, config.directory)? {
        summary.refused.push(Refused {
            path: config.database.to_string().into(),
            reason,
        });
    }
    Ok(summary)
}

/// The same with a writer that is open, and with the UUID of the data directory. Returns the writer.
pub(super) fn run_with(
    config: &ProcessConfig,
    disk: &Arc<dyn Disk>,
    files: &[PathBuf],
    writer: Writer,
    on_progress: &mut dyn FnMut(RunProgress<'_>),
) -> Result<(Writer, Summary), ProcessError> {
    let mut pool = Pool::start(&config.shares()).map_err(ProcessError::Thread)?;
    let applier = Applier::of(config, &mut pool, writer)?;
    let mut run = Run {
        config,
        disk: &**disk,
        applier,
        summary: Summary::default(),
        on_progress,
        bytes_total: 0,
        named: !files.is_empty(),
    };
    let todo = if files.is_empty() {
        run.all()?
    } else {
        run.named(files)?
    };
    for file in &todo {
        run.bytes_total += run.disk.size_at(&file.path).unwrap_or(0);
    }
    let mut rest = &todo[..];
    while !rest.is_empty() {
        let done = run.some(rest)?;
        rest = &rest[done..];
    }
    let Run {
        applier, summary, ..
    } = run;
    Ok((applier.writer, summary))
}

/// Repeats the attempt while another program has the database locked, for at most [`LOCKED_MAX`].
fn when_unlocked<T>(
    mut attempt: impl FnMut() -> Result<T, ProcessError>,
) -> Result<T, ProcessError> {
    let mut since = None;
    loop {
        match attempt() {
            Err(ProcessError::Store(error)) if error.is_locked() => {
                let since = *since.get_or_insert_with(|| {
                    tracing::warn!(%error, "waiting for the database");
                    Instant::now()
                });
                if since.elapsed() >= LOCKED_MAX {
                    return Err(error.into());
                }
            }
            done => return done,
        }
    }
}

struct Run<'r> {
    config: &'r ProcessConfig,
    disk: &'r dyn Disk,
    applier: Applier<'r>,
    summary: Summary,
    on_progress: &'r mut dyn FnMut(RunProgress<'_>),
    bytes_total: u64,
    /// Whether the files were named on the command line.
    named: bool,
}

/// Small files that are applied and archived together.
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

impl Together {
    fn has(&self, id: &SegmentId) -> bool {
        let mut small = self.small.iter().map(|small| &small.segment);
        small.any(|segment| segment.id == *id)
    }
}

/// What is to be done with a file.
enum Start {
    /// It is applied from here to its size.
    At(u64, u64),
    /// It was applied before.
    Whole(SegmentRow),
    /// It is refused.
    Refused,
}

impl Run<'_> {
    /// The files in the data directory that are not fully applied, or not yet archived.
    fn all(&mut self) -> Result<Vec<Found>, ProcessError> {
        let data_dir = &self.config.data_dir;
        let pruned = self.applier.writer.pruned()?;
        // Read before the listing, which then has every segment sealed by now.
        let given_out = given_out(self.disk, data_dir)?;
        let active = active_label(self.disk, data_dir, self.config.directory_tag())?;
        let (applied, _) = self.applier.writer.applied()?;
        let tag = self.config.directory_tag();
        let mut catalog = Catalog::scan_unapplied(self.disk, data_dir, tag, &applied.native)
            .map_err(ProcessError::io("list", data_dir))?;
        let writer = &self.applier.writer;
        if let Err(error) = retention::finish_at_start(self.disk, self.config, &mut catalog, writer)
        {
            tracing::warn!("{}", describe(&error));
        }
        for dir in &catalog.dirs {
            self.disk
                .sync_dir(dir)
                .map_err(ProcessError::io("sync", dir))?;
        }
        for (name, is_dir) in self.disk.list(data_dir).unwrap_or_default() {
            if is_dir && SegmentId::of_file(&name, self.config.directory_tag()).is_some() {
                self.summary.unusable.push(Refused {
                    path: data_dir.join(name),
                    reason: Unusable::NotRegular("directory").to_string(),
                });
            }
        }
        let pruned = pruned.number;
        let mut todo = Vec::new();
        for (id, found) in &catalog.sealed {
            let is_applied = applied.contains(id);
            let row = match found[..] {
                [_] if is_applied => None,
                _ => self.applier.writer.segment(id)?,
            };
            // A pruned segment in the archive is not reported.
            let is_gone =
                !is_applied && row.is_none() && id.number().is_some_and(|number| number <= pruned);
            let claims = settle(self.disk, found, row.as_ref());
            if !(claims.rivals.is_empty() || is_gone) {
                let reason = describe_rivals(self.disk, id, &claims.rivals, row.as_ref());
                self.refuse(&claims.rivals[0].path, reason);
            }
            if let Some(found) = claims.usable
                && (found.place == Place::Incoming || !(is_gone || is_applied))
            {
                todo.push(found.clone());
            }
        }
        let mut there = applied.native;
        there.extend(active.map(|label| label.number));
        for (id, found) in &catalog.sealed {
            let Some(number) = id.number().filter(|number| !there.contains(*number)) else {
                continue;
            };
            let row = self.applier.writer.segment(id)?;
            if stand_for(self.disk, found, row.as_ref()) {
                there.insert(number);
            }
        }
        let highest = there.last().unwrap_or(0).max(given_out);
        let highest = highest.max(catalog.highest_number());
        self.summary.missing = gaps(pruned + 1, highest + 1, there.ranges())
            .take(MISSING_MAX)
            .collect();
        Ok(todo)
    }

    /// The named files, after those outside the data directory were imported.
    fn named(&mut self, files: &[PathBuf]) -> Result<Vec<Found>, ProcessError> {
        let mut importer = Importer::new(self.config, self.disk)?;
        let mut todo = Vec::new();
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
            let brought = match importer.bring_in(&self.applier.writer, file, &mut on_read) {
                Err(error @ ProcessError::Io(_)) => Brought::Refused(describe(&error)),
                brought => brought?,
            };
            match brought {
                Brought::In(found) => {
                    if paths.insert(found.path.clone()) {
                        todo.push(found);
                    }
                }
                Brought::Before(name) => self.summary.skipped.push(name),
                Brought::Again => {}
                Brought::Refused(reason) => self.refuse(file, reason),
            }
        }
        Ok(todo)
    }

    /// Applies the first of these files, those that are small together; how many it went through.
    fn some(&mut self, files: &[Found]) -> Result<usize, ProcessError> {
        let opened = open_together(
            self.disk,
            &self.config.data_dir,
            files.iter().map(|it| (&it.id, it.tag, &*it.path)),
            self.applier.small_bytes(),
        );
        let done = opened.len();
        let mut together = Together::default();
        for (file, opened) in files.iter().zip(opened) {
            let applied = match opened {
                Opened::Small(segment) => {
                    if together.has(&segment.id) {
                        self.commit_together(std::mem::take(&mut together))?;
                    }
                    self.small_file(file, segment, &mut together)
                }
                Opened::Large => {
                    self.commit_together(std::mem::take(&mut together))?;
                    self.large_file(file)
                }
                Opened::Failed(error) => Err(error),
            };
            self.go_on_after(&file.path, applied)?;
            if together.bytes > self.applier.held_bytes_max() {
                self.commit_together(std::mem::take(&mut together))?;
            }
        }
        self.commit_together(together)?;
        Ok(done)
    }

    /// An error of one file is noted; one of the database ends the run.
    fn go_on_after(
        &mut self,
        path: &Path,
        done: Result<(), ProcessError>,
    ) -> Result<(), ProcessError> {
        match done {
            Err(error @ (ProcessError::Io(_) | ProcessError::NotArchived { .. })) => {
                self.failed(path, &error);
            }
            Err(error @ ProcessError::Changed { .. }) => self.refuse(path, error.to_string()),
            done => done?,
        }
        Ok(())
    }

    /// Applies one file to its end and archives it.
    fn large_file(&mut self, file: &Found) -> Result<(), ProcessError> {
        let segment = open_sealed(self.disk, &file.id, file.tag, &file.path)?;
        match self.start(&segment)? {
            Start::Refused => {}
            Start::Whole(row) => self.archive(&[(segment, file.place, row)], false)?,
            Start::At(applied, size) => {
                let mut told = Told {
                    summary: &mut self.summary,
                    on_progress: self.on_progress,
                    bytes_total: self.bytes_total,
                    locked_since: None,
                };
                self.applier
                    .apply_sealed(&segment, applied, size, &mut told)?;
                self.summary.applied.push(segment.name());
                if let Some(row) = self.applier.writer.segment(&file.id)? {
                    self.archive(&[(segment, file.place, row)], true)?;
                }
            }
        }
        Ok(())
    }

    /// Reads a file that is applied with others.
    fn small_file(
        &mut self,
        file: &Found,
        segment: SegmentFile,
        together: &mut Together,
    ) -> Result<(), ProcessError> {
        match self.start(&segment)? {
            Start::Refused => {}
            Start::Whole(row) => together.whole.push((segment, file.place, row)),
            Start::At(applied, size) => {
                let small = self.applier.read_small(segment, applied, size)?;
                together.bytes += small.memory_bytes();
                together.places.push(file.place);
                together.small.push(small);
            }
        }
        Ok(())
    }

    /// Applies small files in one transaction, then archives them.
    fn commit_together(&mut self, together: Together) -> Result<(), ProcessError> {
        let Together {
            small,
            places,
            whole,
            ..
        } = together;
        self.archive(&whole, false)?;
        if small.is_empty() {
            return Ok(());
        }
        let mut told = Told {
            summary: &mut self.summary,
            on_progress: self.on_progress,
            bytes_total: self.bytes_total,
            locked_since: None,
        };
        self.applier.commit_together(&small, &mut told)?;
        let mut applied = Vec::with_capacity(small.len());
        for (small, place) in small.into_iter().zip(places) {
            let segment = small.segment;
            self.summary.applied.push(segment.name());
            if let Some(row) = self.applier.writer.segment(&segment.id)? {
                applied.push((segment, place, row));
            }
        }
        self.archive(&applied, true)
    }

    /// From where a file is to be applied, if it is.
    fn start(&mut self, segment: &SegmentFile) -> Result<Start, ProcessError> {
        let (id, path) = (&segment.id, &segment.path);
        let pruned = self.applier.writer.pruned()?.number;
        if id.number().is_some_and(|number| number <= pruned)
            && self.applier.writer.segment(id)?.is_none()
        {
            self.refuse(path, retention::was_pruned(path, pruned));
            return Ok(Start::Refused);
        }
        let applied = match self.confirm(segment)? {
            Confirmed::At(applied) => applied,
            Confirmed::Applied(row) => return Ok(Start::Whole(row)),
            Confirmed::Restored(_) => return Ok(Start::Refused), // confirm() leaves none
            Confirmed::Rival(reason) => {
                self.refuse(path, reason);
                return Ok(Start::Refused);
            }
            Confirmed::Corrupt(corrupt) => {
                if !corrupt.known {
                    self.applier.mark_corrupt(segment, &corrupt)?;
                }
                self.refuse(path, corrupt.reason);
                return Ok(Start::Refused);
            }
        };
        let size = segment
            .file
            .size()
            .map_err(ProcessError::io("look at", path))?;
        Ok(Start::At(applied, size))
    }

    fn confirm(&mut self, segment: &SegmentFile) -> Result<Confirmed, ProcessError> {
        match self.applier.confirm(segment)? {
            Confirmed::Restored(row) => {
                self.applier.note(&row, SegmentState::Sealed, None)?;
                self.applier.confirm(segment)
            }
            confirmed => Ok(confirmed),
        }
    }

    fn archive(
        &mut self,
        files: &[(SegmentFile, Place, SegmentRow)],
        applied_now: bool,
    ) -> Result<(), ProcessError> {
        let mut leaving = Vec::new();
        for (segment, place, row) in files {
            if *place != Place::Incoming {
                self.archived(segment, Archived::Moved, applied_now);
                continue;
            }
            match segment.file.stat() {
                Ok(stat) => leaving.push(Leaving {
                    segment,
                    row,
                    has_read: self.applier.has_read(&segment.id, stat.identity, stat.size),
                }),
                Err(error) => {
                    let error = ProcessError::io("look at", &segment.path)(error);
                    self.go_on_after(&segment.path, Err(error))?;
                }
            }
        }
        let archived = archive::archive(self.disk, &self.config.data_dir, &leaving);
        for (file, archived) in leaving.iter().zip(archived) {
            match archived {
                Ok(archived) => self.archived(file.segment, archived, applied_now),
                Err(error) => self.go_on_after(&file.segment.path, Err(error))?,
            }
        }
        Ok(())
    }

    /// Notes what became of a file.
    fn archived(&mut self, segment: &SegmentFile, archived: Archived, applied_now: bool) {
        self.applier.forget(&segment.id);
        match (archived, applied_now) {
            (Archived::OtherContent(words), _) => {
                self.refuse(&segment.path, format!("{words}. Then move this file away"));
            }
            // The same content again; it is in the archive already.
            (Archived::Moved | Archived::NameTaken | Archived::RelativeLink, false) => {
                self.summary.skipped.push(segment.name());
            }
            (Archived::NameTaken, true) => {
                tracing::warn!(path = %segment.path.display(), "cannot archive the applied file: the archive has a file of that name");
            }
            (Archived::Moved | Archived::RelativeLink, true) => {}
        }
    }

    /// A file that can't be opened or read: the others go on.
    fn failed(&mut self, path: &Path, error: &ProcessError) {
        let not_opened = matches!(error, ProcessError::Io(DataDirError { action: "open", .. }));
        let refused = Refused {
            path: path.to_owned(),
            reason: describe(error),
        };
        if not_opened && !self.named {
            self.summary.unusable.push(refused);
        } else {
            self.summary.refused.push(refused);
        }
    }

    fn refuse(&mut self, path: &Path, reason: String) {
        self.summary.refused.push(Refused {
            path: path.to_owned(),
            reason,
        });
    }
}

/// Adds commits to the summary and reports progress.
struct Told<'t> {
    summary: &'t mut Summary,
    on_progress: &'t mut dyn FnMut(RunProgress<'_>),
    bytes_total: u64,
    locked_since: Option<Instant>,
}

impl Watch for Told<'_> {
    fn committed(&mut self, commits: &[Commit<'_>], _took: Duration) {
        for commit in commits {
            self.summary.counts.add(&commit.applied.counts);
            self.summary.bytes += commit.to - commit.from;
        }
        let last = commits.last().map(|commit| commit.segment.name());
        (self.on_progress)(RunProgress {
            step: Step::Apply,
            segment: &last.unwrap_or_default(),
            bytes: self.summary.bytes,
            bytes_total: self.bytes_total,
        });
    }

    fn locked(&mut self, error: &StoreError) -> bool {
        let since = *self.locked_since.get_or_insert_with(|| {
            tracing::warn!(%error, "waiting for the database");
            Instant::now()
        });
        since.elapsed() < LOCKED_MAX
    }

    fn unlocked(&mut self) {
        self.locked_since = None;
    }
}
