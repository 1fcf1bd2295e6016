//! `manifest.json`: the list of a backup's files, to detect damaged and missing ones.
//!
//! It is written last. Every field that a restore uses is checked against the files.

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

/// Version of the format. Other versions are not read.
const FORMAT: u32 = 1;

/// The content of a manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Version of the format. The field also identifies the file as a manifest.
    pub(crate) tallyline_backup: u32,
    /// The UUID of the data directory.
    pub(crate) directory: Uuid,
    /// Time at which the backup began, as RFC 3339.
    pub(crate) created: String,
    /// Version of the program that made the backup.
    pub(crate) program: String,
    /// The database; `None` if there was none.
    pub(crate) database: Option<Entry>,
    /// All other files except the manifest.
    pub(crate) files: Vec<Entry>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Path relative to the backup, with `/`.
    pub(crate) path: String,
    /// For a segment: `events-000042`, or the name of an imported file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) segment: Option<String>,
    /// For a native segment: its tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tag: Option<String>,
    pub(crate) bytes: u64,
    /// CRC-32 of the content, as 8 hex digits.
    pub(crate) crc32: String,
}

impl Entry {
    /// An entry for the file at `path` of the data directory `directory`.
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

    /// The checksum; `None` if the text is malformed.
    pub(crate) fn checksum(&self) -> Option<u32> {
        u32::from_str_radix(&self.crc32, 16).ok()
    }

    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    pub(crate) fn is_in_quarantine(&self) -> bool {
        self.path.split('/').next() == Some(QUARANTINE_DIR)
    }

    /// Whether the path is one that a data directory can contain. A restore writes no others.
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

/// Segment and tag that a path stands for.
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

    /// Reads and checks the manifest of the backup `dir`.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        let text = match disk::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "cannot restore {}: it is not a backup, because it has no {MANIFEST_FILE}",
                dir.display()
            ),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let malformed = || {
            format!(
                "cannot read {}: malformed manifest; use another backup",
                path.display()
            )
        };
        let value: serde_json::Value = serde_json::from_slice(&text).with_context(malformed)?;
        let Some(format) = value
            .get("tallyline_backup")
            .and_then(serde_json::Value::as_u64)
        else {
            bail!(
                "cannot read {}: it is not the manifest of a tallyline backup",
                path.display()
            );
        };
        if format != u64::from(FORMAT) {
            bail!(
                "cannot read {}: unsupported format {format}, this program reads format {FORMAT}; use the version that made it",
                path.display()
            );
        }
        let manifest: Self = serde_json::from_value(value).with_context(malformed)?;
        for entry in manifest.all() {
            if !entry.is_allowed() {
                bail!(
                    "cannot read {}: malformed path {:?}",
                    path.display(),
                    entry.path
                );
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

    /// All files, the database last.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Entry> {
        self.files.iter().chain(&self.database)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.all().map(|entry| entry.bytes).sum()
    }
}

/// Whether a directory is a backup, which can be restored but not used as a data directory.
pub(crate) fn is_backup(dir: &Path) -> anyhow::Result<bool> {
    let path = dir.join(MANIFEST_FILE);
    match disk::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        text => {
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            // A damaged manifest counts too, if it begins like one.
            let head = &text[..text.len().min(256)];
            Ok(String::from_utf8_lossy(head).contains("\"tallyline_backup\""))
        }
    }
}

/// What is wrong with a backup's files.
pub(crate) enum Fault {
    /// A file is missing, or differs from the manifest.
    Damaged(String),
    /// A file that the manifest does not list.
    Extra(String),
}

/// Checks a directory against its manifest. Calls `on_fault` for each file that is missing, damaged or
/// not listed. Returns `None` if the directory is not a backup, else whether it has a database.
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
        Fault::Damaged(detail) | Fault::Extra(detail) => on_fault(detail),
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
        if let Some(detail) = fault_of(entry, dir, manifest.directory)? {
            on_fault(Fault::Damaged(detail));
        }
        bytes += entry.bytes;
        on_progress(bytes, bytes_total);
    }
    match Directory::read(&RealDisk, dir) {
        Ok(Some(found)) if found.id == manifest.directory => {}
        Ok(Some(found)) => on_fault(Fault::Damaged(format!(
            "{} belongs to the data directory {}, but {MANIFEST_FILE} says {}",
            dir.join(DIRECTORY_FILE).display(),
            found.id,
            manifest.directory
        ))),
        // Reported above if it is listed.
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
            "{}: the segment of {} does not match its name",
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
        Ok((checksum(&*file, size)? != entry.checksum()).then(|| {
            format!("{shown} is damaged: its checksum differs from that in {MANIFEST_FILE}")
        }))
    };
    let found = read();
    file.release_cache(entry.bytes);
    found.with_context(|| format!("cannot read {shown}"))
}

/// All files of a directory and its subdirectories, in no particular order.
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
