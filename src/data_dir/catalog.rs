//! Lists the segments of the data directory by name. No file is opened.
//!
//! Segments are searched in the directory itself, in `applied/YYYY-MM/` and in `quarantine/`. Only the
//! state in the database says whether a segment is applied; the place of the file does not.
//!
//! An archive of several years has hundreds of thousands of files, nearly all of them fully applied.
//! [`Catalog::scan_unapplied`] keeps only the numbers of these.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, DiskFile};
use crate::data_dir::segment::{DirectoryTag, Numbers, SEGMENT_NUMBER_MAX, SegmentId, Tag};

/// The directory of fully applied segments, with a directory for each month.
pub const APPLIED_DIR: &str = "applied";
/// The directory of files that are not applied: files set aside, torn tails, and notes of missing segments.
pub const QUARANTINE_DIR: &str = "quarantine";

/// The part of the data directory in which a file was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the data directory itself: sealed, not yet archived.
    Incoming,
    /// Below `applied/`: fully applied, and moved there.
    Applied,
    /// In `quarantine/`: set aside, never applied.
    Quarantine,
}

/// A sealed file, as it was listed; it may have moved since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The identity of the segment.
    pub id: SegmentId,
    /// The tag of a native segment; `None` for an imported file.
    pub tag: Option<Tag>,
    /// The part of the data directory.
    pub place: Place,
    /// The path, including the data directory.
    pub path: PathBuf,
}

/// An open file of a segment.
#[derive(Clone)]
pub(crate) struct SegmentFile {
    pub(crate) id: SegmentId,
    /// The tag of a native segment; `None` for an imported file.
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

/// The sealed files by identity, and the missing numbers. Several files may have the same identity.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// The files of each segment: native segments by number, then imported files by name.
    pub sealed: BTreeMap<SegmentId, Vec<Found>>,
    /// Numbers of fully applied native segments with exactly one file, below `applied/`. They are not
    /// in `sealed`. Only [`Catalog::scan_unapplied`] fills it.
    pub archived: Numbers,
    /// Numbers that a note in `quarantine/` records as missing.
    pub missing: BTreeSet<u64>,
    /// The tag of this data directory; segments of another one are imported files here.
    directory: DirectoryTag,
    /// Every directory that was listed. Recovery fsyncs them before it uses the result.
    pub dirs: Vec<PathBuf>,
    /// Numbers in `archived` for which a second file was found during the scan.
    claimed_again: BTreeSet<u64>,
}

/// The files with one number or name, divided by tag.
#[derive(Debug, Default)]
pub struct Claims<'c> {
    /// The file to read; `None` if no file is the segment.
    pub usable: Option<&'c Found>,
    /// Further files with the same tag. They are copies, unless their contents differ.
    pub copies: Vec<&'c Found>,
    /// Other segments of the same number. If the database has no row for the number and the tags
    /// differ, all files are rivals.
    pub rivals: Vec<&'c Found>,
}

impl<'c> Claims<'c> {
    /// Divides the files of one identity; those in quarantine are ignored. `known` is the tag in the
    /// database row; `None` if there is no row.
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

/// A message that says why files with the same number are not applied, and what to do.
pub fn describe_rivals(id: &SegmentId, rivals: &[&Found]) -> String {
    let paths: Vec<String> = rivals
        .iter()
        .map(|found| found.path.display().to_string())
        .collect();
    format!(
        "segment {id}: more than one segment of that number was found, and {} not applied. Two copies of this data directory were both used. Move the files that do not belong here to {QUARANTINE_DIR}/; to count their events, run `tallyline process FILE` with each",
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

    /// Lists the data directory, but keeps only the numbers of segments that are in `applied` (fully
    /// applied according to the database) and have a single file, in the archive.
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
        // Segments with a second file are listed in full, by a second scan of the archive.
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

    /// Lists everything outside the archive again. The archive is large and changes rarely.
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
                Place::Incoming => disk.list(dir)?, // the caller adds the path to the error
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

    /// Lists one directory of the archive and returns its subdirectories.
    fn scan_archive_dir(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        applied: &Numbers,
    ) -> io::Result<Vec<PathBuf>> {
        let mut names = list(disk, dir)?;
        // The names sort by time, hence nearly by number, which keeps the set of ranges small.
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

    /// The highest number of any sealed file or note; 0 if there is none.
    pub fn highest_number(&self) -> u64 {
        self.numbers().last().unwrap_or(0)
    }

    /// The numbers of all sealed files and notes.
    pub fn numbers(&self) -> Numbers {
        let mut numbers = self.archived.clone();
        numbers.extend(self.sealed.keys().filter_map(SegmentId::number));
        numbers.extend(self.missing.iter().copied());
        numbers
    }
}

/// Lists a subdirectory of the data directory. The error contains its path.
fn list(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<(String, bool)>> {
    disk.list(dir)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", dir.display())))
}

const MISSING_PREFIX: &str = "missing-";

/// The path of the note that records segment `number` as missing.
pub(crate) fn missing_note(data_dir: &Path, number: u64) -> PathBuf {
    data_dir
        .join(QUARANTINE_DIR)
        .join(format!("{MISSING_PREFIX}{number:06}"))
}
