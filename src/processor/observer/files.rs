//! What `process-observe` remembers of the files between rounds, so that it reads each sealed file once.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crc32fast::Hasher;

use crate::aggregate::lines;
use crate::data_dir::disk::{Disk, Identity};
use crate::data_dir::segment::{Numbers, SegmentId};
use crate::data_dir::{Catalog, Found};
use crate::journal::Tail;
use crate::processor::ProcessorConfig;
use crate::store::SegmentRow;
use crate::verify::contents::{compare_claims, describe_rivals};
use crate::verify::seal;

/// Least time between two listings of the archive.
const ARCHIVE_INTERVAL_MIN: Duration = Duration::from_secs(10);
/// The pause after a listing of the archive is at least this many times its duration.
const ARCHIVE_PAUSE_FACTOR: u32 = 50;

/// The last listing of the files.
pub(super) struct Listing {
    pub(super) catalog: Catalog,
    /// The segments that were fully applied at that time.
    pub(super) applied: Numbers,
    /// When the archive is listed again in any case.
    due: Instant,
}

/// What is remembered of the files between rounds.
pub(super) struct KnownFiles {
    pub(super) disk: Arc<dyn Disk>,
    /// `None` before the first round, and after one that failed.
    pub(super) listing: Option<Listing>,
    /// Sealed files that were read and are not applied.
    sealed: HashMap<SegmentId, Sealed>,
    /// (number, counted up to, lines) of the active segment.
    active: (u64, u64, u64),
    /// KnownFiles that were settled in the first round.
    pub(super) settled_before: Option<u64>,
    /// Segments with several files: these files, and how they contradict each other; `None` if they are
    /// copies.
    contradictions: HashMap<SegmentId, (Vec<FileState>, Option<String>)>,
}

/// Path, identity and size of a file. It is read again when one of them has changed.
type FileState = (PathBuf, Option<Identity>, u64);

/// The result of reading a sealed file.
#[derive(Clone)]
pub(super) struct Sealed {
    size: u64,
    pub(super) lines: u64,
    /// When it was first read.
    pub(super) found_at: Instant,
    /// How it differs from the seal in its name.
    pub(super) broken: Option<String>,
}

impl KnownFiles {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            listing: None,
            sealed: HashMap::new(),
            active: (0, 0, 0),
            settled_before: None,
            contradictions: HashMap::new(),
        }
    }

    /// Lists the directory. The archive is listed only if that is due, or if segments that were applied are
    /// no longer: then the database was replaced, and files in the archive may be pending.
    pub(super) fn list(
        &mut self,
        config: &ProcessorConfig,
        applied: &Numbers,
    ) -> io::Result<Listing> {
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
    pub(super) fn forget_applied(&mut self, listing: &Listing) {
        self.sealed.retain(|id, _| {
            let is_applied = id.number().is_some_and(|id| listing.applied.contains(id));
            !is_applied && listing.catalog.sealed.contains_key(id)
        });
    }

    /// Reads a sealed file, unless its size is that of the last time; `None` if it no longer exists.
    pub(super) fn of_sealed(&mut self, id: &SegmentId, path: &Path) -> io::Result<Option<Sealed>> {
        let file = match self.disk.open_read(path) {
            // Archived since the listing; the next round finds it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let size = file.size()?;
        let known = self.sealed.get(id);
        if let Some(sealed) = known.filter(|sealed| sealed.size == size) {
            return Ok(Some(sealed.clone()));
        }
        // The lines are counted and the checksum is computed in one pass.
        let mut read = Hasher::new();
        let sealed = Sealed {
            size,
            lines: lines::count_and(&*file, 0, size, |block| read.update(block))?,
            found_at: known.map_or_else(Instant::now, |sealed| sealed.found_at),
            broken: seal::contradiction(&*file, path, &read)?,
        };
        self.sealed.insert(id.clone(), sealed.clone());
        Ok(Some(sealed))
    }

    /// Describes how the files of one segment contradict each other or the applied prefix; `None` if they
    /// are copies.
    pub(super) fn contradiction(
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
    pub(super) fn of_active(&mut self, tail: &Tail) -> io::Result<u64> {
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
