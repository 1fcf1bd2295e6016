//! `directory.json`: the identity of the data directory and of its active segment.
//!
//! The file is replaced by rename, so a reader sees either the old or the new content. It is written
//! when the directory is first used, before each `events.jsonl` is created, and after the first write
//! to `events.jsonl`, before that write is acknowledged:
//!
//! ```json
//! {"directory": "5e3fa1c2-0b54-4a5e-9d4e-0d8f6b6a7c11", "segment": 43, "token": "9b77d0e4", "started": true}
//! ```
//!
//! `started` says whether segment 43 may hold acknowledged events. If it is true and `events.jsonl` is
//! empty or missing, these events are missing. `"restoring": true` is there while a restore is incomplete.
//! The file is written by recovery and by the committer, under `serve.lock`. If it does not exist, it may
//! also be created under `process.lock`. A restore holds both locks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::DataDirError;
use super::catalog::{Catalog, Place};
use crate::data_dir::disk::{self, Disk};
use crate::data_dir::numbers::{MISSING_MAX, gaps, ranges};
use crate::data_dir::segment::{
    ACTIVE_FILE, DirectoryTag, Label, Numbers, SEGMENT_NUMBER_MAX, SegmentId, Tag, label_in_name,
};

/// The file's name in the data directory.
pub const DIRECTORY_FILE: &str = "directory.json";

/// The content of `directory.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The UUID of the data directory. It never changes.
    pub id: Uuid,
    /// The number of the active segment.
    pub number: u64,
    /// The token of the active segment.
    pub token: u32,
    /// Whether the active segment may hold acknowledged events.
    pub started: bool,
    /// Whether a restore is incomplete, so that files or totals are missing.
    pub restoring: bool,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    directory: Uuid,
    segment: u64,
    token: String,
    started: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    restoring: bool,
}

impl Directory {
    /// A new identity, with segment 1 as the active one.
    pub fn new() -> Self {
        Self {
            id: Uuid::new_v4(),
            number: 1,
            token: random_token(),
            started: false,
            restoring: false,
        }
    }

    /// The part of the UUID that labels and names contain.
    pub fn tag(&self) -> DirectoryTag {
        directory_tag(self.id)
    }

    /// The active segment's label.
    pub fn label(&self) -> Label {
        Label {
            number: self.number,
            tag: Tag {
                directory: self.tag(),
                token: self.token,
            },
        }
    }

    /// The same directory with a new active segment, which has not started.
    #[must_use]
    pub fn next(&self, number: u64) -> Self {
        Self {
            number,
            token: random_token(),
            started: false,
            ..*self
        }
    }

    /// Reads the file; `None` where there is none.
    pub fn read(disk: &dyn Disk, data_dir: &Path) -> io::Result<Option<Self>> {
        let path = data_dir.join(DIRECTORY_FILE);
        let file = match disk.open_read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut text = vec![0; 4096];
        let mut filled = 0;
        while filled < text.len() {
            match file.read_at(&mut text[filled..], filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        let malformed = |what: String| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{what}; restore the file from a backup"),
            )
        };
        let wire: Wire = serde_json::from_slice(&text[..filled])
            .map_err(|error| malformed(format!("malformed: {error}")))?;
        let token = u32::from_str_radix(&wire.token, 16)
            .map_err(|_| malformed(format!("malformed token {:?}", wire.token)))?;
        if !(1..=SEGMENT_NUMBER_MAX).contains(&wire.segment) {
            return Err(malformed(format!("no segment has number {}", wire.segment)));
        }
        Ok(Some(Self {
            id: wire.directory,
            number: wire.segment,
            token,
            started: wire.started,
            restoring: wire.restoring,
        }))
    }

    /// [`Directory::read`], with the path in the error.
    pub(crate) fn of(disk: &dyn Disk, data_dir: &Path) -> Result<Option<Self>, DataDirError> {
        let path = data_dir.join(DIRECTORY_FILE);
        Self::read(disk, data_dir).map_err(DataDirError::io("read", &path))
    }

    /// Reads the file, or creates it if it does not exist. A new file gets `known_id`, the UUID in the
    /// database, or a random one if that is `None`. The active segment gets the first number above
    /// `known_number` and above those of all files. Native segments of other UUIDs are imported files.
    pub fn establish(
        disk: &dyn Disk,
        data_dir: &Path,
        known_id: Option<Uuid>,
        known_number: u64,
    ) -> Result<Self, DataDirError> {
        let path = data_dir.join(DIRECTORY_FILE);
        if let Some(found) = Self::read(disk, data_dir).map_err(DataDirError::io("read", &path))? {
            return Ok(found);
        }
        let mut directory = Self::new();
        directory.id = known_id.unwrap_or(directory.id);
        let catalog = Catalog::scan(disk, data_dir, directory.tag())
            .map_err(DataDirError::io("list", data_dir))?;
        directory.number = 1 + catalog.highest_number().max(known_number);
        if known_id.is_none() {
            warn_of_missing_segments(&catalog, data_dir);
        }
        // If a server and `process` start at the same time, both must use the same identity.
        match disk::write_new(disk, &path, |file| file.write_all_at(&directory.text(), 0)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let found = Self::read(disk, data_dir).map_err(DataDirError::io("read", &path))?;
                Ok(found.unwrap_or(directory))
            }
            written => written
                .map(|()| directory)
                .map_err(DataDirError::io("write", &path)),
        }
    }

    /// Replaces the file. The caller must sync the directory to make the replacement durable.
    pub(crate) fn replace(&self, disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
        disk::write_over(disk, &data_dir.join(DIRECTORY_FILE), |file| {
            file.write_all_at(&self.text(), 0)
        })
    }

    /// Replaces the file and syncs the directory.
    pub fn write(&self, disk: &dyn Disk, data_dir: &Path) -> Result<(), DataDirError> {
        self.replace(disk, data_dir)
            .and_then(|()| disk.sync_dir(data_dir))
            .map_err(DataDirError::io("write", &data_dir.join(DIRECTORY_FILE)))
    }

    fn text(&self) -> Vec<u8> {
        let wire = Wire {
            directory: self.id,
            segment: self.number,
            token: format!("{:08x}", self.token),
            started: self.started,
            restoring: self.restoring,
        };
        // Strings, numbers and a flag: this cannot fail.
        let mut text = serde_json::to_vec(&wire).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

/// Warns of numbers that the segments of other data directories lack. If `directory.json` and the database were both
/// removed, these are the segments of this directory, and those that retention pruned are not counted any more.
fn warn_of_missing_segments(catalog: &Catalog, data_dir: &Path) {
    let mut of_directories = BTreeMap::<DirectoryTag, BTreeSet<u64>>::new();
    for id in catalog.sealed.keys() {
        if let SegmentId::Imported(name) = id
            && let Some(label) = label_in_name(name)
        {
            let numbers = of_directories.entry(label.tag.directory).or_default();
            numbers.insert(label.number);
        }
    }
    for (tag, found) in of_directories {
        let last = found.last().copied().unwrap_or_default();
        let missing: BTreeSet<u64> = gaps(1, last, found.iter().map(|&number| number..=number))
            .take(MISSING_MAX)
            .collect();
        if !missing.is_empty() {
            tracing::warn!(
                "{} is missing, so it is created, and segments {} of the data directory {tag:08x} are imported files. Segments {} are not here: if they were pruned, their events are in the totals of the old database only; in that case restore {DIRECTORY_FILE} and the database from a backup",
                data_dir.join(DIRECTORY_FILE).display(),
                ranges(&found),
                ranges(&missing)
            );
        }
    }
}

/// The part of a data directory's UUID that labels and names contain: its first 32 bits.
pub fn directory_tag(id: Uuid) -> DirectoryTag {
    id.as_fields().0
}

/// The first number from `from` on that is not in `taken`.
pub(crate) fn first_free(from: u64, taken: &Numbers) -> u64 {
    taken.first_free(from).min(SEGMENT_NUMBER_MAX)
}

fn random_token() -> u32 {
    Uuid::new_v4().as_fields().0
}

/// Reads the first line of a file and returns its label. `None` if the line has no label or no `\n`.
pub fn read_label(file: &dyn disk::DiskFile) -> io::Result<Option<Label>> {
    let mut block = vec![0; 4096];
    let mut last = Vec::new();
    let mut at = 0;
    loop {
        let count = file.read_at(&mut block, at)?;
        if count == 0 {
            return Ok(None);
        }
        at += count as u64;
        let newline = memchr::memchr(b'\n', &block[..count]);
        last.extend_from_slice(&block[..newline.unwrap_or(count)]);
        // Only the end of the line is needed.
        let excess = last.len().saturating_sub(Label::BYTES);
        last.drain(..excess);
        if newline.is_some() {
            return Ok(Label::of_line(&last));
        }
        block.resize(64 << 10, 0);
    }
}

/// The label of `events.jsonl`. `None` if the file is missing, has no complete line, or is not a
/// segment of the directory `tag`.
pub(crate) fn active_label(
    disk: &dyn Disk,
    data_dir: &Path,
    tag: DirectoryTag,
) -> Result<Option<Label>, DataDirError> {
    let label = any_active_label(disk, data_dir)?;
    Ok(label.filter(|label| label.tag.directory == tag))
}

/// The label of `events.jsonl`, of any data directory; `None` without a file or label.
pub(super) fn any_active_label(
    disk: &dyn Disk,
    data_dir: &Path,
) -> Result<Option<Label>, DataDirError> {
    let path = data_dir.join(ACTIVE_FILE);
    let file = match disk.open_read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(DataDirError::io("open", &path))?,
    };
    read_label(&*file).map_err(DataDirError::io("read", &path))
}

/// The highest number of a segment that may hold events, according to `directory.json`: that of the
/// active segment if it has started, otherwise one less. 0 if there is no `directory.json`.
pub(crate) fn given_out(disk: &dyn Disk, data_dir: &Path) -> Result<u64, DataDirError> {
    let found = Directory::of(disk, data_dir)?;
    Ok(found.map_or(0, |directory| {
        directory.number - u64::from(!directory.started)
    }))
}

/// Whether a sealed file outside the quarantine has this number and tag.
pub(crate) fn is_sealed(catalog: &Catalog, label: Label) -> bool {
    let found = catalog.sealed.get(&SegmentId::Native(label.number));
    found
        .into_iter()
        .flatten()
        .any(|found| found.place != Place::Quarantine && found.tag == Some(label.tag))
}
