//! What the data directory holds, by name alone: no file is opened.
//!
//! Segments are looked for wherever they lie (the directory itself, `applied/YYYY-MM/`,
//! `quarantine/`), because the place is a convenience for people and decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use crate::fs::Disk;
use crate::segment::SegmentId;

/// Wholly applied segments, by month.
pub const APPLIED_DIR: &str = "applied";
/// Torn tails and notes of what could not be trusted.
pub const QUARANTINE_DIR: &str = "quarantine";

/// Where a file was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the data directory itself: sealed, not yet archived.
    Incoming,
    /// Below `applied/`.
    Applied,
    /// In `quarantine/`: set aside, never applied.
    Quarantine,
}

/// One sealed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is known by.
    pub id: SegmentId,
    /// Where it lies.
    pub place: Place,
    /// The whole path.
    pub path: PathBuf,
}

/// All sealed files by identity (more than one file may claim the same), and the lost numbers.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// In order of [`SegmentId`]: ours by number, then those from elsewhere by name.
    pub sealed: BTreeMap<SegmentId, Vec<Found>>,
    /// Numbers a note in `quarantine/` declares lost.
    pub lost: BTreeSet<u64>,
    /// Every directory that was looked into: these are fsynced before what was seen is believed.
    pub dirs: Vec<PathBuf>,
}

impl Catalog {
    /// Lists the data directory.
    pub fn scan(disk: &dyn Disk, data_dir: &Path) -> io::Result<Self> {
        let mut catalog = Self::default();
        catalog.scan_dir(disk, data_dir, Place::Incoming)?;
        let applied = data_dir.join(APPLIED_DIR);
        for (name, is_dir) in catalog.scan_dir(disk, &applied, Place::Applied)? {
            if is_dir {
                catalog.scan_dir(disk, &applied.join(name), Place::Applied)?;
            }
        }
        for (name, _) in
            catalog.scan_dir(disk, &data_dir.join(QUARANTINE_DIR), Place::Quarantine)?
        {
            catalog.lost.extend(
                name.strip_prefix(LOST_PREFIX)
                    .and_then(|number| number.parse::<u64>().ok()),
            );
        }
        Ok(catalog)
    }

    /// The highest number that any sealed file or note bears; 0 if none does.
    pub fn highest_number(&self) -> u64 {
        let sealed = self.sealed.keys().filter_map(SegmentId::number).max();
        sealed.max(self.lost.last().copied()).unwrap_or(0)
    }

    fn scan_dir(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        place: Place,
    ) -> io::Result<Vec<(String, bool)>> {
        let entries = disk.list(dir)?;
        if disk.identity(dir)?.is_some() {
            self.dirs.push(dir.to_owned());
        }
        for (name, _) in entries.iter().filter(|(_, is_dir)| !is_dir) {
            if let Some(id) = SegmentId::of_file(name) {
                let found = Found {
                    id: id.clone(),
                    place,
                    path: dir.join(name),
                };
                self.sealed.entry(id).or_default().push(found);
            }
        }
        Ok(entries)
    }
}

const LOST_PREFIX: &str = "lost-";

/// The note that declares segment `number` lost.
pub(super) fn lost_note(data_dir: &Path, number: u64) -> PathBuf {
    data_dir
        .join(QUARANTINE_DIR)
        .join(format!("{LOST_PREFIX}{number:06}"))
}
