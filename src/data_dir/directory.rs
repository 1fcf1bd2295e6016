//! `directory.json`: which data directory this is, and which segment its `events.jsonl` is.
//!
//! One small JSON file, replaced as a whole by rename, so that a reader sees the old or the new
//! one. It is written when the directory is first used, before each `events.jsonl` is created, and
//! once more after the first write to it, before that write is acknowledged:
//!
//! ```json
//! {"directory": "5e3fa1c2-0b54-4a5e-9d4e-0d8f6b6a7c11", "segment": 43, "token": "9b77d0e4", "started": true}
//! ```
//!
//! `started` is what an empty `events.jsonl` cannot say: whether segment 43 holds acknowledged
//! events. An empty or missing file of a started segment has lost them. Only the committer, and
//! recovery before it, write this file; whoever holds `serve.lock`, or `process.lock` where there is
//! no such file yet.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::DataDirError;
use super::catalog::{Catalog, Place};
use crate::data_dir::disk::{self, Disk};
use crate::data_dir::segment::{
    ACTIVE_FILE, DirectoryTag, Label, Numbers, SEGMENT_NUMBER_MAX, Tag,
};

/// The file's name in the data directory.
pub const DIRECTORY_FILE: &str = "directory.json";

/// What `directory.json` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The UUID that names the data directory for good.
    pub id: Uuid,
    /// The number of the active segment.
    pub number: u64,
    /// The token of the active segment.
    pub token: u32,
    /// Whether the active segment may hold acknowledged events.
    pub started: bool,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    directory: Uuid,
    segment: u64,
    token: String,
    started: bool,
}

impl Directory {
    /// A directory that nobody has named before.
    pub fn new() -> Self {
        Self {
            id: Uuid::new_v4(),
            number: 1,
            token: random_token(),
            started: false,
        }
    }

    /// What labels and names carry of the directory's UUID.
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

    /// The same directory with another active segment, which holds nothing yet.
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
        }))
    }

    /// [`Directory::read`], with an error that names the file.
    pub(crate) fn of(disk: &dyn Disk, data_dir: &Path) -> Result<Option<Self>, DataDirError> {
        let path = data_dir.join(DIRECTORY_FILE);
        Self::read(disk, data_dir).map_err(DataDirError::io("read", &path))
    }

    /// Reads the file, or creates it: with `known_id`, the UUID that the database holds, or a new one;
    /// the active segment gets the number after `known_number` and after any that a file bears.
    /// Native segments of any other UUID are imported files from then on.
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
        // Two that start at once (a server and `process`) must end up with one identity.
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

    /// Replaces the file. The new text is durable under the name once the directory is synced, which
    /// is left to the caller.
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
        };
        // Strings, numbers and a flag: there is nothing to fail.
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

/// What labels and names carry of a directory's UUID: its first 32 bits.
pub fn directory_tag(id: Uuid) -> DirectoryTag {
    id.as_fields().0
}

/// The first number from `from` on that is not taken.
pub(crate) fn first_free(from: u64, taken: &Numbers) -> u64 {
    taken.first_free(from).min(SEGMENT_NUMBER_MAX)
}

fn random_token() -> u32 {
    Uuid::new_v4().as_fields().0
}

/// The label of an open file, if its first line ends in one; `None` without a whole first line.
/// Reads that line only.
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
        // Of a long line only the end is of interest.
        let excess = last.len().saturating_sub(Label::BYTES);
        last.drain(..excess);
        if newline.is_some() {
            return Ok(Label::of_line(&last));
        }
        block.resize(64 << 10, 0);
    }
}

/// The label of `events.jsonl`, if that is a segment of the directory `tag` with a whole line.
pub(crate) fn active_label(
    disk: &dyn Disk,
    data_dir: &Path,
    tag: DirectoryTag,
) -> Result<Option<Label>, DataDirError> {
    let path = data_dir.join(ACTIVE_FILE);
    let file = match disk.open_read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(DataDirError::io("open", &path))?,
    };
    let label = read_label(&*file).map_err(DataDirError::io("read", &path))?;
    Ok(label.filter(|label| label.tag.directory == tag))
}

/// The highest number that was given to a segment which may hold events, as `directory.json` says:
/// the active segment's once that has started.
pub(crate) fn given_out(disk: &dyn Disk, data_dir: &Path) -> Result<u64, DataDirError> {
    let found = Directory::of(disk, data_dir)?;
    Ok(found.map_or(0, |directory| {
        directory.number - u64::from(!directory.started)
    }))
}

/// Whether any sealed file outside the quarantine is this very segment.
pub(crate) fn is_sealed(catalog: &Catalog, label: Label) -> bool {
    let found = catalog
        .sealed
        .get(&crate::data_dir::segment::SegmentId::Native(label.number));
    found
        .into_iter()
        .flatten()
        .any(|found| found.place != Place::Quarantine && found.tag == Some(label.tag))
}
