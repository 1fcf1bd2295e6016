//! The directory of a backup that is not complete: `DIR.part`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::backup::manifest::Manifest;
use crate::backup::{UNFINISHED_FILE, exists, parent, sync_parent};
use crate::cli::config::UsageError;
use crate::data_dir::disk::{Disk as _, Lock, RealDisk};

/// Fails if `to` exists or lies in the data directory.
pub(super) fn refuse_place(data_dir: &Path, to: &Path) -> anyhow::Result<()> {
    if fs::symlink_metadata(to).is_ok() {
        let reason = format!(
            "cannot create {}: it exists already; name a new directory",
            to.display()
        );
        return Err(UsageError::new(reason).into());
    }
    if to.file_name().is_none() {
        let reason = format!("cannot create {}: not a directory name", to.display());
        return Err(UsageError::new(reason).into());
    }
    let home = data_dir
        .canonicalize()
        .with_context(|| format!("cannot find {}", data_dir.display()))?;
    let place = parent(to)
        .canonicalize()
        .with_context(|| format!("cannot find the parent directory of {}", to.display()))?;
    if place.starts_with(&home) {
        let reason = format!(
            "cannot create {}: it lies in the data directory {}; name a directory outside it",
            to.display(),
            data_dir.display()
        );
        return Err(UsageError::new(reason).into());
    }
    Ok(())
}

/// `DIR.part`. Dropping it removes it, unless it was finished.
pub(super) struct Part {
    pub(super) path: PathBuf,
    finished: bool,
    /// Held until the end, so that another backup does not remove the directory as left over.
    _lock: Lock,
}

impl Part {
    pub(super) fn begin(to: &Path) -> anyhow::Result<Self> {
        let mut name = OsString::from(to.file_name().unwrap_or_default());
        name.push(".part");
        let path = to.with_file_name(name);
        remove_left_over(&path)?;
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let lock = Lock::take(&path.join(UNFINISHED_FILE))?;
        Ok(Self {
            path,
            finished: false,
            _lock: lock,
        })
    }

    /// Renames it. Its files are durable before.
    pub(super) fn finish(mut self, to: &Path, manifest: &Manifest) -> anyhow::Result<()> {
        manifest
            .write(&self.path)
            .with_context(|| format!("cannot write the manifest of {}", to.display()))?;
        RealDisk.rename_new(&self.path, to).with_context(|| {
            format!("cannot rename {} to {}", self.path.display(), to.display())
        })?;
        self.finished = true;
        sync_parent(to)?;
        let marker = to.join(UNFINISHED_FILE);
        RealDisk
            .remove(&marker)
            .and_then(|()| RealDisk.sync_dir(to))
            .with_context(|| format!("cannot remove {}", marker.display()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes what a killed backup left behind.
fn remove_left_over(path: &Path) -> anyhow::Result<()> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    // It was killed before it wrote anything. This removes an empty directory only.
    if fs::remove_dir(path).is_ok() {
        return Ok(());
    }
    let marker = path.join(UNFINISHED_FILE);
    if !exists(&marker)? {
        bail!(
            "cannot use {}: it exists and is not an incomplete backup; move it away",
            path.display()
        );
    }
    let _ended = Lock::take(&marker)?;
    tracing::info!("removing {}, an incomplete backup", path.display());
    fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))
}
