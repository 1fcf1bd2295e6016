//! What the data directory holds, by name alone: no file is opened.
//!
//! The archive of years has hundreds of thousands of files, and of nearly all of them nothing is left
//! to be done. [`Catalog::scan_unapplied`] notes these by their numbers alone.
//!
//! Segments are looked for wherever they lie (the directory itself, `applied/YYYY-MM/`,
//! `quarantine/`), because the place is a convenience for people and decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use std::sync::Arc;

use super::disk::{Disk, DiskFile};
use crate::data_dir::segment::{DirectoryTag, Numbers, SEGMENT_NUMBER_MAX, SegmentId, Tag};

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

/// The sealed files by identity (more than one file may claim the same), and the lost numbers.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// In order of [`SegmentId`]: ours by number, then those from elsewhere by name.
    pub sealed: BTreeMap<SegmentId, Vec<Found>>,
    /// Numbers of fully applied native segments of which one file lies below `applied/` and no other
    /// was found: they are not in `sealed`. Empty unless the scan left them out.
    pub archived: Numbers,
    /// Numbers a note in `quarantine/` declares lost.
    pub missing: BTreeSet<u64>,
    /// Which data directory it is: segments of another are imported files here.
    directory: DirectoryTag,
    /// Every directory that was looked into: these are fsynced before what was seen is believed.
    pub dirs: Vec<PathBuf>,
    /// While scanning: the numbers of `archived` that more than one file bears.
    claimed_again: BTreeSet<u64>,
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
pub fn describe_rivals(id: &SegmentId, rivals: &[&Found]) -> String {
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
        Self::scan_unapplied(disk, data_dir, directory, &Numbers::default())
    }

    /// The same, with only the numbers of what is settled: segments that are fully applied, as the
    /// database says (`applied`), and have a single file, in the archive.
    pub fn scan_unapplied(
        disk: &dyn Disk,
        data_dir: &Path,
        directory: DirectoryTag,
        applied: &Numbers,
    ) -> io::Result<Self> {
        let mut catalog = Self {
            directory,
            ..Self::default()
        };
        catalog.scan_beside_archive(disk, data_dir)?;
        let archive = data_dir.join(APPLIED_DIR);
        let mut dirs = vec![archive.clone()];
        dirs.extend(catalog.scan_archive_dir(disk, &archive, applied)?);
        for month in &dirs[1..] {
            catalog.scan_archive_dir(disk, month, applied)?;
        }
        for dir in dirs {
            if disk.identity(&dir)?.is_some() {
                catalog.dirs.push(dir);
            }
        }
        // What has a second file is not settled: both are kept apart, by a second look for the few.
        let mut claimed_again = std::mem::take(&mut catalog.claimed_again);
        claimed_again.retain(|&number| catalog.archived.remove(number));
        if !claimed_again.is_empty() {
            let dirs: Vec<PathBuf> = catalog.dirs.clone();
            for dir in dirs.iter().filter(|dir| dir.starts_with(&archive)) {
                for (name, _) in list(disk, dir)?.iter().filter(|(_, is_dir)| !is_dir) {
                    if let Some((id, tag)) = SegmentId::of_file(name, directory)
                        && id.number().is_some_and(|id| claimed_again.contains(&id))
                    {
                        catalog.add(id, tag, Place::Applied, dir.join(name));
                    }
                }
            }
        }
        Ok(catalog)
    }

    /// Lists again what lies outside the archive, which grows without end and changes seldom.
    pub fn scan_beside_archive_again(
        &mut self,
        disk: &dyn Disk,
        data_dir: &Path,
    ) -> io::Result<()> {
        self.sealed.retain(|_, found| {
            found.retain(|found| found.place == Place::Applied);
            !found.is_empty()
        });
        self.missing.clear();
        self.scan_beside_archive(disk, data_dir)
    }

    fn scan_beside_archive(&mut self, disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
        let quarantine = data_dir.join(QUARANTINE_DIR);
        let mut names = Vec::new();
        for (dir, place) in [
            (data_dir, Place::Incoming),
            (&quarantine, Place::Quarantine),
        ] {
            names = match place {
                Place::Incoming => disk.list(dir)?, // the caller names it
                _ => list(disk, dir)?,
            };
            if !self.dirs.iter().any(|known| known == dir) && disk.identity(dir)?.is_some() {
                self.dirs.push(dir.to_owned());
            }
            for (name, _) in names.iter().filter(|(_, is_dir)| !is_dir) {
                if let Some((id, tag)) = SegmentId::of_file(name, self.directory) {
                    self.add(id, tag, place, dir.join(name));
                }
            }
        }
        self.missing.extend(names.iter().filter_map(|(name, _)| {
            let number = name.strip_prefix(MISSING_PREFIX)?.parse::<u64>().ok()?;
            (number <= SEGMENT_NUMBER_MAX).then_some(number)
        }));
        Ok(())
    }

    /// One directory of the archive; the directories in it.
    fn scan_archive_dir(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        applied: &Numbers,
    ) -> io::Result<Vec<PathBuf>> {
        let mut names = list(disk, dir)?;
        // In the order of time, which is that of their numbers: they are noted as ranges.
        names.sort_unstable();
        let mut dirs = Vec::new();
        for (name, is_dir) in names {
            if is_dir {
                dirs.push(dir.join(name));
                continue;
            }
            let Some((id, tag)) = SegmentId::of_file(&name, self.directory) else {
                continue;
            };
            match id {
                SegmentId::Native(number) if applied.contains(number) => {
                    if !self.archived.insert(number) || self.sealed.contains_key(&id) {
                        self.claimed_again.insert(number);
                    }
                }
                _ => self.add(id, tag, Place::Applied, dir.join(name)),
            }
        }
        Ok(dirs)
    }

    fn add(&mut self, id: SegmentId, tag: Option<Tag>, place: Place, path: PathBuf) {
        let found = Found {
            id: id.clone(),
            tag,
            place,
            path,
        };
        self.sealed.entry(id).or_default().push(found);
    }

    /// Whether any file bears it.
    pub fn contains(&self, id: &SegmentId) -> bool {
        let is_archived = |number| self.archived.contains(number);
        id.number().is_some_and(is_archived) || self.sealed.contains_key(id)
    }

    /// The highest number that any sealed file or note bears; 0 if none does.
    pub fn highest_number(&self) -> u64 {
        self.numbers().last().unwrap_or(0)
    }

    /// Every number that a file or a note bears.
    pub fn numbers(&self) -> Numbers {
        let mut numbers = self.archived.clone();
        numbers.extend(self.sealed.keys().filter_map(SegmentId::number));
        numbers.extend(self.missing.iter().copied());
        numbers
    }
}

/// Lists a directory below the data directory, with an error that names it.
fn list(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<(String, bool)>> {
    disk.list(dir)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", dir.display())))
}

const MISSING_PREFIX: &str = "missing-";

/// The note that declares segment `number` lost.
pub(crate) fn missing_note(data_dir: &Path, number: u64) -> PathBuf {
    data_dir
        .join(QUARANTINE_DIR)
        .join(format!("{MISSING_PREFIX}{number:06}"))
}
