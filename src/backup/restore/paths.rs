//! The paths that a restore was given: the directory of a backup, and a data directory outside it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::backup::{MANIFEST_FILE, exists, parent};
use crate::cli::config::UsageError;

/// Fails if the path is not the directory of a backup.
pub(super) fn refuse_backup_path(backup: &Path) -> anyhow::Result<()> {
    let is_directory = match fs::metadata(backup) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        metadata => Some(
            metadata
                .with_context(|| format!("cannot read {}", backup.display()))?
                .is_dir(),
        ),
    };
    let reason = match is_directory {
        None => "there is no such directory; name the directory of a backup".to_owned(),
        Some(true) if backup.join(MANIFEST_FILE).exists() => return Ok(()),
        Some(true) => match inner_backup(backup) {
            Some(inner) => format!(
                "it is not a backup, because it has no {MANIFEST_FILE}; {} has one: name that",
                inner.display()
            ),
            None => format!(
                "it is not a backup, because it has no {MANIFEST_FILE}; name a directory that `tallyline backup` created"
            ),
        },
        Some(false) if parent(backup).join(MANIFEST_FILE).exists() => format!(
            "it is a file of the backup {0}; name the directory: tallyline restore {0}",
            parent(backup).display()
        ),
        Some(false) => format!(
            "it is a file, not the directory of a backup; if it is an archive of one, unpack it first (tar -xf {}) and name the directory",
            backup.display()
        ),
    };
    let reason = format!("cannot restore {}: {reason}", backup.display());
    Err(UsageError::new(reason).into())
}

/// The only backup in the directory, as after an archive was unpacked in it.
fn inner_backup(dir: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    let mut backups = entries
        .map(|entry| entry.path())
        .filter(|path| path.join(MANIFEST_FILE).exists());
    let only = backups.next()?;
    backups.next().is_none().then_some(only)
}

/// Fails if the data directory lies in the backup.
pub(super) fn refuse_place(backup: &Path, data_dir: &Path) -> anyhow::Result<()> {
    let from = backup
        .canonicalize()
        .with_context(|| format!("cannot find {}", backup.display()))?;
    let mut to = data_dir;
    while !exists(to)? {
        to = parent(to);
    }
    let to = to
        .canonicalize()
        .with_context(|| format!("cannot find {}", to.display()))?;
    if to.starts_with(&from) {
        let reason = format!(
            "cannot restore to {}: it lies in the backup {}; name a directory outside it",
            data_dir.display(),
            backup.display()
        );
        return Err(UsageError::new(reason).into());
    }
    Ok(())
}
