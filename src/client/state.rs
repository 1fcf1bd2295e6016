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

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::error::SendError;
use super::reading::{identity, kind_name};
use crate::data_dir::node_position::{NodePosition, NodePositionError};
use crate::data_dir::segment::Position;

/// The version that is written. Version 1 can be read: a single run, removed when it was complete.
const VERSION: u64 = 2;
/// Maximum number of runs in one file. There is one for each data directory; CI jobs make many.
const RUNS_MAX: usize = 100;

/// A position as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Written(pub(super) NodePosition);

impl TryFrom<String> for Written {
    type Error = NodePositionError;

    fn try_from(text: String) -> Result<Self, NodePositionError> {
        text.parse().map(Self)
    }
}

impl From<Written> for String {
    fn from(position: Written) -> Self {
        position.0.to_string()
    }
}

/// The last position that each node has acknowledged; as text, separated by commas. A server without a shared
/// database is one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Acknowledged(BTreeMap<Option<Uuid>, Position>);

impl Acknowledged {
    /// Adds a position.
    pub(super) fn add(&mut self, NodePosition { node, position }: NodePosition) {
        let last = self.0.entry(node).or_insert(position);
        *last = position.max(*last);
    }

    /// Adds the positions of another one.
    pub(super) fn add_all(&mut self, other: &Self) {
        other.positions().for_each(|position| self.add(position));
    }

    /// The positions, one of each node.
    pub(super) fn positions(&self) -> impl ExactSizeIterator<Item = NodePosition> {
        let positions = self.0.iter();
        positions.map(|(&node, &position)| NodePosition { node, position })
    }
}

impl TryFrom<String> for Acknowledged {
    type Error = NodePositionError;

    fn try_from(text: String) -> Result<Self, NodePositionError> {
        let mut all = Self::default();
        for position in text.split(',') {
            all.add(position.parse()?);
        }
        Ok(all)
    }
}

impl From<Acknowledged> for String {
    fn from(all: Acknowledged) -> Self {
        let positions = all.positions().map(|position| position.to_string());
        positions.collect::<Vec<_>>().join(",")
    }
}

/// The content of a state file.
#[derive(Serialize)]
struct Runs<'a> {
    version: u64,
    runs: Vec<&'a Record>,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Record {
    /// Prefix of the run's ids; empty: no ids.
    pub(super) run: String,
    /// Kind of ids: `run`, `source` or `none`.
    pub(super) ids: String,
    /// Path of the input, for information only; bytes that are not UTF-8 become U+FFFD.
    pub(super) input: String,
    /// Device of the input. With the inode it helps to find a rotated file; the content is checked.
    pub(super) device: u64,
    /// Inode of the input.
    pub(super) inode: u64,
    /// Number of lines from the beginning that were acknowledged, accepted or refused.
    pub(super) lines: u64,
    /// Their length in bytes (inflated).
    pub(super) bytes: u64,
    /// Number of events among them that were accepted.
    pub(super) accepted: u64,
    /// Number of lines among them that were refused.
    pub(super) refused: u64,
    /// Number of bytes that the checksum covers (raw for a file, inflated for stdin).
    pub(super) checked_bytes: u64,
    /// CRC-32 of those bytes.
    pub(super) checked_crc32: u32,
    /// Whether no line after `lines` was sent: the run ended orderly.
    pub(super) settled: bool,
    /// Id of the data directory; `None` if the server does not report it.
    #[serde(default)]
    pub(super) directory: Option<Uuid>,
    /// Base URL of the last send; empty if unknown (version 1).
    #[serde(default)]
    pub(super) to: String,
    /// Whether the whole input was acknowledged.
    #[serde(default)]
    pub(super) complete: bool,
    /// Length of the last line if it has no line end; it may have grown since.
    #[serde(default)]
    pub(super) open_bytes: u64,
    /// Whether `bytes` is inside a JSON array.
    #[serde(default)]
    pub(super) in_array: bool,
    /// End of the server's acknowledged events when the run began.
    #[serde(default)]
    pub(super) since: Option<Written>,
    /// The last positions that the server acknowledged to the run; `None` if there is none.
    #[serde(default)]
    pub(super) last: Option<Acknowledged>,
}

impl Record {
    /// Whether the run belongs to that data directory, or to that URL if the directory is unknown.
    fn is_of(&self, directory: Option<Uuid>, to: &str) -> bool {
        match (self.directory, directory) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => self.to.is_empty() || self.to == to,
        }
    }
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

/// The checksum of a file's first bytes. It is extended as the file is sent.
#[derive(Debug, Default)]
pub(super) struct Cover {
    checksum: crc32fast::Hasher,
    bytes: u64,
}

/// A file is covered this far ahead of sending, to save writes of the state.
const COVER_AHEAD_BYTES: u64 = 64 << 20;

impl Cover {
    /// Covers at least the first `end` bytes and some way ahead, or the whole file if it is shorter.
    pub(super) fn extend(&mut self, file: &File, end: u64) -> io::Result<()> {
        let end = (self.bytes + COVER_AHEAD_BYTES)
            .min(file.metadata()?.len())
            .max(end);
        self.extend_to(file, end)
    }

    /// Covers the first `end` bytes, or the whole file if it is shorter.
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

    /// Number of covered bytes, and their CRC-32.
    pub(super) fn checked(&self) -> (u64, u32) {
        (self.bytes, self.checksum.clone().finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lines: u64) -> Record {
        Record {
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
            directory: None,
            to: "http://h".into(),
            complete: false,
            open_bytes: 0,
            in_array: false,
            since: None,
            last: "42-1834".to_owned().try_into().ok(),
        }
    }

    const TO: &str = "http://h";

    fn any(_: &Record) -> bool {
        true
    }

    #[test]
    fn what_was_written_is_read_back_and_removed_is_gone() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let mut state = StateFile::open(&path).expect("open");
        assert_eq!(state.take(None, TO, any), None);
        state.write(&record(1)).expect("write");
        state.write(&record(2)).expect("write");
        drop(state);
        let mut state = StateFile::open(&path).expect("open");
        assert_eq!(state.take(None, TO, any), Some(record(2)));
        state.remove().expect("remove");
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0);
    }

    #[test]
    fn each_data_directory_has_its_own_run() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let [one, two] = [1, 2].map(|number| Some(Uuid::from_u128(number)));
        let of = |directory, lines| Record {
            directory,
            ..record(lines)
        };
        for (directory, lines) in [(one, 1), (two, 2), (one, 3)] {
            let mut state = StateFile::open(&path).expect("open");
            state.take(directory, TO, any);
            state.write(&of(directory, lines)).expect("write");
        }
        let mut state = StateFile::open(&path).expect("open");
        assert_eq!(state.take(one, "http://other", any), Some(of(one, 3)));
        state.remove().expect("remove");
        let mut state = StateFile::open(&path).expect("open");
        assert_eq!(state.take(one, "http://other", any), None);
        assert_eq!(state.take(two, "http://other", any), Some(of(two, 2)));
    }

    #[test]
    fn a_state_of_format_1_is_read() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let old = r#"{"version":1,"run":"20261122T064100Z-0badcafe","ids":"run","input":"/e.jsonl","device":1,"inode":2,"lines":3,"bytes":30,"accepted":2,"refused":1,"checkedBytes":90,"checkedCrc32":7,"settled":true}"#;
        std::fs::write(&path, old).expect("write");
        let mut state = StateFile::open(&path).expect("open");
        let read = state
            .take(Some(Uuid::from_u128(1)), TO, any)
            .expect("a run");
        assert_eq!((read.lines, read.complete), (3, false));
        assert_eq!(read.run, "20261122T064100Z-0badcafe");
    }

    #[test]
    fn nothing_written_leaves_nothing() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        drop(StateFile::open(&path).expect("open"));
        assert!(!path.exists());
    }

    #[test]
    fn a_second_sender_is_refused_also_after_a_write() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let mut state = StateFile::open(&path).expect("open");
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
    fn a_file_of_another_program_is_not_changed() {
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
