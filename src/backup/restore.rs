//! Restores a backup.
//!
//! Both locks of the target are held. The backup is checked against its manifest, and the target
//! against the backup (see [`target`](super::target)); all errors in them are reported before anything
//! is changed. Then these steps follow, each of which can be repeated:
//!
//! 1. `restore.json` is written. Other commands refuse to use the directory until it is removed.
//! 2. A target without `directory.json` gets the backup's. The file says from now on that a restore is incomplete,
//!    so that it is known even if `restore.json` is removed.
//! 3. Files whose content is the beginning of a longer file in the backup are moved to `quarantine/`.
//!    Step 5 adds the backup's file in their place.
//! 4. The active file is sealed, under the label of the directory in which it was written. In a
//!    target with another UUID, its segments become imported files and count once.
//! 5. Missing files are added; no file is replaced.
//! 6. The old database is moved to `quarantine/` with its `-wal`, and the backup's is copied.
//! 7. `directory.json` is written: the backup's UUID, and the number after the highest.
//! 8. `restore.json` is removed, and `directory.json` says that the restore is complete.
//!
//! Then the database has counted a subset of the events in the files, as after a crash, and the next
//! start applies the others. A target with events that only its old database has counted is an error.

mod files;
mod marker;
mod paths;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, bail};

use self::files::{copy_in, make_dirs, to_quarantine};
use self::marker::Marker;
pub(crate) use self::marker::backup_named_in;
use self::paths::{refuse_backup_path, refuse_place};
use super::manifest::{self, Entry, Fault, Manifest};
use super::target::{self, Plan};
use super::{checksum, exists, parent, refuse_backup, sync_parent};
use crate::data_dir::disk::{DirLock, Disk, Lock, RealDisk, with_suffix};
use crate::data_dir::segment::ACTIVE_FILE;
use crate::data_dir::{
    Catalog, DIRECTORY_FILE, Directory, PROCESS_LOCK, SERVE_LOCK, directory_tag,
};
use crate::processor;
use crate::store::{DATABASE_FILE, Database};
use crate::timestamp;

/// The result of a restore.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    /// Number of files added, without the database.
    pub(crate) added: u64,
    /// Number of segments of the backup that the target already had.
    pub(crate) present: u64,
    /// Path of the old database in the quarantine; `None` if there was none.
    pub(crate) old_database: Option<PathBuf>,
}

/// Restores `backup` to `data_dir`. `on_progress` gets the bytes checked or copied, and the total.
pub(crate) fn restore(
    backup: &Path,
    data_dir: &Path,
    on_progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Restored> {
    refuse_backup_path(backup)?;
    let manifest = Manifest::read(backup)?;
    refuse_place(backup, data_dir)?;
    let is_new = !exists(data_dir)?;
    fs::create_dir_all(data_dir)
        .with_context(|| format!("cannot create {}", data_dir.display()))?;
    if is_new {
        sync_parent(data_dir)?;
    }
    refuse_backup(data_dir)?;
    let _serve = Lock::take(&data_dir.join(SERVE_LOCK))?;
    let _process = Lock::take(&data_dir.join(PROCESS_LOCK))?;
    let held = DirLock::try_exclusive(data_dir)
        .with_context(|| format!("cannot lock {}", data_dir.display()))?;
    let Some(_held) = held else {
        bail!(
            "cannot lock {}: a `tallyline backup` or `tallyline verify` reads it; try again when it has ended",
            data_dir.display()
        );
    };
    let restore = Restore::prepare(backup, manifest, data_dir, on_progress)?;
    let mut restored = Restored::default();
    for step in STEPS {
        step(&restore, &mut restored, on_progress).with_context(|| {
            format!(
                "the restore of {} is incomplete; correct the cause and run `tallyline restore` again",
                data_dir.display()
            )
        })?;
    }
    Ok(restored)
}

struct Restore {
    backup: PathBuf,
    manifest: Manifest,
    data_dir: PathBuf,
    plan: Plan,
    /// The content of the backup's `directory.json`.
    directory: Directory,
    started: String,
}

type Step = fn(&Restore, &mut Restored, &mut dyn FnMut(u64, u64)) -> anyhow::Result<()>;

/// The steps in order. If a restore is killed after any of them, all are run again.
const STEPS: [Step; 8] = [
    Restore::mark,
    Restore::adopt,
    Restore::set_aside,
    Restore::seal,
    Restore::add_files,
    Restore::put_database,
    Restore::name,
    Restore::unmark,
];

impl Restore {
    /// Checks backup and target. Changes nothing.
    fn prepare(
        backup: &Path,
        manifest: Manifest,
        data_dir: &Path,
        on_progress: &mut dyn FnMut(u64, u64),
    ) -> anyhow::Result<Self> {
        let mut faults = Vec::new();
        let mut on_fault = |fault| match fault {
            Fault::Damaged(detail) => faults.push(detail),
            Fault::Extra(fault) => tracing::warn!("not restored: {fault}"),
        };
        manifest::check_files(&manifest, backup, &mut on_fault, on_progress)?;
        if let [first, rest @ ..] = &faults[..] {
            for fault in &faults {
                tracing::error!("{fault}");
            }
            let more = match rest.len() {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            bail!(
                "cannot restore {}: {first}{more}; nothing was changed. Use another backup",
                backup.display()
            );
        }
        let directory = Directory::read(&RealDisk, backup)
            .with_context(|| format!("cannot read {}", backup.join(DIRECTORY_FILE).display()))?
            .with_context(|| format!("{} is missing", backup.join(DIRECTORY_FILE).display()))?;
        let marker = Marker::read(data_dir);
        if let Some(marker) = &marker {
            marker.refuse_other(manifest.directory, data_dir)?;
        }
        let plan = target::plan(backup, &manifest, data_dir)?;
        let started = marker.map_or_else(
            || timestamp::rfc3339_millis(SystemTime::now()),
            |marker| marker.started,
        );
        Ok(Self {
            backup: backup.to_owned(),
            manifest,
            data_dir: data_dir.to_owned(),
            plan,
            directory,
            started,
        })
    }

    fn mark(&self, _: &mut Restored, _: &mut dyn FnMut(u64, u64)) -> anyhow::Result<()> {
        let marker = Marker {
            backup: self
                .backup
                .canonicalize()
                .unwrap_or_else(|_| self.backup.clone())
                .to_string_lossy()
                .into_owned(),
            started: self.started.clone(),
            directory: Some(self.manifest.directory),
        };
        marker.write(&self.data_dir)
    }

    fn adopt(&self, _: &mut Restored, _: &mut dyn FnMut(u64, u64)) -> anyhow::Result<()> {
        let backups = || self.directory.next(self.directory.number);
        let directory = self.plan.directory.unwrap_or_else(backups);
        self.write_directory(directory, true)
    }

    fn write_directory(&self, directory: Directory, restoring: bool) -> anyhow::Result<()> {
        let directory = Directory {
            restoring,
            ..directory
        };
        Ok(directory.write(&RealDisk, &self.data_dir)?)
    }

    fn set_aside(&self, _: &mut Restored, _: &mut dyn FnMut(u64, u64)) -> anyhow::Result<()> {
        for path in &self.plan.aside {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            to_quarantine(
                &self.data_dir,
                path,
                &format!("set-aside-{}-{name}", self.time()),
            )?;
        }
        Ok(())
    }

    fn seal(&self, _: &mut Restored, _: &mut dyn FnMut(u64, u64)) -> anyhow::Result<()> {
        let size = match RealDisk.size_at(&self.data_dir.join(ACTIVE_FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            size => size?,
        };
        if size == 0 {
            return Ok(());
        }
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        processor::seal(&self.data_dir, &Database::in_dir(&self.data_dir), &disk)
    }

    fn add_files(
        &self,
        restored: &mut Restored,
        on_progress: &mut dyn FnMut(u64, u64),
    ) -> anyhow::Result<()> {
        let bytes_total = self.plan.add.iter().map(|entry| entry.bytes).sum();
        let mut bytes = 0;
        restored.present = self.plan.present;
        for entry in &self.plan.add {
            let target = self.data_dir.join(&entry.path);
            bytes += entry.bytes;
            on_progress(bytes, bytes_total);
            if fs::symlink_metadata(&target).is_ok() {
                // In the quarantine. All other files were compared.
                continue;
            }
            make_dirs(&self.data_dir, parent(&target))?;
            self.copy(entry)?;
            restored.added += 1;
        }
        Ok(())
    }

    /// Copies one file of the backup to its path, where no file exists.
    fn copy(&self, entry: &Entry) -> anyhow::Result<()> {
        let dirs = (&*self.backup, &*self.data_dir);
        copy_in(dirs, &entry.path, entry.bytes, entry.checksum())
    }

    fn put_database(
        &self,
        restored: &mut Restored,
        _: &mut dyn FnMut(u64, u64),
    ) -> anyhow::Result<()> {
        let path = self.data_dir.join(DATABASE_FILE);
        if self.is_database_in_place(&path)? {
            return Ok(());
        }
        // The database first: without it, the other files are not read.
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let old = with_suffix(&path, suffix);
            if fs::symlink_metadata(&old).is_ok() {
                let name = format!("{DATABASE_FILE}-{}{suffix}", self.time());
                let kept = to_quarantine(&self.data_dir, &old, &name)?;
                restored.old_database.get_or_insert(kept);
            }
        }
        match &self.manifest.database {
            Some(entry) => self.copy(entry),
            None => Ok(()),
        }
    }

    /// Whether an interrupted restore has already copied the database.
    fn is_database_in_place(&self, path: &Path) -> anyhow::Result<bool> {
        let Some(entry) = &self.manifest.database else {
            return Ok(false);
        };
        for suffix in ["-wal", "-journal"] {
            if exists(&with_suffix(path, suffix))? {
                return Ok(false);
            }
        }
        let Ok(file) = RealDisk.open_read(path) else {
            return Ok(false);
        };
        let same = || -> io::Result<bool> {
            Ok(file.size()? == entry.bytes && checksum(&*file, entry.bytes)? == entry.checksum())
        };
        same().with_context(|| format!("cannot read {}", path.display()))
    }

    fn name(&self, _: &mut Restored, _: &mut dyn FnMut(u64, u64)) -> anyhow::Result<()> {
        let tag = directory_tag(self.directory.id);
        let catalog = Catalog::scan(&RealDisk, &self.data_dir, tag)
            .with_context(|| format!("cannot list {}", self.data_dir.display()))?;
        let here = Directory::read(&RealDisk, &self.data_dir)
            .ok()
            .flatten()
            .filter(|here| here.id == self.directory.id)
            .map_or(0, |here| here.number + u64::from(here.started));
        let number = self
            .directory
            .number
            .max(catalog.highest_number() + 1)
            .max(here);
        self.write_directory(self.directory.next(number), true)
    }

    fn unmark(&self, _: &mut Restored, _: &mut dyn FnMut(u64, u64)) -> anyhow::Result<()> {
        Marker::remove(&self.data_dir)?;
        let complete = Directory::of(&RealDisk, &self.data_dir)?
            .with_context(|| format!("{DIRECTORY_FILE} disappeared"))?;
        self.write_directory(complete, false)
    }

    /// The time at which the restore began, for file names.
    fn time(&self) -> String {
        self.started.replace(':', "-")
    }
}
