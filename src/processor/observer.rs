//! The status of a server that does not apply (`--no-process`). Read-only.
//!
//! Another process applies events at its own times. In each round, the thread `process-observe` reads the
//! rows of the segments and counts the lines in the files, and publishes the applied position and the
//! ledger. A sealed file is read once: its lines are counted and it is compared with the seal in its name.
//! Readiness reports files that cannot be read, are missing or contradict each other.
//!
//! The rows of fully applied segments are not read. The archive has pending segments only after the database
//! was replaced by an older one, so it is listed when segments are no longer applied, and otherwise once a
//! minute at most.
//!
//! If a round fails, readiness reports the error under the topic `database`, and the next round starts from
//! a new listing.

mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::files::KnownFiles;
use super::worker::{MISSING, describe_missing, topic};
use super::{ProcessorConfig, accounting, describe};
use crate::data_dir::disk::Disk;
use crate::data_dir::numbers::{MISSING_MAX, gaps};
use crate::data_dir::segment::{Position, SegmentId};
use crate::data_dir::{self, Catalog, Claims, Found};
use crate::health::Health;
use crate::journal::{Journal, Tail};
use crate::progress::{DeadSegment, Progress, Settled};
use crate::store::{
    AppliedSegments, Ledger, Overall, Readers, SegmentRow, SegmentState, StoreError,
};
use crate::verify::contents::accounts_for;

const DATABASE: &str = "database";
/// How often a round is repeated because a segment was sealed meanwhile.
const TRIES_MAX: u32 = 5;
/// The longest time between two rounds.
const EVERY_MAX: Duration = Duration::from_mins(1);

/// The body of the thread: runs until the progress is stopped.
pub(super) fn run(
    config: &ProcessorConfig,
    disk: Arc<dyn Disk>,
    journal: &Journal,
    readers: &Readers,
    progress: &Progress,
    health: &Health,
) {
    let mut files = KnownFiles::new(disk);
    let mut unreadable: Vec<String> = Vec::new();
    while !progress.is_stopping() {
        let began = Instant::now();
        let mut outcome = Ok(None);
        for _ in 0..TRIES_MAX {
            outcome = round(config, journal, readers, progress, &mut files);
            if !matches!(outcome, Ok(None)) {
                break;
            }
        }
        match outcome {
            Ok(None) => {} // Segments are sealed faster than they are listed. The next round tries again.
            Ok(Some(Observed {
                unaccounted,
                failed,
            })) => {
                health.clear(DATABASE);
                accounting::report(health, unaccounted);
                for topic in unreadable
                    .iter()
                    .filter(|topic| !failed.contains_key(*topic))
                {
                    health.clear(topic);
                }
                for (topic, reason) in &failed {
                    health.set(topic, reason);
                }
                unreadable = failed.into_keys().collect();
            }
            Err(error) => health.set(DATABASE, describe(&error)),
        }
        progress.wait_until(began + config.flush_interval.min(EVERY_MAX));
    }
    progress.finish();
}

/// What a round found besides the published status.
struct Observed {
    /// See [`accounting::report`].
    unaccounted: i64,
    /// Problems with files, by their topic in readiness.
    failed: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
enum ObserveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot count the pending lines in {}", .0.display())]
    Io(PathBuf, #[source] io::Error),
}

/// Publishes the present state. A problem with one file does not fail the round. `None` if the active segment
/// was sealed meanwhile: its lines would be counted both in the tail and in the listed file.
fn round(
    config: &ProcessorConfig,
    journal: &Journal,
    readers: &Readers,
    progress: &Progress,
    files: &mut KnownFiles,
) -> Result<Option<Observed>, ObserveError> {
    let io = |error| ObserveError::Io(config.data_dir.clone(), error);
    let tail = journal.tail();
    let found = readers.status()?;
    let (applied, rows, pruned) = (found.applied, found.unfinished, found.pruned);
    let mut listing = files.list(config, &applied.native).map_err(io)?;
    let mut round = Round {
        readers,
        tail: &tail,
        applied: &applied,
        rows: &rows,
        pruned: pruned.number,
        pending: 0,
        unaccounted: 0,
        frontier: None,
        found_since: None,
        failed: BTreeMap::new(),
    };
    for (id, found) in &listing.catalog.sealed {
        round.sealed(files, id, found)?;
    }
    let missing = round.missing(&*files.disk, &listing.catalog);
    if let Some(reason) = describe_missing(&missing, config) {
        round.failed.insert(MISSING.to_owned(), reason);
    }
    round.active(files).map_err(io)?;
    if journal.tail().number != tail.number {
        return Ok(None);
    }
    let observed = round.publish(progress, (found.ledger, found.overall), files);
    listing.applied = applied.native;
    files.forget_applied(&listing);
    files.listing = Some(listing);
    Ok(Some(observed))
}

/// What one round has read, and what it has found so far.
struct Round<'r> {
    readers: &'r Readers,
    tail: &'r Tail,
    applied: &'r AppliedSegments,
    /// The rows of segments that are not fully applied.
    rows: &'r [SegmentRow],
    /// Segments up to this number were pruned.
    pruned: u64,
    /// Lines that are not applied yet.
    pending: u64,
    /// Negative: lines that are settled beyond those in their file.
    unaccounted: i64,
    /// The first native segment that is not fully applied.
    frontier: Option<u64>,
    /// When the first imported file with pending lines was found.
    found_since: Option<Instant>,
    /// Problems with files, by their topic in readiness.
    failed: BTreeMap<String, String>,
}

impl Round<'_> {
    fn row(&self, id: &SegmentId) -> Option<&SegmentRow> {
        self.rows.iter().find(|row| row.id == *id)
    }

    /// Counts the lines of a sealed segment, which has these files.
    fn sealed(
        &mut self,
        files: &mut KnownFiles,
        id: &SegmentId,
        found: &[Found],
    ) -> Result<(), StoreError> {
        let is_applied = self.applied.contains(id);
        let row = if is_applied {
            // The listing has an applied segment only if it has several files, which is rare.
            self.readers.segment(id)?
        } else {
            self.row(id).cloned()
        };
        if row.is_none() && id.number().is_some_and(|number| number <= self.pruned) {
            return Ok(()); // Never applied again.
        }
        let claims = Claims::of(found, row.as_ref().map(|row| row.tag));
        if (!claims.rivals.is_empty() || !claims.copies.is_empty())
            && let Some(reason) = files.contradiction(id, found, row.as_ref())
        {
            self.failed.insert(topic(id), reason);
            return Ok(());
        }
        let Some(file) = claims.usable else {
            return Ok(());
        };
        if id.number() == Some(self.tail.number) && file.tag != Some(self.tail.tag) {
            let reason = data_dir::describe_rivals(id, &[file]);
            self.failed.insert(topic(id), reason);
            return Ok(());
        }
        let is_corrupt = |row: &SegmentRow| row.state == SegmentState::Corrupt;
        if !is_applied && !row.as_ref().is_some_and(is_corrupt) {
            let settled = row.map_or(0, |row| row.counts.lines);
            self.unapplied(files, file, settled);
            self.frontier = self.frontier.or(id.number());
        }
        Ok(())
    }

    /// Counts the lines of a file that is not fully applied, of which `settled` are settled.
    fn unapplied(&mut self, files: &mut KnownFiles, file: &Found, settled: u64) {
        let id = &file.id;
        match files.of_sealed(id, &file.path) {
            Ok(Some(sealed)) => {
                if let Some(broken) = sealed.broken {
                    let reason = format!("segment {id}: {broken}");
                    self.failed.insert(topic(id), reason);
                }
                if id.number().is_none() && sealed.lines > settled {
                    let since = self.found_since.get_or_insert(sealed.found_at);
                    *since = sealed.found_at.min(*since);
                }
                self.add(sealed.lines, settled);
            }
            Ok(None) => {}
            // Reported; the other files are still counted.
            Err(error) => {
                let error = ObserveError::Io(file.path.clone(), error);
                self.failed.insert(topic(id), describe(&error));
            }
        }
    }

    /// Counts the lines of the active segment.
    fn active(&mut self, files: &mut KnownFiles) -> io::Result<()> {
        // Only if it is still active: if it was sealed since the tail was read, its row has more lines.
        let settled = self
            .row(&SegmentId::Native(self.tail.number))
            .filter(|row| row.state == SegmentState::Active)
            .map_or(0, |row| row.counts.lines);
        let lines = files.of_active(self.tail)?;
        self.add(lines, settled);
        Ok(())
    }

    /// Adds a file with `lines` lines, of which `settled` are settled.
    fn add(&mut self, lines: u64, settled: u64) {
        self.pending += lines.saturating_sub(settled);
        self.unaccounted -= settled.saturating_sub(lines).cast_signed();
    }

    /// Numbers below the active one that have no file and no fully applied row, and were not pruned; at
    /// most [`MISSING_MAX`].
    fn missing(&self, disk: &dyn Disk, catalog: &Catalog) -> BTreeSet<u64> {
        let mut present = self.applied.native.clone();
        for (id, found) in &catalog.sealed {
            if let Some(number) = id.number()
                && !present.contains(number)
                && accounts_for(disk, found, self.row(id))
            {
                present.insert(number);
            }
        }
        gaps(self.pruned + 1, self.tail.number, present.ranges())
            .take(MISSING_MAX)
            .collect()
    }

    /// Publishes the applied position, the dead segments and the ledger.
    fn publish(
        self,
        progress: &Progress,
        (mut ledger, overall): (Ledger, Overall),
        files: &mut KnownFiles,
    ) -> Observed {
        ledger.unaccounted = self.unaccounted;
        let segment = self.frontier.unwrap_or(self.tail.number);
        let row = self.row(&SegmentId::Native(segment));
        let offset = row.map_or(0, |row| row.applied_bytes);
        let dead: Vec<DeadSegment> = self.rows.iter().filter_map(dead_segment).collect();
        let lines = (ledger.settled() + self.pending).saturating_add_signed(self.unaccounted);
        let settled_before = &mut files.settled_before;
        let settled = Settled {
            ledger,
            overall,
            lines,
            tail_lines: self.tail.lines,
            settled_before: *settled_before.get_or_insert(ledger.settled()),
            found_since: self.found_since,
        };
        progress.publish(Position { segment, offset }, &dead, settled);
        Observed {
            unaccounted: self.unaccounted,
            failed: self.failed,
        }
    }
}

fn dead_segment(row: &SegmentRow) -> Option<DeadSegment> {
    let number = row.id.number()?;
    matches!(row.state, SegmentState::Corrupt | SegmentState::Missing).then_some(DeadSegment {
        number,
        applied_bytes: row.applied_bytes,
    })
}
