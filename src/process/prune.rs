//! Retention: whole segments past their time go, and ids past theirs. On the coordinator's thread.
//!
//! # The ordered steps of a prune
//! 1. One transaction: the segment's sums move to the `pruned` row, with the length and checksum of
//!    its file; its own row goes. 2. The file is removed, only if length and checksum are those.
//!    3. fsync of its directory. The next segment only after that, so that a crash leaves one file
//!    at most, which the next start removes by the length and checksum that were kept.
//!
//! Oldest number first; never the newest, whose number tells the next one's; never past a segment
//! that still waits to be applied; files from elsewhere never, for their row keeps the same file
//! from counting again. Age counts from when a segment was wholly applied.
//!
//! Nothing goes while somebody verifies, nor while the database's sums are wrong or being checked.
//! A file that is not what was applied stays, with its row, and is named in readiness.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::applier::{SegmentFile, now_ms};
use super::{ProcessConfig, ProcessError, archive, lines};
use crate::fs::{DirHold, Disk};
use crate::health::Health;
use crate::journal::{Catalog, Place};
use crate::segment::SegmentId;
use crate::store::{IdsWalk, Pruned, SegmentRow, Writer};

/// How long a round may go on letting go; one segment goes at least.
const ROUND_MAX: Duration = Duration::from_millis(100);
/// A segment that could not go is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Ids looked at in one transaction, how long a step may go on, and how often there is one: two
/// hundredths of the time.
const IDS_AT_ONCE: u32 = 2000;
const IDS_STEP_MAX: Duration = Duration::from_millis(20);
const IDS_STEP_EVERY: Duration = Duration::from_secs(1);

const RETENTION: &str = "retention";

/// What goes, and how far letting go has come.
pub(super) struct Retention {
    data_dir: PathBuf,
    retain_for: Option<Duration>,
    keep_ids: Option<Duration>,
    not_before: Instant,
    ids: IdsWalk,
    ids_not_before: Instant,
}

impl Retention {
    pub(super) fn new(config: &ProcessConfig) -> Self {
        let now = Instant::now();
        Self {
            data_dir: config.data_dir.clone(),
            retain_for: config.retain_for,
            keep_ids: config.keep_ids,
            not_before: now,
            ids: IdsWalk::default(),
            ids_not_before: now,
        }
    }

    /// Lets go what is due now: segments before `end`, the first that must stay. The number up to
    /// which segments were pruned, if any was.
    pub(super) fn round(
        &mut self,
        writer: &mut Writer,
        disk: &dyn Disk,
        end: u64,
        health: &Health,
    ) -> Result<Option<u64>, ProcessError> {
        self.ids(writer)?;
        if self.not_before > Instant::now() || self.due(writer, end)?.is_none() {
            return Ok(None);
        }
        let Some(_held) = self.hold()? else {
            return Ok(None);
        };
        let dir = &self.data_dir;
        let catalog = Catalog::scan(disk, dir).map_err(ProcessError::io("list", dir))?;
        finish(disk, &catalog, &writer.pruned()?)?;
        let began = Instant::now();
        let mut last = None;
        while let Some((row, number)) = self.due(writer, end)? {
            match prune(writer, disk, &catalog, &row)? {
                Outcome::Gone => {
                    last = Some(number);
                    health.clear(RETENTION);
                }
                Outcome::Stays(path) => {
                    self.not_before = Instant::now() + RETRY_AFTER;
                    health.set(
                        RETENTION,
                        format!(
                            "{}: not what was applied as segment {number}, so it stays, and nothing after it is pruned. Restore the file or move it to quarantine/",
                            path.display()
                        ),
                    );
                    break;
                }
                Outcome::Changed => break,
            }
            if began.elapsed() > ROUND_MAX {
                break;
            }
        }
        Ok(last)
    }

    /// The segment to go next, if one is due.
    fn due(&self, writer: &Writer, end: u64) -> Result<Option<(SegmentRow, u64)>, ProcessError> {
        let Some(retain_for) = self.retain_for else {
            return Ok(None);
        };
        let Some(row) = writer.oldest_whole()? else {
            return Ok(None);
        };
        let due_ms = row
            .whole_at_ms
            .and_then(|at| at.checked_add(i64::try_from(retain_for.as_millis()).ok()?));
        let due = due_ms.is_some_and(|due_ms| due_ms <= now_ms());
        match row.id.number() {
            Some(number) if due && number < end && number < writer.highest_sealed()? => {
                Ok(Some((row, number)))
            }
            _ => Ok(None),
        }
    }

    /// A step of the walk over all ids.
    fn ids(&mut self, writer: &mut Writer) -> Result<(), ProcessError> {
        let Some(keep_ids) = self.keep_ids else {
            return Ok(());
        };
        let began = Instant::now();
        if self.ids_not_before > began {
            return Ok(());
        }
        self.ids_not_before = began + IDS_STEP_EVERY;
        let Some(_held) = self.hold()? else {
            return Ok(());
        };
        // Times are kept in whole seconds: rounded so that no id goes early.
        let keep_s = i64::try_from(keep_ids.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let before_s = now_ms().div_euclid(1000).saturating_sub(keep_s);
        while began.elapsed() < IDS_STEP_MAX {
            self.ids = writer.let_ids_go(&self.ids, before_s, IDS_AT_ONCE)?;
            if self.ids.after.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// `None` while somebody verifies.
    fn hold(&self) -> Result<Option<DirHold>, ProcessError> {
        let dir = &self.data_dir;
        DirHold::alone(dir).map_err(ProcessError::io("hold", dir))
    }
}

enum Outcome {
    Gone,
    /// This file is not what was applied.
    Stays(PathBuf),
    /// The row is not what was seen.
    Changed,
}

fn prune(
    writer: &mut Writer,
    disk: &dyn Disk,
    catalog: &Catalog,
    row: &SegmentRow,
) -> Result<Outcome, ProcessError> {
    let mut paths = Vec::new();
    for path in files(catalog, &row.id) {
        match disk.open_read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            file => {
                let file = file.map_err(ProcessError::io("open", path))?;
                let segment = SegmentFile {
                    id: row.id.clone(),
                    path: path.to_owned(),
                    file,
                };
                if !archive::is_what_was_applied(&segment, row)? {
                    return Ok(Outcome::Stays(segment.path));
                }
                paths.push(segment.path);
            }
        }
    }
    // 1. One transaction.
    if !writer.prune(row, now_ms())? {
        return Ok(Outcome::Changed);
    }
    for path in &paths {
        remove(disk, path)?;
    }
    tracing::info!(segment = %row.id, bytes = row.applied_bytes, "pruned");
    Ok(Outcome::Gone)
}

/// Files that may go: what somebody set aside is his.
fn files<'c>(catalog: &'c Catalog, id: &SegmentId) -> impl Iterator<Item = &'c Path> {
    let found = catalog.sealed.get(id).into_iter().flatten();
    found
        .filter(|found| found.place != Place::Quarantine)
        .map(|found| found.path.as_path())
}

/// 2. unlink. 3. fsync.
fn remove(disk: &dyn Disk, path: &Path) -> Result<(), ProcessError> {
    disk.remove(path)
        .map_err(ProcessError::io("remove", path))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    disk.sync_dir(dir).map_err(ProcessError::io("sync", dir))
}

/// Removes the file of the last segment that was let go, if a crash left it: by the length and
/// checksum that were kept. The caller holds the directory or has just started.
pub(super) fn finish(
    disk: &dyn Disk,
    catalog: &Catalog,
    pruned: &Pruned,
) -> Result<(), ProcessError> {
    for path in files(catalog, &SegmentId::Ours(pruned.number)) {
        let read = |source| ProcessError::io("read", path)(source);
        let file = match disk.open_read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            file => file.map_err(read)?,
        };
        let size = file.size().map_err(read)?;
        if size == pruned.file_bytes
            && lines::checksum(&*file, size).map_err(read)? == pruned.file_checksum
        {
            remove(disk, path)?;
        }
    }
    Ok(())
}

/// [`finish`] at a start, unless somebody verifies: then the file waits for the next time.
pub(super) fn finish_at_start(
    disk: &dyn Disk,
    data_dir: &Path,
    pruned: &Pruned,
) -> Result<(), ProcessError> {
    if pruned.number == 0 {
        return Ok(());
    }
    if let Some(_held) = DirHold::alone(data_dir).map_err(ProcessError::io("hold", data_dir))? {
        let catalog = Catalog::scan(disk, data_dir).map_err(ProcessError::io("list", data_dir))?;
        finish(disk, &catalog, pruned)?;
    }
    Ok(())
}

/// Why a file of a number that was let go is not applied.
pub(super) fn was_let_go(path: &Path, pruned: u64) -> String {
    format!(
        "{}: retention has let go everything up to segment {pruned}, so this file is not applied. Move it away; if its events are to count (again), give it a name such as events_again.jsonl",
        path.display()
    )
}
