//! The state of an unfinished run: its name, how far it was acknowledged, and what it began with.
//!
//! A small JSON file beside the input, replaced as a whole (temporary name, fsync, rename) and
//! removed when the run is complete. It may lag behind what was acknowledged: what is then sent
//! again has the same ids and is counted once. It never runs ahead.
//!
//! Whoever goes on with a run must have the same lines at the same numbers, or ids would name
//! other events than before. So the state also holds a checksum that covers everything that may
//! have been sent: it is written **before** those lines are (for stdin, which can't be read ahead,
//! it covers what was acknowledged).
//!
//! One process at a time: the file is locked (flock), and each new file is locked before it takes
//! the old one's place.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::SendError;
use super::input::identity;

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Record {
    /// Of this format: 1.
    pub(super) version: u32,
    /// What the ids are made of besides the line's number; empty: no ids.
    pub(super) run: String,
    /// How they came about: `run`, `source` or `none`.
    pub(super) ids: String,
    /// The file, for people who find this one.
    pub(super) input: PathBuf,
    /// Device of the file: to find it again after a rotation, never to trust it.
    pub(super) device: u64,
    /// Inode of the file.
    pub(super) inode: u64,
    /// The first so many lines were acknowledged, accepted or refused.
    pub(super) lines: u64,
    /// They are so many bytes (inflated).
    pub(super) bytes: u64,
    /// Events among them that were accepted.
    pub(super) accepted: u64,
    /// Lines among them that were refused.
    pub(super) refused: u64,
    /// How many bytes of the input (raw for a file, inflated for stdin) the checksum covers.
    pub(super) checked_bytes: u64,
    /// CRC-32 of them.
    pub(super) checked_crc32: u32,
    /// Whether nothing beyond `lines` was sent: a clean stop, not a crash.
    pub(super) settled: bool,
}

/// The locked state file.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    /// Holds the lock.
    locked: File,
    /// Whether the directory's entry is durable.
    entered: bool,
}

impl StateFile {
    /// Opens and locks it, with the unfinished run it holds, if any.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Record>), SendError> {
        let failed = |source| SendError::State {
            path: path.to_owned(),
            source,
        };
        let mut locked = loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .map_err(failed)?;
            lock(&file, path)?;
            // The holder before us may have replaced or removed what we opened.
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
        let record = match text.trim() {
            "" => None,
            text => Some(parse(text).map_err(|reason| SendError::StateUnreadable {
                path: path.to_owned(),
                reason,
            })?),
        };
        let state = Self {
            path: path.to_owned(),
            locked,
            entered: false,
        };
        Ok((state, record))
    }

    /// Puts `record` in the place of what was there.
    pub(super) fn write(&mut self, record: &Record) -> Result<(), SendError> {
        self.replace(record).map_err(|source| SendError::State {
            path: self.path.clone(),
            source,
        })
    }

    fn replace(&mut self, record: &Record) -> io::Result<()> {
        let mut part = self.path.clone().into_os_string();
        part.push(".part");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&part)?;
        file.lock()?;
        serde_json::to_writer(&file, record)?;
        file.write_all(b"\n")?;
        file.sync_data()?;
        std::fs::rename(&part, &self.path)?;
        self.locked = file;
        if !self.entered {
            let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
            File::open(dir.unwrap_or(Path::new(".")))?.sync_all()?;
            self.entered = true;
        }
        Ok(())
    }

    /// The run is complete.
    pub(super) fn remove(self) -> Result<(), SendError> {
        match std::fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(SendError::State {
                path: self.path,
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Where it is.
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

fn parse(text: &str) -> Result<Record, String> {
    let record: Record = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if record.version != 1 {
        return Err(format!("its version is {}, ours is 1", record.version));
    }
    Ok(record)
}

/// The checksum of a file's first bytes, extended as the file is sent.
#[derive(Debug, Default)]
pub(super) struct Cover {
    checksum: crc32fast::Hasher,
    bytes: u64,
}

/// How far ahead of the sending a file is covered, so that few writes of the state do.
const COVER_AHEAD_BYTES: u64 = 64 << 20;

impl Cover {
    /// Covers the first `end` bytes, or all if there are fewer, and some way ahead.
    pub(super) fn extend(&mut self, file: &File, end: u64) -> io::Result<()> {
        let end = (self.bytes + COVER_AHEAD_BYTES)
            .min(file.metadata()?.len())
            .max(end);
        self.extend_to(file, end)
    }

    /// Covers the first `end` bytes, or all if there are fewer.
    pub(super) fn extend_to(&mut self, file: &File, end: u64) -> io::Result<()> {
        let mut block = vec![0; 1 << 18];
        while self.bytes < end {
            let want = usize::try_from(end - self.bytes)
                .unwrap_or(usize::MAX)
                .min(block.len());
            match file.read_at(&mut block[..want], self.bytes) {
                Ok(0) => break,
                Ok(count) => {
                    self.checksum.update(&block[..count]);
                    self.bytes += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// How many bytes are covered, and their CRC-32.
    pub(super) fn checked(&self) -> (u64, u32) {
        (self.bytes, self.checksum.clone().finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lines: u64) -> Record {
        Record {
            version: 1,
            run: "r".into(),
            ids: "run".into(),
            input: "events.jsonl".into(),
            device: 1,
            inode: 2,
            lines,
            bytes: lines * 10,
            accepted: lines,
            refused: 0,
            checked_bytes: 7,
            checked_crc32: 8,
            settled: false,
        }
    }

    #[test]
    fn what_was_written_is_read_back_and_removed_is_gone() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let (mut state, none) = StateFile::open(&path).expect("open");
        assert_eq!(none, None);
        state.write(&record(1)).expect("write");
        state.write(&record(2)).expect("write");
        drop(state);
        let (state, read) = StateFile::open(&path).expect("open");
        assert_eq!(read, Some(record(2)));
        state.remove().expect("remove");
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0);
    }

    #[test]
    fn a_second_sender_is_refused_also_after_a_write() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let (mut state, _) = StateFile::open(&path).expect("open");
        assert!(matches!(
            StateFile::open(&path),
            Err(SendError::StateBusy { .. })
        ));
        state.write(&record(1)).expect("write");
        assert!(matches!(
            StateFile::open(&path),
            Err(SendError::StateBusy { .. })
        ));
    }

    #[test]
    fn somebody_elses_file_is_left_alone() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        std::fs::write(&path, "not ours").expect("write");
        assert!(matches!(
            StateFile::open(&path),
            Err(SendError::StateUnreadable { .. })
        ));
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "not ours");
    }

    #[test]
    fn a_cover_grows_with_its_file() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("f");
        std::fs::write(&path, "abcdef").expect("write");
        let file = File::open(&path).expect("open");
        let mut cover = Cover::default();
        cover.extend_to(&file, 3).expect("read");
        assert_eq!(cover.checked(), (3, crc32fast::hash(b"abc")));
        cover.extend(&file, 4).expect("read");
        assert_eq!(cover.checked(), (6, crc32fast::hash(b"abcdef")));
        cover.extend(&file, 100).expect("read");
        assert_eq!(cover.checked().0, 6);
    }
}
