//! The batch run behind `tallyline process`: applies every sealed file in the data directory, or the files
//! that were named.
//!
//! It runs on the caller's thread. The caller holds `process.lock`, and has sealed the active segment if no
//! server runs. A named file is first imported into the data directory (see [`import`](super::import)), so
//! that the data directory has every file from which the totals are derived.
//!
//! A file that cannot be applied is listed in the [`BatchSummary`], and the others are still applied. An error of
//! the database ends the run; what was committed stays applied.

mod pending;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::applier::{Applier, Commit, Confirmed, Watch, open_writer};
use super::archive::Archived;
use super::sealed_files::{Run, Start, apply_some};
use super::{ProcessError, ProcessorConfig, Refused, describe, unfinished};
use crate::data_dir::DataDirError;
use crate::data_dir::SegmentFile;
use crate::data_dir::disk::Disk;
use crate::data_dir::segment::SegmentId;
use crate::store::{Counts, DATABASE_FILE, Opening, SegmentState, StoreError, Writer};
use crate::verify::sums;

/// How long to wait for a database that another program has locked.
const LOCKED_MAX: Duration = Duration::from_mins(1);

/// The result of a run.
#[derive(Clone, Debug, Default)]
pub struct BatchSummary {
    /// Names of the files that were fully applied in this run.
    pub applied: Vec<String>,
    /// Names of the files that had been applied before.
    pub skipped: Vec<String>,
    /// Files that were not applied. Exit code 1 if there are any.
    pub refused: Vec<Refused>,
    /// Entries of the data directory that have the name of a segment but cannot be opened. Exit code 3 if there
    /// are any. Files that were named on the command line are in `refused` instead.
    pub unusable: Vec<Refused>,
    /// Named files that are a fork of a segment: their own events were imported, but it is not known which of
    /// the common ones were received twice. Exit code 3 if there are any.
    pub forks: Vec<Refused>,
    /// Numbers of native segments that have no file and no fully applied row. Exit code 1 if there are any.
    pub missing: BTreeSet<u64>,
    /// The lines applied in this run, by outcome. Exit code 3 if any was rejected.
    pub counts: Counts,
    /// Bytes applied in this run.
    pub bytes: u64,
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
    /// Whether a file is imported or applied.
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
    config: &ProcessorConfig,
    disk: &Arc<dyn Disk>,
    files: &[PathBuf],
    on_progress: &mut dyn FnMut(RunProgress<'_>),
) -> Result<BatchSummary, ProcessError> {
    let config = &when_unlocked(|| config.established(&**disk))?;
    if config.database.file() == Some(&*config.data_dir.join(DATABASE_FILE)) {
        unfinished::remove(&config.data_dir)?;
    }
    let was_unclean = sums::was_left_open(&config.database);
    let writer = when_unlocked(|| Ok(open_writer(config, Opening::Load)?))?;
    let (mut writer, mut summary) = run_with(config, disk, files, writer, on_progress)?;
    config.clock.check_and_store(&mut writer)?;
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
    config: &ProcessorConfig,
    disk: &Arc<dyn Disk>,
    files: &[PathBuf],
    writer: Writer,
    on_progress: &mut dyn FnMut(RunProgress<'_>),
) -> Result<(Writer, BatchSummary), ProcessError> {
    let mut pool = config.pool(&config.memory_budget(), disk);
    let mut applier = Applier::of(config, &mut pool, writer)?;
    let mut batch = Batch {
        config,
        disk: &**disk,
        summary: BatchSummary::default(),
        on_progress,
        bytes_total: 0,
        locked_since: None,
        named: !files.is_empty(),
    };
    let pending = if files.is_empty() {
        batch.pending_files(&applier.writer)?
    } else {
        batch.named_files(&applier.writer, files)?
    };
    for file in &pending {
        batch.bytes_total += disk.size_at(&file.path).unwrap_or(0);
    }
    let pruned = applier.writer.pruned()?.number;
    let mut rest = &pending[..];
    while !rest.is_empty() {
        let data_dir = &config.data_dir;
        let handled = apply_some(&**disk, data_dir, &mut applier, pruned, rest, &mut batch)?;
        rest = &rest[handled..];
    }
    Ok((applier.writer, batch.summary))
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

struct Batch<'r> {
    config: &'r ProcessorConfig,
    disk: &'r dyn Disk,
    summary: BatchSummary,
    on_progress: &'r mut dyn FnMut(RunProgress<'_>),
    bytes_total: u64,
    /// Since when the database has been locked; `None` if it is not.
    locked_since: Option<Instant>,
    /// Whether the files were named on the command line.
    named: bool,
}

impl Batch<'_> {
    fn refuse(&mut self, path: &Path, reason: String) {
        self.summary.refused.push(Refused {
            path: path.to_owned(),
            reason,
        });
    }
}

impl Run for Batch<'_> {
    fn watch(&mut self) -> &mut dyn Watch {
        self
    }

    /// Only the bounds of the pool.
    fn together_bytes_max(&self) -> u64 {
        u64::MAX
    }

    fn pruned(
        &mut self,
        _applier: &mut Applier<'_>,
        segment: &SegmentFile,
        reason: String,
    ) -> Result<(), ProcessError> {
        self.refuse(&segment.path, reason);
        Ok(())
    }

    fn start(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
    ) -> Result<Start, ProcessError> {
        let path = &segment.path;
        let mut confirmed = applier.confirm(segment)?;
        if let Confirmed::Restored(row) = &confirmed {
            applier.note(row, SegmentState::Sealed, None)?;
            confirmed = applier.confirm(segment)?;
        }
        match confirmed {
            Confirmed::At(from) => {
                let size = segment.file.size();
                let size = size.map_err(ProcessError::io("inspect", path))?;
                return Ok(Start::At { from, size });
            }
            Confirmed::Applied(row) => return Ok(Start::Applied(row)),
            Confirmed::Restored(_) => {} // It was restored above.
            Confirmed::Rival(reason) => self.refuse(path, reason),
            Confirmed::Corrupt(corrupt) => {
                if !corrupt.known {
                    applier.mark_corrupt(segment, &corrupt)?;
                }
                self.refuse(path, corrupt.reason);
            }
        }
        Ok(Start::Skip)
    }

    fn refused(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
        reason: String,
    ) -> Result<(), ProcessError> {
        applier.forget(&segment.id);
        self.refuse(&segment.path, reason);
        Ok(())
    }

    fn applied(&mut self, segments: &[&SegmentFile]) {
        let names = segments.iter().map(|segment| segment.name());
        self.summary.applied.extend(names);
    }

    fn archived(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
        archived: Archived,
        now: bool,
    ) -> Result<(), ProcessError> {
        applier.forget(&segment.id);
        match archived {
            Archived::OtherContent(reason) => {
                self.refuse(&segment.path, format!("{reason}. Then move this file away"));
            }
            _ if !now => self.summary.skipped.push(segment.name()),
            Archived::NameTaken => {
                tracing::warn!(path = %segment.path.display(), "cannot archive the applied file: the archive has a file of that name");
            }
            Archived::Moved | Archived::RelativeLink => {}
        }
        Ok(())
    }

    fn failed(
        &mut self,
        _applier: &mut Applier<'_>,
        _id: &SegmentId,
        path: &Path,
        error: ProcessError,
    ) {
        let not_opened = matches!(error, ProcessError::Io(DataDirError { action: "open", .. }));
        let refused = Refused {
            path: path.to_owned(),
            reason: describe(&error),
        };
        if not_opened && !self.named {
            self.summary.unusable.push(refused);
        } else {
            self.summary.refused.push(refused);
        }
    }
}

impl Watch for Batch<'_> {
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
