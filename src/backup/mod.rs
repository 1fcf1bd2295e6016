//! `tallyline backup` and `tallyline restore`: copies of a whole data directory.
//!
//! # Backup
//! A backup has the layout of a data directory: the database as of one moment, all segments, and the
//! active one, up to its last complete line, under a sealed name. `manifest.json` lists each file with
//! its length and checksum. All events that were acknowledged before the backup began are in it; later
//! ones may be.
//!
//! The database is copied first, so the files hold all events that it has counted. The other events
//! are applied after a restore, as after a crash. Lines that were written but not yet acknowledged when
//! the active file was copied may be in the backup, as they may be in the file after a power failure.
//!
//! # Restore
//! See [`restore`]. Either the totals are exact afterwards, or nothing is changed and the error says
//! why. While a restore is incomplete, `restore.json` and `directory.json` in the directory say so, and other
//! commands refuse to use it.

mod create;
mod manifest;
mod restore;
mod target;

use std::io;
use std::path::Path;

use anyhow::{Context as _, bail};

pub(crate) use self::create::create;
pub use self::manifest::check;
pub(crate) use self::restore::restore;
use crate::data_dir::disk::{Disk as _, DiskFile, RealDisk};
use crate::data_dir::{DIRECTORY_FILE, Directory};

/// Name of the list of files in a backup.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the marker of an incomplete restore, in the data directory.
pub const RESTORE_FILE: &str = "restore.json";
/// Name of the marker of an incomplete backup, locked by the process that makes it.
const UNFINISHED_FILE: &str = ".tallyline-backup";
/// Number of bytes read at once.
const BLOCK: usize = 1 << 20;

/// Fails if a restore of the data directory is incomplete.
pub fn refuse_unfinished(data_dir: &Path) -> anyhow::Result<()> {
    let sign = if exists(&data_dir.join(RESTORE_FILE))? {
        format!("{RESTORE_FILE} exists")
    } else if Directory::of(&RealDisk, data_dir)?.is_some_and(|directory| directory.restoring) {
        format!("{DIRECTORY_FILE} says so; {RESTORE_FILE} was removed")
    } else {
        return Ok(());
    };
    bail!(
        "cannot use {}: its restore is incomplete ({sign}); to complete it, run `tallyline restore {} --data-dir {}`",
        data_dir.display(),
        restore::backup_named_in(data_dir)
            .as_deref()
            .unwrap_or("DIR"),
        data_dir.display()
    );
}

/// Fails if the data directory is a backup. Using it would invalidate its manifest.
pub fn refuse_backup(data_dir: &Path) -> anyhow::Result<()> {
    if manifest::is_backup(data_dir)? {
        bail!(
            "cannot use {}: it is a backup; restore it to another directory: `tallyline restore {} --data-dir NEW`",
            data_dir.display(),
            data_dir.display()
        );
    }
    Ok(())
}

fn exists(path: &Path) -> anyhow::Result<bool> {
    path.try_exists()
        .with_context(|| format!("cannot read metadata of {}", path.display()))
}

/// CRC-32 of the first `length` bytes; `None` if the file is shorter.
fn checksum(file: &dyn DiskFile, length: u64) -> io::Result<Option<u32>> {
    let mut hasher = crc32fast::Hasher::new();
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    while at < length {
        let want = usize::try_from(length - at).unwrap_or(BLOCK).min(BLOCK);
        match file.read_at(&mut block[..want], at)? {
            0 => return Ok(None),
            count => {
                hasher.update(&block[..count]);
                at += count as u64;
            }
        }
    }
    Ok(Some(hasher.finalize()))
}

/// Syncs the parent directory of a path.
fn sync_parent(path: &Path) -> anyhow::Result<()> {
    let parent = parent(path);
    RealDisk
        .sync_dir(parent)
        .with_context(|| format!("cannot sync {}", parent.display()))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
