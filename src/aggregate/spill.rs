//! Sums per user that do not fit into memory: sorted runs in temporary files.
//!
//! The caller's thread or a scanning thread writes a run once and reads it in order, as often as the range is
//! attempted. The holder of `process.lock` writes them in the data directory. A run is then removed when it is
//! dropped; after a crash its file is left, and the next holder removes it at its start
//! ([`remove_leftovers`]). Others write files without a name. Runs are never synced, because nothing in them
//! outlives the process.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::merge::{SortedSource, merge};
use super::run::Run;
use crate::data_dir::disk::{Disk, DiskFile};

/// The number of runs of a level that are merged into one of the next level. A merge reads from one block of
/// each, and there are rarely more than three levels.
const FAN_IN: usize = 16;
/// The extension of the files.
const EXTENSION: &str = ".spill";

/// Where runs are written.
#[derive(Clone)]
pub(crate) struct SpillDir {
    /// `None`: the files have no name.
    disk: Option<Arc<dyn Disk>>,
    dir: PathBuf,
    /// The number in the name of the next file.
    next: Arc<AtomicU64>,
}

impl SpillDir {
    /// Runs go to files `totals-N.spill` in `dir`.
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path) -> Self {
        Self {
            disk: Some(disk),
            dir: dir.to_owned(),
            next: Arc::default(),
        }
    }

    /// Runs go to files without a name in the directory in which SQLite creates its temporary files: the
    /// environment variables `SQLITE_TMPDIR` and `TMPDIR`, else `/var/tmp` or `/tmp`.
    /// <https://sqlite.org/tempfiles.html#temporary_file_storage_locations>
    pub(crate) fn unnamed() -> Self {
        let named = ["SQLITE_TMPDIR", "TMPDIR"].map(std::env::var_os);
        let named = named.into_iter().flatten().map(PathBuf::from);
        let mut places = named.chain([PathBuf::from("/var/tmp")]);
        Self {
            disk: None,
            dir: places
                .find(|place| place.is_dir())
                .unwrap_or_else(std::env::temp_dir),
            next: Arc::default(),
        }
    }

    /// Whether a scan must fail if a run cannot be written: without it, a scan that has to be complete would
    /// exceed its memory.
    pub(super) fn is_required(&self) -> bool {
        self.disk.is_none()
    }

    /// Creates the file of a run. Returns its path: that of the directory if it has no name.
    fn create(&self) -> Result<(PathBuf, Arc<dyn DiskFile>), SpillError> {
        let (path, created) = if let Some(disk) = &self.disk {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let path = self.dir.join(format!("totals-{number}{EXTENSION}"));
            let created = disk.create_new(&path);
            (path, created)
        } else {
            let created = tempfile::tempfile_in(&self.dir);
            let created = created.map(|file| Arc::new(file) as Arc<dyn DiskFile>);
            (self.dir.clone(), created)
        };
        match created {
            Ok(file) => Ok((path, file)),
            Err(source) => Err(SpillError { path, source }),
        }
    }

    /// Merges sorted sources into one run. If that fails, nothing of it is left.
    pub(super) fn write(
        &self,
        sources: io::Result<Vec<SortedSource<'_>>>,
    ) -> Result<Run, SpillError> {
        let sources = sources.map_err(|source| SpillError {
            path: self.dir.clone(),
            source,
        })?;
        let (path, file) = self.create()?;
        let mut run = Run::new(self.disk.clone(), path.clone(), file);
        let mut buffer = Vec::new();
        let written = merge(sources, |block| {
            run.push(&block, &mut buffer)?;
            Ok(true)
        });
        match written {
            Ok(()) => Ok(run),
            Err(source) => Err(SpillError { path, source }),
        }
    }
}

/// A run could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write a temporary file ({}): {source}", path.display())]
pub(crate) struct SpillError {
    path: PathBuf,
    source: io::Error,
}

impl From<SpillError> for io::Error {
    fn from(error: SpillError) -> Self {
        Self::new(error.source.kind(), error)
    }
}

/// Removes the runs that a crashed process left in `dir`. The caller holds `process.lock`.
pub(crate) fn remove_leftovers(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    for (name, is_dir) in disk.list(dir)? {
        if !is_dir && is_run(&name) {
            match disk.remove(&dir.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether a file of this name in the data directory is a run.
fn is_run(name: &str) -> bool {
    name.strip_prefix("totals-")
        .and_then(|name| name.strip_suffix(EXTENSION))
        .is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        })
}

/// The runs of a range, and how often each was merged.
#[derive(Default)]
pub(super) struct Runs {
    levels: Vec<Vec<Run>>,
}

impl Runs {
    /// Adds a new run. If there are [`FAN_IN`] of a level, they are merged; if that fails, they are kept.
    pub(super) fn push(&mut self, run: Run, dir: &SpillDir) -> Result<(), SpillError> {
        let mut next = Some(run);
        let mut level = 0;
        while let Some(run) = next.take() {
            if self.levels.len() <= level {
                self.levels.push(Vec::new());
            }
            let runs = &mut self.levels[level];
            runs.push(run);
            if runs.len() >= FAN_IN {
                let sources = runs.iter().map(SortedSource::run).collect();
                next = Some(dir.write(sources)?);
                runs.clear();
            }
            level += 1;
        }
        Ok(())
    }

    /// The number of users, those in several runs counted several times.
    pub(super) fn users(&self) -> usize {
        self.levels.iter().flatten().map(Run::len).sum()
    }

    pub(super) fn into_all(self) -> Vec<Run> {
        self.levels.into_iter().flatten().collect()
    }
}
