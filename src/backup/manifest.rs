//! `manifest.json`: what a backup holds, so that a damaged or incomplete one is noticed.
//!
//! It is written last, and every field that a restore relies on is checked against the files.

use std::collections::BTreeSet;
use std::io;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{MANIFEST_FILE, UNFINISHED_FILE, checksum};
use crate::data_dir::disk::{self, Disk, RealDisk};
use crate::data_dir::segment::SegmentId;
use crate::data_dir::{APPLIED_DIR, DIRECTORY_FILE, Directory, QUARANTINE_DIR, directory_tag};
use crate::store::DATABASE_FILE;

/// The version of the format that this program writes, and the highest that it reads.
const FORMAT: u32 = 1;

/// What a backup holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Tells a manifest of ours from any other file of that name, and its version.
    pub(crate) tallyline_backup: u32,
    /// The UUID of the data directory.
    pub(crate) directory: Uuid,
    /// When the backup began.
    pub(crate) created: String,
    /// The version of the program that made it.
    pub(crate) program: String,
    /// The database; `None` where there was none.
    pub(crate) database: Option<Entry>,
    /// All other files.
    pub(crate) files: Vec<Entry>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Below the backup, with `/`.
    pub(crate) path: String,
    /// The identity of the segment that it is, if it is one: `events-000042` or the name of an
    /// imported file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) segment: Option<String>,
    /// The tag of a native segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tag: Option<String>,
    /// Length.
    pub(crate) bytes: u64,
    /// CRC-32 of the content, 8 hex digits.
    pub(crate) crc32: String,
}

impl Entry {
    /// The entry for a file of that length and checksum.
    pub(crate) fn new(path: &Path, directory: Uuid, bytes: u64, crc32: u32) -> Self {
        let path = path.to_string_lossy().into_owned();
        let (segment, tag) = identity(&path, directory);
        Self {
            path,
            segment,
            tag,
            bytes,
            crc32: format!("{crc32:08x}"),
        }
    }

    /// The checksum.
    pub(crate) fn checksum(&self) -> Option<u32> {
        u32::from_str_radix(&self.crc32, 16).ok()
    }

    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    pub(crate) fn is_in_quarantine(&self) -> bool {
        self.path.split('/').next() == Some(QUARANTINE_DIR)
    }

    /// Whether the path may lie in a data directory: nothing is written anywhere else.
    fn is_allowed(&self) -> bool {
        let path = Path::new(&self.path);
        let plain = path
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        let first = self.path.split('/').next().unwrap_or_default();
        let below = self.path.contains('/');
        let segment = SegmentId::of_file(self.name(), 0).is_some();
        plain
            && match first {
                QUARANTINE_DIR => below,
                APPLIED_DIR => below && segment,
                DATABASE_FILE | DIRECTORY_FILE => !below,
                _ => !below && segment,
            }
    }
}

/// What a path says of the segment that it is.
fn identity(path: &str, directory: Uuid) -> (Option<String>, Option<String>) {
    let name = path.rsplit('/').next().unwrap_or(path);
    match SegmentId::of_file(name, directory_tag(directory)) {
        Some((id, tag)) => (Some(id.to_string()), tag.map(|tag| tag.to_string())),
        None => (None, None),
    }
}

impl Manifest {
    pub(crate) fn new(directory: Uuid, created: String) -> Self {
        Self {
            tallyline_backup: FORMAT,
            directory,
            created,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            database: None,
            files: Vec::new(),
        }
    }

    /// Reads the manifest of the backup `dir`.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        let text = match disk::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "{} is not a backup: it has no {MANIFEST_FILE}",
                dir.display()
            ),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let malformed = || {
            format!(
                "cannot read {}: malformed; use another backup",
                path.display()
            )
        };
        let value: serde_json::Value = serde_json::from_slice(&text).with_context(malformed)?;
        let Some(format) = value
            .get("tallyline_backup")
            .and_then(serde_json::Value::as_u64)
        else {
            bail!(
                "{} is not the manifest of a tallyline backup",
                path.display()
            );
        };
        if format != u64::from(FORMAT) {
            bail!(
                "cannot read {}: its format is {format}, and this program reads format {FORMAT} only; use the version that made it",
                path.display()
            );
        }
        let manifest: Self = serde_json::from_value(value).with_context(malformed)?;
        for entry in manifest.all() {
            if !entry.is_allowed() {
                bail!("{}: malformed path {:?}", path.display(), entry.path);
            }
        }
        Ok(manifest)
    }

    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        text.push(b'\n');
        disk::write_new(&RealDisk, &dir.join(MANIFEST_FILE), |file| {
            file.write_all_at(&text, 0)
        })
    }

    /// Every file, the database last.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Entry> {
        self.files.iter().chain(&self.database)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.all().map(|entry| entry.bytes).sum()
    }
}

/// Whether a directory is a backup, to be restored and not to be used.
pub(crate) fn is_backup(dir: &Path) -> anyhow::Result<bool> {
    let path = dir.join(MANIFEST_FILE);
    match disk::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        text => {
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            // Damaged or not: what begins like one of ours is one of ours.
            let head = &text[..text.len().min(256)];
            Ok(String::from_utf8_lossy(head).contains("\"tallyline_backup\""))
        }
    }
}

/// What is wrong with a backup's files.
pub(crate) enum Fault {
    /// A file is missing, or not what the manifest says.
    Damaged(String),
    /// A file that the manifest does not list.
    Extra(String),
}

/// Checks a directory against its manifest, if it has one: each file that is missing, damaged or not
/// listed is given to `on_fault`. `None` for a directory that is no backup; else whether it holds a
/// database.
pub fn check(
    dir: &Path,
    on_fault: &mut dyn FnMut(String),
    on_progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Option<bool>> {
    if !is_backup(dir)? {
        return Ok(None);
    }
    let manifest = Manifest::read(dir)?;
    let mut faults = |fault| match fault {
        Fault::Damaged(words) | Fault::Extra(words) => on_fault(words),
    };
    check_files(&manifest, dir, &mut faults, on_progress)?;
    Ok(Some(manifest.database.is_some()))
}

pub(crate) fn check_files(
    manifest: &Manifest,
    dir: &Path,
    on_fault: &mut dyn FnMut(Fault),
    on_progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<()> {
    let bytes_total = manifest.bytes();
    let mut bytes = 0;
    let mut listed = BTreeSet::new();
    for entry in manifest.all() {
        if !listed.insert(entry.path.as_str()) {
            on_fault(Fault::Damaged(format!(
                "{}: {} is listed twice",
                dir.join(MANIFEST_FILE).display(),
                entry.path
            )));
        }
        if let Some(words) = fault_of(entry, dir, manifest.directory)? {
            on_fault(Fault::Damaged(words));
        }
        bytes += entry.bytes;
        on_progress(bytes, bytes_total);
    }
    match Directory::read(&RealDisk, dir) {
        Ok(Some(found)) if found.id == manifest.directory => {}
        Ok(Some(found)) => on_fault(Fault::Damaged(format!(
            "{} is of the data directory {}, but {MANIFEST_FILE} says {}",
            dir.join(DIRECTORY_FILE).display(),
            found.id,
            manifest.directory
        ))),
        // Named above, if it is listed.
        Ok(None) | Err(_) if listed.contains(DIRECTORY_FILE) => {}
        Ok(None) | Err(_) => on_fault(Fault::Damaged(format!(
            "{} does not list {DIRECTORY_FILE}",
            dir.join(MANIFEST_FILE).display()
        ))),
    }
    for path in files_below(dir)? {
        let relative = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy();
        let ours = [MANIFEST_FILE, UNFINISHED_FILE].contains(&&*relative);
        if !ours && !listed.contains(&*relative) {
            on_fault(Fault::Extra(format!(
                "{} is not part of the backup; move it away",
                path.display()
            )));
        }
    }
    Ok(())
}

fn fault_of(entry: &Entry, dir: &Path, directory: Uuid) -> anyhow::Result<Option<String>> {
    let path = dir.join(&entry.path);
    let shown = path.display();
    if identity(&entry.path, directory) != (entry.segment.clone(), entry.tag.clone()) {
        return Ok(Some(format!(
            "{}: the segment of {} is not what its name says",
            dir.join(MANIFEST_FILE).display(),
            entry.path
        )));
    }
    let file = match RealDisk.open_read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(format!("{shown} is missing from the backup")));
        }
        Err(error) => return Ok(Some(format!("cannot open {shown}: {error}"))),
        Ok(file) => file,
    };
    let read = || -> io::Result<Option<String>> {
        let size = file.size()?;
        if size != entry.bytes {
            return Ok(Some(format!(
                "{shown} has {size} bytes, but {MANIFEST_FILE} says {}",
                entry.bytes
            )));
        }
        Ok((checksum(&*file, size)? != entry.checksum())
            .then(|| format!("{shown} is damaged: its checksum is not what {MANIFEST_FILE} says")))
    };
    let found = read();
    file.release_cache(entry.bytes);
    found.with_context(|| format!("cannot read {shown}"))
}

/// Every file of a directory and below, in no order.
pub(crate) fn files_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = RealDisk
            .list(&dir)
            .with_context(|| format!("cannot list {}", dir.display()))?;
        for (name, is_dir) in entries {
            let path = dir.join(name);
            if is_dir {
                dirs.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
