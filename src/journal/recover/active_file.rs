//! The file `events.jsonl` during recovery: opened and locked, created, or renamed to what it is.
//!
//! Each change of a name is durable when the call returns.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::data_dir::QUARANTINE_DIR;
use crate::data_dir::disk::{Disk, DiskFile};
use crate::data_dir::segment::{ACTIVE_FILE, Label, sealed_file_name};
use crate::journal::JournalError;
use crate::timestamp;

/// `events.jsonl` of a data directory, whether it exists or not.
pub(super) struct ActiveFile<'r> {
    disk: &'r dyn Disk,
    data_dir: &'r Path,
    path: PathBuf,
}

impl<'r> ActiveFile<'r> {
    pub(super) fn in_dir(disk: &'r dyn Disk, data_dir: &'r Path) -> Self {
        Self {
            disk,
            data_dir,
            path: data_dir.join(ACTIVE_FILE),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens and locks the file; `None` if it does not exist.
    pub(super) fn open(&self) -> Result<Option<Arc<dyn DiskFile>>, JournalError> {
        if self
            .disk
            .identity(&self.path)
            .map_err(self.io("examine"))?
            .is_none()
        {
            return Ok(None);
        }
        let file = self.disk.open(&self.path).map_err(self.io("open"))?;
        self.lock(&*file)?;
        Ok(Some(file))
    }

    pub(super) fn lock(&self, file: &dyn DiskFile) -> Result<(), JournalError> {
        if file.try_lock().map_err(self.io("lock"))? {
            return Ok(());
        }
        Err(JournalError::Locked {
            path: self.path.clone(),
        })
    }

    /// Creates and locks the file, which must not exist.
    pub(super) fn create(&self) -> Result<Arc<dyn DiskFile>, JournalError> {
        let file = self
            .disk
            .create_new(&self.path)
            .map_err(self.io("create"))?;
        self.lock(&*file)?;
        self.disk
            .sync_dir(self.data_dir)
            .map_err(JournalError::io("sync", self.data_dir))?;
        Ok(file)
    }

    pub(super) fn truncate(&self, file: &dyn DiskFile, end: u64) -> Result<(), JournalError> {
        file.set_len(end).map_err(self.io("truncate"))?;
        file.sync_data().map_err(self.io("sync"))
    }

    pub(super) fn remove(&self) -> Result<(), JournalError> {
        self.disk.remove(&self.path).map_err(self.io("remove"))
    }

    /// Renames it to a sealed name without length and checksum.
    pub(super) fn seal(&self, label: Label) -> Result<(), JournalError> {
        let name = sealed_file_name(label, SystemTime::now());
        self.rename(&self.data_dir.join(name), "seal")
    }

    /// Moves it to `quarantine/` and returns its new path.
    pub(super) fn set_aside(&self) -> Result<PathBuf, JournalError> {
        let quarantine = self.data_dir.join(QUARANTINE_DIR);
        let kept = self.free_name(&quarantine, "set-aside")?;
        self.rename(&kept, "set aside")?;
        self.disk
            .sync_dir(&quarantine)
            .map_err(JournalError::io("sync", &quarantine))?;
        Ok(kept)
    }

    /// Renames it so that the processor imports it, and returns its new path.
    pub(super) fn import(&self) -> Result<PathBuf, JournalError> {
        let imported = self.free_name(self.data_dir, "events_found")?;
        self.rename(&imported, "rename")?;
        Ok(imported)
    }

    /// `<stem>-<UTC time>.jsonl`; if that exists, a number from 2 on is added after the time.
    fn free_name(&self, dir: &Path, stem: &str) -> Result<PathBuf, JournalError> {
        let time = timestamp::rfc3339_millis(SystemTime::now()).replace(':', "-");
        let mut path = dir.join(format!("{stem}-{time}.jsonl"));
        let mut copies = 1;
        while self
            .disk
            .identity(&path)
            .map_err(JournalError::io("examine", &path))?
            .is_some()
        {
            copies += 1;
            path = dir.join(format!("{stem}-{time}-{copies}.jsonl"));
        }
        Ok(path)
    }

    fn rename(&self, to: &Path, action: &'static str) -> Result<(), JournalError> {
        self.disk
            .rename_new(&self.path, to)
            .map_err(self.io(action))?;
        self.disk
            .sync_dir(self.data_dir)
            .map_err(JournalError::io("sync", self.data_dir))
    }

    pub(super) fn io(&self, action: &'static str) -> impl FnOnce(io::Error) -> JournalError {
        JournalError::io(action, &self.path)
    }
}
