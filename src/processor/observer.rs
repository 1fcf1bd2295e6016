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

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crc32fast::Hasher;

use super::worker::{MISSING, describe_missing, topic};
use super::{ProcessConfig, accounting, describe};
use crate::aggregate::lines;
use crate::data_dir::disk::{Disk, Identity};
use crate::data_dir::numbers::{MISSING_MAX, gaps};
use crate::data_dir::segment::{Numbers, Position, SegmentId};
use crate::data_dir::{self, Catalog, Claims, Found};
use crate::health::Health;
use crate::journal::{Journal, Tail};
use crate::progress::{DeadSegment, Progress, Settled};
use crate::store::{Readers, SegmentRow, SegmentState, StoreError};
use crate::verify::contents::{accounts_for, compare_claims, describe_rivals};
use crate::verify::seal;

const DATABASE: &str = "database";
/// The longest time between two rounds.
const EVERY_MAX: Duration = Duration::from_mins(1);
/// Least time between two listings of the archive.
const ARCHIVE_INTERVAL_MIN: Duration = Duration::from_mins(1);
/// The pause after a listing of the archive is at least this many times its duration.
const ARCHIVE_PAUSE_FACTOR: u32 = 50;

/// The body of the thread: runs until the progress is stopped.
pub(super) fn run(
    config: &ProcessConfig,
    disk: Arc<dyn Disk>,
    journal: &Journal,
    readers: &Readers,
    progress: &Progress,
    health: &Health,
) {
    let mut lines = Lines {
        disk,
        listing: None,
        sealed: HashMap::new(),
        active: (0, 0, 0),
        contradictions: HashMap::new(),
        settled_before: None,
    };
    let mut unreadable: Vec<String> = Vec::new();
    while !progress.is_stopping() {
        let began = Instant::now();
        match round(config, journal, readers, progress, &mut lines) {
            Ok(Observed {
                unaccounted,
                failed,
            }) => {
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

/// A round failed.
#[derive(Debug, thiserror::Error)]
enum ObserveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot count the pending lines in {}", .0.display())]
    Io(PathBuf, #[source] io::Error),
}

/// Publishes the present state. A problem with one file does not fail the round.
fn round(
    config: &ProcessConfig,
    journal: &Journal,
    readers: &Readers,
    progress: &Progress,
    lines: &mut Lines,
) -> Result<Observed, ObserveError> {
    let io = |error| ObserveError::Io(config.data_dir.clone(), error);
    let tail = journal.tail();
    let (mut ledger, applied, rows, pruned) = readers.snapshot()?;
    let mut listing = lines.list(config, &applied.native).map_err(io)?;
    let row = |id: &SegmentId| rows.iter().find(|row| row.id == *id);
    let mut pending = 0;
    // Negative: lines that are settled beyond those in the file.
    let mut unaccounted = 0;
    let mut frontier = None;
    let mut failed = BTreeMap::new();
    for (id, found) in &listing.catalog.sealed {
        let corrupt = row(id).is_some_and(|row| row.state == SegmentState::Corrupt);
        let is_applied = applied.contains(id);
        let known_row = if is_applied {
            // The listing has an applied segment only if it has several files, which is rare.
            readers.segment(id)?
        } else {
            row(id).cloned()
        };
        if known_row.is_none() && id.number().is_some_and(|number| number <= pruned.number) {
            continue; // Never applied again.
        }
        let claims = Claims::of(found, known_row.as_ref().map(|row| row.tag));
        if (!claims.rivals.is_empty() || !claims.copies.is_empty())
            && let Some(reason) = lines.contradiction(id, found, known_row.as_ref())
        {
            failed.insert(topic(id), reason);
            continue;
        }
        let usable = claims.usable;
        if let Some(found) = usable
            && id.number() == Some(tail.number)
            && found.tag != Some(tail.tag)
        {
            failed.insert(topic(id), data_dir::describe_rivals(id, &[found]));
            continue;
        }
        if let Some(found) = usable.filter(|_| !is_applied && !corrupt) {
            let settled = row(id).map_or(0, |row| row.counts.lines);
            match lines.of_sealed(id, &found.path) {
                Ok(Some(Sealed {
                    lines: counted,
                    broken,
                    ..
                })) => {
                    if let Some(broken) = broken {
                        failed.insert(topic(id), format!("segment {id}: {broken}"));
                    }
                    pending += counted.saturating_sub(settled);
                    unaccounted -= settled.saturating_sub(counted).cast_signed();
                }
                Ok(None) => {}
                // Reported; the other files are still counted.
                Err(error) => {
                    let error = ObserveError::Io(found.path.clone(), error);
                    failed.insert(topic(id), describe(&error));
                }
            }
            frontier = frontier.or(id.number());
        }
    }
    let missing = missing(
        &*lines.disk,
        &listing.catalog,
        &applied.native,
        &rows,
        &tail,
        pruned.number,
    );
    if let Some(reason) = describe_missing(&missing, config) {
        failed.insert(MISSING.to_owned(), reason);
    }
    listing.applied = applied.native;
    lines.forget_applied(&listing);
    lines.listing = Some(listing);
    // Only if it is still active: if it was sealed since the tail was read, its row has more lines.
    let settled = row(&SegmentId::Native(tail.number))
        .filter(|row| row.state == SegmentState::Active)
        .map_or(0, |row| row.counts.lines);
    let counted = lines.of_active(&tail).map_err(io)?;
    pending += counted.saturating_sub(settled);
    unaccounted -= settled.saturating_sub(counted).cast_signed();
    ledger.unaccounted = unaccounted;
    let number = frontier.unwrap_or(tail.number);
    let offset = row(&SegmentId::Native(number)).map_or(0, |row| row.applied_bytes);
    let dead: Vec<DeadSegment> = rows.iter().filter_map(dead_segment).collect();
    let settled = Settled {
        ledger,
        lines: (ledger.settled() + pending).saturating_add_signed(unaccounted),
        tail_lines: tail.lines,
        settled_before: *lines.settled_before.get_or_insert(ledger.settled()),
    };
    progress.publish(
        Position {
            segment: number,
            offset,
        },
        &dead,
        settled,
    );
    Ok(Observed {
        unaccounted,
        failed,
    })
}

/// Numbers below the active one that have no file and no fully applied row, and were not pruned; at most
/// [`MISSING_MAX`].
fn missing(
    disk: &dyn Disk,
    catalog: &Catalog,
    applied: &Numbers,
    rows: &[SegmentRow],
    tail: &Tail,
    pruned: u64,
) -> BTreeSet<u64> {
    let mut present = applied.clone();
    for (id, found) in &catalog.sealed {
        let row = rows.iter().find(|row| row.id == *id);
        if let Some(number) = id.number()
            && !present.contains(number)
            && accounts_for(disk, found, row)
        {
            present.insert(number);
        }
    }
    gaps(pruned + 1, tail.number, present.ranges())
        .take(MISSING_MAX)
        .collect()
}

fn dead_segment(row: &SegmentRow) -> Option<DeadSegment> {
    let number = row.id.number()?;
    matches!(row.state, SegmentState::Corrupt | SegmentState::Missing).then_some(DeadSegment {
        number,
        applied_bytes: row.applied_bytes,
    })
}

/// The last listing of the files.
struct Listing {
    catalog: Catalog,
    /// The segments that were fully applied at that time.
    applied: Numbers,
    /// When the archive is listed again in any case.
    due: Instant,
}

/// What is remembered of the files between rounds.
struct Lines {
    disk: Arc<dyn Disk>,
    /// `None` before the first round, and after one that failed.
    listing: Option<Listing>,
    /// Sealed files that were read and are not applied.
    sealed: HashMap<SegmentId, Sealed>,
    /// (number, counted up to, lines) of the active segment.
    active: (u64, u64, u64),
    /// Lines that were settled in the first round.
    settled_before: Option<u64>,
    /// Segments with several files: these files, and how they contradict each other; `None` if they are
    /// copies.
    contradictions: HashMap<SegmentId, (Vec<FileState>, Option<String>)>,
}

/// Path, identity and size of a file. It is read again when one of them has changed.
type FileState = (PathBuf, Option<Identity>, u64);

/// The result of reading a sealed file.
#[derive(Clone)]
struct Sealed {
    size: u64,
    lines: u64,
    /// How it differs from the seal in its name.
    broken: Option<String>,
}

impl Lines {
    /// Lists the directory. The archive is listed only if that is due, or if segments that were applied are
    /// no longer: then the database was replaced, and files in the archive may be pending.
    fn list(&mut self, config: &ProcessConfig, applied: &Numbers) -> io::Result<Listing> {
        let (disk, data_dir) = (&*self.disk, &config.data_dir);
        let kept = self.listing.take().filter(|listing| {
            listing.due > Instant::now()
                && applied.contains_all(&listing.applied)
                && applied.contains_all(&listing.catalog.archived)
        });
        if let Some(mut listing) = kept {
            listing.catalog.scan_beside_archive_again(disk, data_dir)?;
            return Ok(listing);
        }
        let began = Instant::now();
        let tag = config.directory_tag();
        let catalog = Catalog::scan_unapplied(disk, data_dir, tag, applied)?;
        let pause = ARCHIVE_INTERVAL_MIN.max(began.elapsed() * ARCHIVE_PAUSE_FACTOR);
        Ok(Listing {
            catalog,
            applied: applied.clone(),
            due: Instant::now() + pause,
        })
    }

    /// Drops what is remembered of files that are applied or gone.
    fn forget_applied(&mut self, listing: &Listing) {
        self.sealed.retain(|id, _| {
            let is_applied = id.number().is_some_and(|id| listing.applied.contains(id));
            !is_applied && listing.catalog.sealed.contains_key(id)
        });
    }

    /// Reads a sealed file, unless its size is that of the last time; `None` if it no longer exists.
    fn of_sealed(&mut self, id: &SegmentId, path: &Path) -> io::Result<Option<Sealed>> {
        let file = match self.disk.open_read(path) {
            // Archived since the listing; the next round finds it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let size = file.size()?;
        if let Some(sealed) = self.sealed.get(id).filter(|sealed| sealed.size == size) {
            return Ok(Some(sealed.clone()));
        }
        let sealed = Sealed {
            size,
            lines: lines::count(&*file, 0, size)?,
            broken: seal::contradiction(&*file, path, &Hasher::new())?,
        };
        self.sealed.insert(id.clone(), sealed.clone());
        Ok(Some(sealed))
    }

    /// Describes how the files of one segment contradict each other or the applied prefix; `None` if they
    /// are copies.
    fn contradiction(
        &mut self,
        id: &SegmentId,
        found: &[Found],
        row: Option<&SegmentRow>,
    ) -> Option<String> {
        let state = |found: &Found| {
            let path = &found.path;
            let identity = self.disk.identity(path).ok().flatten();
            (path.clone(), identity, self.disk.size_at(path).unwrap_or(0))
        };
        let states: Vec<FileState> = found.iter().map(state).collect();
        if let Some((before, reason)) = self.contradictions.get(id)
            && *before == states
        {
            return reason.clone();
        }
        let claims = compare_claims(&*self.disk, found, row);
        let reason = (!claims.rivals.is_empty())
            .then(|| describe_rivals(&*self.disk, id, &claims.rivals, row));
        self.contradictions
            .insert(id.clone(), (states, reason.clone()));
        reason
    }

    /// Counts the durable lines of the active segment, reading only those that are new.
    fn of_active(&mut self, tail: &Tail) -> io::Result<u64> {
        let (number, counted, lines) = self.active;
        let (from, lines) = if number == tail.number {
            (counted, lines)
        } else {
            (0, 0)
        };
        let lines = lines + lines::count(&*tail.file, from, tail.durable_end)?;
        self.active = (tail.number, tail.durable_end, lines);
        Ok(lines)
    }
}
