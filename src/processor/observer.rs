//! The ledger of a server that does not apply itself (`--no-process`): read only.
//!
//! Another process applies now and then. Each round, the rows say what is settled and the files
//! how many lines there are; a sealed file is read once, its lines are counted and it is compared
//! with what its name says of it. Files that contradict each other are named in readiness. The
//! archive, in which nothing waits but where the database was replaced by an older one, is listed
//! when that is so and once in a while; the rows of fully applied segments are not read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crc32fast::Hasher;

use super::worker::{MISSING, missing_in_words, topic};
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
use crate::verify::contents::{describe_rivals, settle, stand_for};
use crate::verify::seal;

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
                for (topic, words) in &failed {
                    health.set(topic, words);
                }
                unreadable = failed.into_keys().collect();
            }
            Err(error) => health.set(DATABASE, describe(&error)),
        }
        progress.wait_until(began + config.flush_interval.min(EVERY_MAX));
    }
    progress.finish();
}

/// What a round saw besides what it published.
struct Observed {
    /// Lines without a fate, or fates without a line.
    unaccounted: i64,
    /// Files that cannot be read, are missing or contradict each other, by their topic in readiness.
    failed: BTreeMap<String, String>,
}

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
enum ObserveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot count the lines that wait in {}", .0.display())]
    Io(PathBuf, #[source] io::Error),
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
    let (mut ledger, applied, rows, pruned) = readers.snapshot()?;
    let mut listing = lines.list(config, &applied.native).map_err(io)?;
    let row = |id: &SegmentId| rows.iter().find(|row| row.id == *id);
    let mut pending = 0;
    // Fates of more lines than a file has.
    let mut unaccounted = 0;
    let mut frontier = None;
    let mut failed = BTreeMap::new();
    for (id, found) in &listing.catalog.sealed {
        let corrupt = row(id).is_some_and(|row| row.state == SegmentState::Corrupt);
        let is_applied = applied.contains(id);
        let known_row = if is_applied {
            // In the listing by name are the few that more than one file bears.
            readers.segment(id)?
        } else {
            row(id).cloned()
        };
        if known_row.is_none() && id.number().is_some_and(|number| number <= pruned.number) {
            continue; // Never applied again.
        }
        let claims = Claims::of(found, known_row.as_ref().map(|row| row.tag));
        if (!claims.rivals.is_empty() || !claims.copies.is_empty())
            && let Some(words) = lines.contradiction(id, found, known_row.as_ref())
        {
            failed.insert(topic(id), words);
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
                // Named, and the others go on.
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
    if let Some(words) = missing_in_words(&missing, config) {
        failed.insert(MISSING.to_owned(), words);
    }
    listing.applied = applied.native;
    lines.forget_applied(&listing);
    lines.listing = Some(listing);
    // What was sealed and applied since the look at the tail has more lines than that.
    let settled = row(&SegmentId::Native(tail.number))
        .filter(|row| row.state == SegmentState::Active)
        .map_or(0, |row| row.counts.lines);
    let counted = lines.of_active(&tail).map_err(io)?;
    pending += counted.saturating_sub(settled);
    unaccounted -= settled.saturating_sub(counted).cast_signed();
    ledger.unaccounted = unaccounted;
    let number = frontier.unwrap_or(tail.number);
    let offset = row(&SegmentId::Native(number)).map_or(0, |row| row.applied_bytes);
    let lost: Vec<DeadSegment> = rows.iter().filter_map(lost).collect();
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

/// Numbers below the active one that have neither a file, nor a fully applied row, and were not
/// pruned.
fn missing(
    disk: &dyn Disk,
    catalog: &Catalog,
    applied: &Numbers,
    rows: &[SegmentRow],
    tail: &Tail,
    pruned: u64,
) -> BTreeSet<u64> {
    let mut there = applied.clone();
    for (id, found) in &catalog.sealed {
        let row = rows.iter().find(|row| row.id == *id);
        if let Some(number) = id.number()
            && !there.contains(number)
            && stand_for(disk, found, row)
        {
            there.insert(number);
        }
    }
    gaps(pruned + 1, tail.number, there.ranges())
        .take(MISSING_MAX)
        .collect()
}

fn lost(row: &SegmentRow) -> Option<DeadSegment> {
    let number = row.id.number()?;
    matches!(row.state, SegmentState::Corrupt | SegmentState::Missing).then_some(DeadSegment {
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
    sealed: HashMap<SegmentId, Sealed>,
    /// (number, counted up to, lines) of the active segment.
    active: (u64, u64, u64),
    /// Lines that were settled at the first look.
    settled_before: Option<u64>,
    /// Why files of one number contradict each other, if they do, and which files these are.
    contradictions: HashMap<SegmentId, (Vec<Look>, Option<String>)>,
}

/// A file as it was seen: read again once it is another, or has another size.
type Look = (PathBuf, Option<Identity>, u64);

/// A sealed file as it was when it was last read.
#[derive(Clone)]
struct Sealed {
    size: u64,
    lines: u64,
    /// Why it is not what was sealed, or not the segment that its name says.
    broken: Option<String>,
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
    fn of_sealed(&mut self, id: &SegmentId, path: &Path) -> io::Result<Option<Sealed>> {
        let file = match self.disk.open_read(path) {
            // Archived since the listing: the next round sees it.
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

    /// Why the files that bear one number contradict each other, or what was applied.
    fn contradiction(
        &mut self,
        id: &SegmentId,
        found: &[Found],
        row: Option<&SegmentRow>,
    ) -> Option<String> {
        let look = |found: &Found| {
            let path = &found.path;
            let identity = self.disk.identity(path).ok().flatten();
            (path.clone(), identity, self.disk.size_at(path).unwrap_or(0))
        };
        let looks: Vec<Look> = found.iter().map(look).collect();
        if let Some((before, words)) = self.contradictions.get(id)
            && *before == looks
        {
            return words.clone();
        }
        let claims = settle(&*self.disk, found, row);
        let words = (!claims.rivals.is_empty())
            .then(|| describe_rivals(&*self.disk, id, &claims.rivals, row));
        self.contradictions
            .insert(id.clone(), (looks, words.clone()));
        words
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
