//! `restore.json`: the mark of a restore that is not complete.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::backup::RESTORE_FILE;
use crate::data_dir::disk::{self, Disk as _, RealDisk};

/// The content of `restore.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Marker {
    pub(super) backup: String,
    /// When the first attempt began, RFC 3339.
    pub(super) started: String,
    /// The UUID of the data directory in the backup; `None` if an older version wrote the file.
    pub(super) directory: Option<Uuid>,
}

/// The backup named in `restore.json`; `None` if it cannot be read.
pub(crate) fn backup_named_in(data_dir: &Path) -> Option<String> {
    Some(Marker::read(data_dir)?.backup)
}

impl Marker {
    /// `None` if there is none, or if it cannot be read.
    pub(super) fn read(data_dir: &Path) -> Option<Self> {
        let text = disk::read(&data_dir.join(RESTORE_FILE)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Fails if it is that of a backup of another data directory than `directory`: the files that its restore
    /// added would be counted too, as imported ones.
    pub(super) fn refuse_other(&self, directory: Uuid, data_dir: &Path) -> anyhow::Result<()> {
        if self.directory.is_some_and(|begun| begun != directory) {
            bail!(
                "cannot restore to {}: the restore of {}, a backup of another data directory, is incomplete there, and some of its events are in the files already; complete that restore first, or restore to a new directory",
                data_dir.display(),
                self.backup
            );
        }
        Ok(())
    }

    /// Writes it; it is durable when this returns.
    pub(super) fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        let path = data_dir.join(RESTORE_FILE);
        let text = serde_json::to_vec(self)?;
        disk::write_over(&RealDisk, &path, |file| file.write_all_at(&text, 0))
            .and_then(|()| RealDisk.sync_dir(data_dir))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes it; the directory is synced when this returns.
    pub(super) fn remove(data_dir: &Path) -> anyhow::Result<()> {
        let path = data_dir.join(RESTORE_FILE);
        RealDisk
            .remove(&path)
            .and_then(|()| RealDisk.sync_dir(data_dir))
            .with_context(|| format!("cannot remove {}", path.display()))
    }
}
