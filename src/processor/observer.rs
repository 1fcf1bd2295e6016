//! The ledger of a server that does not apply itself (`--no-process`): read only.
//!
//! Another process applies now and then. Each round, the rows say what is settled and the files
//! how many lines there are; a sealed file's lines are counted once.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::worker::topic;
use super::{ProcessConfig, accounting, in_words};
use crate::aggregate::lines;
use crate::data_dir::disk::Disk;
use crate::data_dir::segment::{Position, SegmentId};
use crate::data_dir::{Catalog, Claims};
use crate::health::Health;
use crate::journal::{Journal, Tail};
use crate::progress::{Lost, Progress, Settled};
use crate::store::{Readers, SegmentRow, SegmentState, StoreError};

const DATABASE: &str = "database";
/// The longest time between two rounds.
const EVERY_MAX: Duration = Duration::from_mins(1);

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
    let (mut ledger, whole, rows) = readers.snapshot()?;
    let catalog =
        Catalog::scan(&*lines.disk, &config.data_dir, config.directory_tag()).map_err(io)?;
    let row = |id: &SegmentId| rows.iter().find(|row| row.id == *id);
    let mut pending = 0;
    // Fates of more lines than a file has.
    let mut unaccounted = 0;
    let mut frontier = None;
    let mut failed = BTreeMap::new();
    for (id, found) in &catalog.sealed {
        let untrusted = row(id).is_some_and(|row| row.state == SegmentState::Untrusted);
        let known = whole.get(id).copied().or(row(id).map(|row| row.tag));
        let usable = Claims::of(found, known).usable;
        if let Some(found) = usable.filter(|_| !whole.contains_key(id) && !untrusted) {
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

/// Lines of files, counted once.
struct Lines {
    disk: Arc<dyn Disk>,
    /// (size, lines) of sealed files.
    sealed: HashMap<SegmentId, (u64, u64)>,
    /// (number, counted up to, lines) of the active segment.
    active: (u64, u64, u64),
    /// Lines that were settled at the first look.
    settled_before: Option<u64>,
}

impl Lines {
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
