//! Files in the data directory and its archive that have the name of a segment and are not applied: rivals, corrupt and
//! pruned segments, and applied files that could not be archived.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::data_dir::disk::{Disk, Identity};
use crate::data_dir::segment::{DirectoryTag, SegmentId};
use crate::data_dir::{Found, Place};

/// The skipped files by path. A file is considered again if another one takes its path.
pub(super) struct SkippedFiles {
    directory: DirectoryTag,
    files: BTreeMap<PathBuf, Identity>,
}

impl SkippedFiles {
    pub(super) fn new(directory: DirectoryTag) -> Self {
        Self {
            directory,
            files: BTreeMap::new(),
        }
    }

    pub(super) fn clear(&mut self) {
        self.files.clear();
    }

    pub(super) fn insert(&mut self, path: PathBuf, identity: Identity) {
        self.files.insert(path, identity);
    }

    /// Whether the file at this path is a skipped one.
    pub(super) fn contains(&self, disk: &dyn Disk, path: &Path) -> bool {
        self.files
            .get(path)
            .is_some_and(|&skipped| disk.identity(path).ok().flatten() == Some(skipped))
    }

    /// Whether a skipped file has the name of this segment.
    pub(super) fn has_file_of(&self, id: &SegmentId) -> bool {
        self.files
            .keys()
            .any(|path| self.id(path).as_ref() == Some(id))
    }

    /// The skipped files in the archive that are still there. A round does not list the archive.
    pub(super) fn in_archive(&self, disk: &dyn Disk, data_dir: &Path) -> Vec<Found> {
        let archived = self
            .files
            .keys()
            .filter(|path| path.parent() != Some(data_dir) && self.contains(disk, path));
        let found = archived.filter_map(|path| {
            let name = path.file_name()?.to_string_lossy();
            let (id, tag) = SegmentId::of_file(&name, self.directory)?;
            Some(Found {
                id,
                tag,
                place: Place::Applied,
                path: path.clone(),
            })
        });
        found.collect()
    }

    /// Forgets the files that are not `present`, and the other files of their segments, so that those are
    /// compared again. Returns these segments.
    pub(super) fn retain(&mut self, present: &BTreeSet<PathBuf>) -> BTreeSet<SegmentId> {
        let gone = self.files.keys().filter(|path| !present.contains(*path));
        let released: BTreeSet<SegmentId> = gone.filter_map(|path| self.id(path)).collect();
        let mut files = std::mem::take(&mut self.files);
        files.retain(|path, _| {
            present.contains(path) && self.id(path).is_none_or(|id| !released.contains(&id))
        });
        self.files = files;
        released
    }

    fn id(&self, path: &Path) -> Option<SegmentId> {
        let name = path.file_name()?.to_string_lossy();
        SegmentId::of_file(&name, self.directory).map(|(id, _)| id)
    }
}
