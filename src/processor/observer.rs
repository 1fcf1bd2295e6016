//! The ledger of a server that does not apply itself (`--no-process`): read only.
//!
//! Another process applies now and then. Each round, the rows say what is settled and the files
//! how many lines there are; a sealed file's lines are counted once. The archive, in which nothing
//! waits but where the database was replaced by an older one, is listed when that is so and once in
//! a while; the rows of fully applied segments are not read.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::worker::topic;
use super::{ProcessConfig, accounting, in_words};
use crate::aggregate::lines;
use crate::data_dir::disk::Disk;
use crate::data_dir::segment::Numbers;
use crate::data_dir::segment::{Position, SegmentId};
use crate::data_dir::{Catalog, Claims};
use crate::health::Health;
use crate::journal::{Journal, Tail};
use crate::progress::{Lost, Progress, Settled};
use crate::store::{Readers, SegmentRow, SegmentState, StoreError};

const DATABASE: &str = "database";
/// The longest time between two rounds.
const EVERY_MAX: Duration = Duration::from_mins(1);
/// How often the archive is listed at least; but listing takes no more than one part in so many of the
/// time.
const LIST_ARCHIVE_EVERY: Duration = Duration::from_mins(1);
const LISTING: u32 = 50;

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
                for (topic, words) in &failed {
                    health.set(topic, words);
                }
                unreadable = failed.into_keys().collect();
            }
            Err(error) => health.set(DATABASE, in_words(&error)),
        }
        progress.wait_until(began + config.flush_every.min(EVERY_MAX));
    }
    progress.finish();
}

/// What a round saw besides what it published.
struct Observed {
    /// Lines without a fate, or fates without a line.
    unaccounted: i64,
    /// Files that cannot be read, and why, by their topic in readiness.
    failed: BTreeMap<String, String>,
}

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
enum ObserveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot count the lines that wait in {}", .0.display())]
    Io(std::path::PathBuf, #[source] io::Error),
}

/// Publishes what there is; the topics of files that could not be read, and why.
fn round(
    config: &ProcessConfig,
    journal: &Journal,
    readers: &Readers,
    progress: &Progress,
    lines: &mut Lines,
) -> Result<Observed, ObserveError> {
    let io = |error| ObserveError::Io(config.data_dir.clone(), error);
    let tail = journal.tail();
    let (mut ledger, applied, rows) = readers.snapshot()?;
    let mut listing = lines.list(config, &applied.native).map_err(io)?;
    let row = |id: &SegmentId| rows.iter().find(|row| row.id == *id);
    let mut pending = 0;
    // Fates of more lines than a file has.
    let mut unaccounted = 0;
    let mut frontier = None;
    let mut failed = BTreeMap::new();
    for (id, found) in &listing.catalog.sealed {
        let untrusted = row(id).is_some_and(|row| row.state == SegmentState::Untrusted);
        if untrusted || applied.contains(id) {
            continue;
        }
        if let Some(found) = Claims::of(found, row(id).map(|row| row.tag)).usable {
            let settled = row(id).map_or(0, |row| row.counts.lines);
            match lines.of_sealed(id, &found.path) {
                Ok(Some(counted)) => {
                    pending += counted.saturating_sub(settled);
                    unaccounted -= settled.saturating_sub(counted).cast_signed();
                }
                Ok(None) => {}
                // Named, and the others go on.
                Err(error) => {
                    let error = ObserveError::Io(found.path.clone(), error);
                    failed.insert(topic(id), in_words(&error));
                }
            }
            frontier = frontier.or(id.number());
        }
    }
    listing.applied = applied.native;
    lines.forget_applied(&listing);
    lines.listing = Some(listing);
    // What was sealed and applied since the look at the tail has more lines than that.
    let settled = row(&SegmentId::Ours(tail.number))
        .filter(|row| row.state == SegmentState::Active)
        .map_or(0, |row| row.counts.lines);
    let counted = lines.of_active(&tail).map_err(io)?;
    pending += counted.saturating_sub(settled);
    unaccounted -= settled.saturating_sub(counted).cast_signed();
    ledger.unaccounted = unaccounted;
    let number = frontier.unwrap_or(tail.number);
    let offset = row(&SegmentId::Ours(number)).map_or(0, |row| row.applied_bytes);
    let lost: Vec<Lost> = rows.iter().filter_map(lost).collect();
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
        &lost,
        settled,
    );
    Ok(Observed {
        unaccounted,
        failed,
    })
}

fn lost(row: &SegmentRow) -> Option<Lost> {
    let number = row.id.number()?;
    matches!(row.state, SegmentState::Untrusted | SegmentState::Lost).then_some(Lost {
        number,
        applied_bytes: row.applied_bytes,
    })
}

/// The files, as last listed.
struct Listing {
    catalog: Catalog,
    /// The segments that were fully applied then.
    applied: Numbers,
    /// When the archive is listed again, whatever the database says.
    due: Instant,
}

/// Lines of files, counted once.
struct Lines {
    disk: Arc<dyn Disk>,
    /// `None` before the first round, and after one that failed.
    listing: Option<Listing>,
    /// (size, lines) of sealed files.
    sealed: HashMap<SegmentId, (u64, u64)>,
    /// (number, counted up to, lines) of the active segment.
    active: (u64, u64, u64),
    /// Lines that were settled at the first look.
    settled_before: Option<u64>,
}

impl Lines {
    /// Lists the directory; the archive only where it is due, or where segments are no longer applied
    /// that were: then the database was replaced, and what waits may lie in the archive.
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
        let pause = LIST_ARCHIVE_EVERY.max(began.elapsed() * LISTING);
        Ok(Listing {
            catalog,
            applied: applied.clone(),
            due: Instant::now() + pause,
        })
    }

    /// Forgets the counts of files that are gone or need none.
    fn forget_applied(&mut self, listing: &Listing) {
        self.sealed.retain(|id, _| {
            let is_applied = id.number().is_some_and(|id| listing.applied.contains(id));
            !is_applied && listing.catalog.sealed.contains_key(id)
        });
    }

    /// `None` if the file is gone.
    fn of_sealed(&mut self, id: &SegmentId, path: &std::path::Path) -> io::Result<Option<u64>> {
        let file = match self.disk.open_read(path) {
            // Archived since the listing: the next round sees it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let size = file.size()?;
        match self.sealed.get(id) {
            Some(&(of, lines)) if of == size => Ok(Some(lines)),
            _ => {
                let lines = lines::count(&*file, 0, size)?;
                self.sealed.insert(id.clone(), (size, lines));
                Ok(Some(lines))
            }
        }
    }

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
