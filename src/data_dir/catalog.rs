//! What the data directory holds, by name alone: no file is opened.
//!
//! Segments are looked for wherever they lie (the directory itself, `applied/YYYY-MM/`,
//! `quarantine/`), because the place is a convenience for people and decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use std::sync::Arc;

use super::disk::{Disk, DiskFile};
use crate::data_dir::segment::{DirectoryTag, SEGMENT_NUMBER_MAX, SegmentId, Tag};

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
    /// Of a native segment, which of that number it is; `None` for an imported file.
    pub tag: Option<Tag>,
    /// Where it lies.
    pub place: Place,
    /// The whole path.
    pub path: PathBuf,
}

/// An open file of a segment.
#[derive(Clone)]
pub(crate) struct SegmentFile {
    pub(crate) id: SegmentId,
    /// Which native segment of that number; `None` for an imported file.
    pub(crate) tag: Option<Tag>,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
}

impl SegmentFile {
    pub(crate) fn name(&self) -> String {
        self.path.file_name().map_or_else(
            || self.id.to_string(),
            |name| name.to_string_lossy().into_owned(),
        )
    }
}

/// All sealed files by identity (more than one file may claim the same), and the lost numbers.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// In order of [`SegmentId`]: ours by number, then those from elsewhere by name.
    pub sealed: BTreeMap<SegmentId, Vec<Found>>,
    /// Numbers a note in `quarantine/` declares lost.
    pub lost: BTreeSet<u64>,
    /// Which data directory it is: segments of another are imported files here.
    directory: DirectoryTag,
    /// Every directory that was looked into: these are fsynced before what was seen is believed.
    pub dirs: Vec<PathBuf>,
}

/// The files that bear one number or name, told apart by their tags.
#[derive(Debug, Default)]
pub struct Claims<'c> {
    /// The file to read, of those that are the one segment; `None` where none is.
    pub usable: Option<&'c Found>,
    /// Further files of the same tag: copies of it, unless their contents differ.
    pub copies: Vec<&'c Found>,
    /// Files that contradict it: another segment of the same number. Where the database knows none
    /// of them, all of them do.
    pub rivals: Vec<&'c Found>,
}

impl<'c> Claims<'c> {
    /// Of the files found under one identity, outside the quarantine; `known` is the tag that the
    /// database has for it, if it has a row of it.
    pub fn of(found: &'c [Found], known: Option<Option<Tag>>) -> Self {
        let mut files: Vec<&Found> = found
            .iter()
            .filter(|found| found.place != Place::Quarantine)
            .collect();
        files.sort_by_key(|found| found.place);
        let tag = known.or_else(|| {
            let first = files.first()?.tag;
            let same = files.iter().all(|found| found.tag == first);
            same.then_some(first)
        });
        let Some(tag) = tag else {
            return Self {
                rivals: files,
                ..Self::default()
            };
        };
        let (mut copies, rivals): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|found| found.tag == tag);
        let usable = (!copies.is_empty()).then(|| copies.remove(0));
        Self {
            usable,
            copies,
            rivals,
        }
    }
}

/// Why files that claim one number are not applied, and what to do.
pub fn rivals_in_words(id: &SegmentId, rivals: &[&Found]) -> String {
    let paths: Vec<String> = rivals
        .iter()
        .map(|found| found.path.display().to_string())
        .collect();
    format!(
        "segment {id}: more than one segment of that number was found, and {} not applied. They come from two copies of this data directory that both went on. Move what does not belong here to {QUARANTINE_DIR}/; if its events are to count, run `tallyline process FILE` with it",
        match &paths[..] {
            [one] => format!("{one} is"),
            many => format!("{} are", many.join(" and ")),
        }
    )
}

impl Catalog {
    /// Lists the data directory, whose UUID begins with `directory`.
    pub fn scan(disk: &dyn Disk, data_dir: &Path, directory: DirectoryTag) -> io::Result<Self> {
        let mut catalog = Self {
            directory,
            ..Self::default()
        };
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
                    .and_then(|number| number.parse::<u64>().ok())
                    .filter(|number| *number <= SEGMENT_NUMBER_MAX),
            );
        }
        Ok(catalog)
    }

    /// The highest number that any sealed file or note bears; 0 if none does.
    pub fn highest_number(&self) -> u64 {
        let sealed = self.sealed.keys().filter_map(SegmentId::number).max();
        sealed.max(self.lost.last().copied()).unwrap_or(0)
    }

    /// Every number that a file or a note bears.
    pub fn numbers(&self) -> BTreeSet<u64> {
        let sealed = self.sealed.keys().filter_map(SegmentId::number);
        sealed.chain(self.lost.iter().copied()).collect()
    }

    fn scan_dir(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        place: Place,
    ) -> io::Result<Vec<(String, bool)>> {
        let entries = disk.list(dir).map_err(|error| match place {
            Place::Incoming => error,
            // The caller names the data directory only.
            _ => io::Error::new(error.kind(), format!("{}: {error}", dir.display())),
        })?;
        if disk.identity(dir)?.is_some() {
            self.dirs.push(dir.to_owned());
        }
        for (name, _) in entries.iter().filter(|(_, is_dir)| !is_dir) {
            if let Some((id, tag)) = SegmentId::of_file(name, self.directory) {
                let found = Found {
                    id: id.clone(),
                    tag,
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
pub(crate) fn lost_note(data_dir: &Path, number: u64) -> PathBuf {
    data_dir
        .join(QUARANTINE_DIR)
        .join(format!("{LOST_PREFIX}{number:06}"))
}
