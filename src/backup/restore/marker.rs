//! `restore.json`: the mark of a restore that is not complete.

use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::backup::RESTORE_FILE;
use crate::data_dir::disk::{self, Disk as _, RealDisk};

/// The content of `restore.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Marker {
    pub(super) backup: String,
    /// When the first attempt began, RFC 3339.
    pub(super) started: String,
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
