//! `tallyline backup` and `tallyline restore`: a data directory copied as a whole, and put back.
//!
//! # What a backup is
//! A data directory of its own: the database as of one moment, every segment, and the active one up
//! to its last whole line under a sealed name. `manifest.json` lists each file with its length and
//! checksum. Events that were acknowledged before the backup began are in it; of later ones, some.
//!
//! The database is copied first, so the files know all that the database knows, and more. What is
//! more is applied after a restore, as after a crash. Lines that were written but not yet
//! acknowledged when the active file was copied may be in the backup, as they may be in the file
//! after a power cut.
//!
//! # What a restore does
//! See [`restore`]. Whatever is in the target directory, its totals are exact afterwards, or nothing
//! is changed and the reason is named. While a restore is unfinished, `restore.json` lies in the
//! directory, and nothing else uses it.

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

/// The list of a backup's files, in the backup.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Lies in a data directory while a restore of it is unfinished.
pub const RESTORE_FILE: &str = "restore.json";
/// Lies in a backup that is being made, and is locked by the process that makes it.
const UNFINISHED_FILE: &str = ".tallyline-backup";
/// How much of a file is read at once.
const BLOCK: usize = 1 << 20;

/// Refuses a data directory of which a restore is unfinished.
pub fn refuse_unfinished(data_dir: &Path) -> anyhow::Result<()> {
    if !exists(&data_dir.join(RESTORE_FILE))? {
        return Ok(());
    }
    bail!(
        "{} is only partly restored ({RESTORE_FILE} lies in it); finish it: run `tallyline restore {} --data-dir {}`",
        data_dir.display(),
        restore::backup_named_in(data_dir)
            .as_deref()
            .unwrap_or("DIR"),
        data_dir.display()
    );
}

/// Refuses to change a backup: it would no longer be what its manifest says.
pub fn refuse_backup(data_dir: &Path) -> anyhow::Result<()> {
    if manifest::is_backup(data_dir)? {
        bail!(
            "{} is a backup; restore it to a directory of its own: `tallyline restore {} --data-dir NEW`",
            data_dir.display(),
            data_dir.display()
        );
    }
    Ok(())
}

fn exists(path: &Path) -> anyhow::Result<bool> {
    path.try_exists()
        .with_context(|| format!("cannot look at {}", path.display()))
}

/// CRC-32 of the first `length` bytes; `None` where the file ends before.
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

/// Syncs the directory that a path lies in.
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
