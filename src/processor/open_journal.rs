//! Opens the journal with the rows that the database has of its segments, and seals the active segment.
//!
//! `journal` does not know `store`; this module passes the numbers and checksums from one to the other. If the
//! database cannot be read, the journal is opened without it, so that ingestion never depends on it.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;

use crate::data_dir::Directory;
use crate::data_dir::disk::Disk;
use crate::data_dir::segment::ACTIVE_FILE;
use crate::health::Health;
use crate::journal::{Committer, Journal, JournalConfig, KnownSegment, KnownSegments, Recovery};
use crate::store::{self, Database, SegmentState};

/// Seals the active segment; the caller holds `serve.lock`.
pub fn seal(dir: &Path, database: &Database, disk: &Arc<dyn Disk>) -> anyhow::Result<()> {
    let health = Arc::new(Health::default());
    let (journal, committer) =
        open_journal(dir, database, disk, JournalConfig::default(), &health)?;
    let (sender, sealed) = crossbeam_channel::bounded(1);
    journal.rotate(Box::new(move |result| {
        let _received = sender.send(result.map(|_| ()));
    }));
    let sealed = sealed.recv();
    committer.stop();
    // An unsealed segment is not applied, so this must not be ignored.
    sealed
        .context("the committer thread ended")?
        .with_context(|| format!("cannot seal {}", dir.join(ACTIVE_FILE).display()))
}

/// Recovers the directory and opens the journal; the caller holds `serve.lock`.
pub fn open_journal(
    dir: &Path,
    database: &Database,
    disk: &Arc<dyn Disk>,
    config: JournalConfig,
    health: &Arc<Health>,
) -> anyhow::Result<(Journal, Committer)> {
    let known = known(dir, database, &**disk);
    let (journal, committer, recovery) =
        Journal::open(Arc::clone(disk), dir, config, &known, Arc::clone(health))?;
    report(&recovery);
    Ok((journal, committer))
}

/// The native segments in the database; none if it cannot be read or belongs to another data directory.
fn known(dir: &Path, database: &Database, disk: &dyn Disk) -> KnownSegments {
    let read = || -> anyhow::Result<KnownSegments> {
        let belongs_to = database.directory()?;
        let named = Directory::read(disk, dir).ok().flatten();
        if let (Some(found), Some(named)) = (belongs_to, &named)
            && found != named.id
        {
            anyhow::bail!(
                "it belongs to the data directory {found}, not to {}",
                named.id
            );
        }
        // Of fully applied segments only the numbers are read: there may be very many.
        let numbers = crate::journal::active_numbers(disk, dir);
        let found = database.read_for_recovery(named.map(|named| named.id), &numbers)?;
        let known = |row: store::SegmentRow| {
            Some(KnownSegment {
                number: row.id.number()?,
                tag: row.tag,
                applied_bytes: row.applied_bytes,
                checksum: Some(row.checksum),
                sealed: row.state != SegmentState::Active,
            })
        };
        Ok(KnownSegments {
            directory: belongs_to,
            segments: found.rows.into_iter().filter_map(known).collect(),
            applied: found.applied,
            pruned: found.pruned.number,
        })
    };
    read().unwrap_or_else(|error| {
        tracing::warn!("cannot read the segments from {database}, continuing without: {error:#}");
        KnownSegments::default()
    })
}

/// Logs what recovery found.
fn report(recovery: &Recovery) {
    if let Some((bytes, path)) = &recovery.torn {
        tracing::warn!(
            "{bytes} bytes of a torn write, which was not acknowledged, were moved to {}",
            path.display()
        );
    }
    if let Some(number) = recovery.missing {
        tracing::error!(
            "segment {number} is missing: events.jsonl was removed or empty; see quarantine/"
        );
    }
    if let Some(contradiction) = &recovery.contradiction {
        tracing::error!("{contradiction}");
    }
    if let Some((number, bytes)) = recovery.early_copy {
        tracing::warn!(
            "events.jsonl is a copy of segment {number} from before it was sealed; its {bytes} bytes are applied. If the data directory was copied while a server ran, nothing is missing that was acknowledged before. Otherwise the end of the segment is missing: put its sealed file back and restart"
        );
    }
    if let Some(path) = &recovery.imported {
        tracing::warn!(
            "events.jsonl was written by another program; it is imported as {}",
            path.display()
        );
    }
    if let Some(number) = recovery.corrupt {
        tracing::error!(
            "segment {number} is shorter than its applied prefix; it is marked as corrupt"
        );
    }
}
