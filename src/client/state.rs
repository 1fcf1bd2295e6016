//! The state file of an input: its runs, their progress, and a checksum of what they sent.
//!
//! A small JSON file beside the input, replaced atomically (temporary name, fsync, rename). It holds
//! the runs for each data directory that the file was sent to, by the UUID of the directory. A complete
//! run of a file is kept, so that the same content is not sent again as new events; a run that needs no
//! such protection (stdin, `--source`, `--no-ids`) is removed. The state may be behind what was
//! acknowledged: lines that are then sent again have the same ids and are counted once. It is never
//! ahead.
//!
//! A continued run must have the same lines at the same numbers, or ids would belong to other events
//! than before. So the state also has a checksum that covers everything that may have been sent. It is
//! written **before** those lines are sent. (Stdin cannot be read ahead; its checksum covers what was
//! acknowledged.)
//!
//! Only one process uses it at a time: the file is locked (flock), and each new file is locked before
//! it replaces the old one.

mod record;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

pub(super) use self::record::{Acknowledged, Record, Written};
use super::error::SendError;
use super::reading::{identity, kind_name};

/// The version that is written. Version 1 can be read: a single run, removed when it was complete.
const VERSION: u64 = 2;
/// Maximum number of runs in one file. There is one for each data directory; CI jobs make many.
const RUNS_MAX: usize = 100;

/// The content of a state file.
#[derive(Serialize)]
struct Runs<'a> {
    version: u64,
    runs: Vec<&'a Record>,
}

/// The locked state file.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    /// The open file, which holds the lock.
    locked: File,
    /// Whether the directory entry is durable.
    entered: bool,
    /// Whether nothing was written yet; then the file is removed at the end.
    blank: bool,
    /// Runs of other data directories, oldest first.
    others: Vec<Record>,
}

impl Drop for StateFile {
    fn drop(&mut self) {
        if self.blank {
            let _stays = std::fs::remove_file(&self.path);
        }
    }
}

impl StateFile {
    /// Opens and locks the file.
    pub(super) fn open(path: &Path) -> Result<Self, SendError> {
        let failed = |source| SendError::State {
            path: path.to_owned(),
            source,
        };
        if let Ok(metadata) = std::fs::metadata(path)
            && !metadata.is_file()
        {
            return Err(SendError::StateNotAFile {
                path: path.to_owned(),
                kind: kind_name(metadata.file_type()),
            });
        }
        let mut locked = loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .map_err(failed)?;
            lock(&file, path)?;
            // The former owner of the lock may have replaced or removed the file that was opened.
            let opened = file.metadata().map_err(failed)?;
            match std::fs::metadata(path) {
                Ok(at_path) if identity(&at_path) == identity(&opened) => break file,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        };
        let mut text = String::new();
        locked.read_to_string(&mut text).map_err(failed)?;
        let others = match text.trim() {
            "" => Vec::new(),
            text => parse(text).map_err(|reason| SendError::StateUnreadable {
                path: path.to_owned(),
                reason,
            })?,
        };
        Ok(Self {
            path: path.to_owned(),
            locked,
            entered: false,
            blank: others.is_empty(),
            others,
        })
    }

    /// Removes and returns the latest run of that data directory that is `wanted`. The next write
    /// replaces it.
    pub(super) fn take(
        &mut self,
        directory: Option<Uuid>,
        to: &str,
        wanted: impl Fn(&Record) -> bool,
    ) -> Option<Record> {
        let mut found = self.others.iter();
        let at = found.rposition(|record| record.is_of(directory, to) && wanted(record))?;
        Some(self.others.remove(at))
    }

    /// Writes `record` together with the runs of other data directories.
    pub(super) fn write(&mut self, record: &Record) -> Result<(), SendError> {
        self.replace(Some(record))
            .map_err(|source| SendError::State {
                path: self.path.clone(),
                source,
            })
    }

    fn replace(&mut self, record: Option<&Record>) -> io::Result<()> {
        let surplus = (self.others.len() + 1).saturating_sub(RUNS_MAX);
        self.others.drain(..surplus);
        let runs = Runs {
            version: VERSION,
            runs: self.others.iter().chain(record).collect(),
        };
        let mut part = self.path.clone().into_os_string();
        part.push(".part");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&part)?;
        file.lock()?;
        serde_json::to_writer(&file, &runs)?;
        file.write_all(b"\n")?;
        file.sync_data()?;
        std::fs::rename(&part, &self.path)?;
        self.locked = file;
        self.blank = false;
        if !self.entered {
            let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
            File::open(dir.unwrap_or(Path::new(".")))?.sync_all()?;
            self.entered = true;
        }
        Ok(())
    }

    /// Removes the run, which is complete.
    pub(super) fn remove(mut self) -> Result<(), SendError> {
        let removed = if self.others.is_empty() {
            self.blank = false; // removed here, not on drop
            std::fs::remove_file(&self.path)
        } else {
            self.replace(None)
        };
        match removed {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(SendError::State {
                path: self.path.clone(),
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Time of the last write, by the file system's clock.
    pub(super) fn written(&self) -> Option<SystemTime> {
        self.locked.metadata().and_then(|file| file.modified()).ok()
    }

    /// Path of the state file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn lock(file: &File, path: &Path) -> Result<(), SendError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(SendError::StateBusy {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(SendError::State {
            path: path.to_owned(),
            source,
        }),
    }
}

fn parse(text: &str) -> Result<Vec<Record>, String> {
    let words = |error: serde_json::Error| error.to_string();
    let mut kept: serde_json::Map<String, Value> = serde_json::from_str(text).map_err(words)?;
    let version = kept.remove("version").and_then(|version| version.as_u64());
    match version {
        Some(1) => {
            let record = serde_json::from_value(Value::Object(kept)).map_err(words)?;
            Ok(vec![record])
        }
        Some(VERSION) => {
            let runs = kept.remove("runs").unwrap_or_default();
            serde_json::from_value(runs).map_err(words)
        }
        Some(version) => Err(format!(
            "it has version {version}; the supported version is {VERSION}"
        )),
        None => Err("it has no version".to_owned()),
    }
}
