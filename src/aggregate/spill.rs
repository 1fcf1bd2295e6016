//! Sums per user that do not fit into memory: sorted runs in temporary files.
//!
//! The caller's thread or a scanning thread writes a run once and reads it in order, as often as the range is
//! attempted. The holder of `process.lock` writes them in the data directory. A run is then removed when it is
//! dropped; after a crash its file is left, and the next holder removes it at its start
//! ([`remove_leftovers`]). Others write files without a name. Runs are never synced, because nothing in them
//! outlives the process.
//!
//! A file is a sequence of blocks. The length and the CRC-32 of each block are kept in memory, so that a
//! damaged file is an error, and never a wrong total.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::delta::Sums;
use super::sorted::{Source, UserBlock, merge};
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
        let (path, created) = match &self.disk {
            Some(disk) => {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                let path = self.dir.join(format!("totals-{number}{EXTENSION}"));
                let created = disk.create_new(&path);
                (path, created)
            }
            None => {
                let created = tempfile::tempfile_in(&self.dir);
                let created = created.map(|file| Arc::new(file) as Arc<dyn DiskFile>);
                (self.dir.clone(), created)
            }
        };
        match created {
            Ok(file) => Ok((path, file)),
            Err(source) => Err(SpillError { path, source }),
        }
    }

    /// Merges sorted sources into one run. If that fails, nothing of it is left.
    pub(super) fn write(&self, sources: io::Result<Vec<Source<'_>>>) -> Result<Run, SpillError> {
        let sources = sources.map_err(|source| SpillError {
            path: self.dir.clone(),
            source,
        })?;
        let (path, file) = self.create()?;
        let mut run = Run {
            disk: self.disk.clone(),
            path: path.clone(),
            file,
            blocks: Vec::new(),
            users: 0,
        };
        let mut bytes = Vec::new();
        let mut at = 0;
        let written = merge(sources, |block| {
            encode(&block, &mut bytes);
            run.file.write_all_at(&bytes, at)?;
            at += bytes.len() as u64;
            run.users += block.len();
            run.blocks.push(BlockInfo {
                length: bytes.len(),
                checksum: crc32fast::hash(&bytes),
            });
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

struct BlockInfo {
    length: usize,
    checksum: u32,
}

/// Users in ascending order in a file, each once. Dropping it removes the file.
pub(crate) struct Run {
    /// `None`: the file has no name.
    disk: Option<Arc<dyn Disk>>,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    blocks: Vec<BlockInfo>,
    users: usize,
}

impl Run {
    /// The number of users.
    pub(super) fn len(&self) -> usize {
        self.users
    }

    /// Reads it from the start.
    pub(super) fn read(&self) -> io::Result<Source<'_>> {
        let mut reader = RunReader {
            run: self,
            next_block: 0,
            offset: 0,
            bytes: Vec::new(),
            block: UserBlock::default(),
            index: 0,
            start: 0,
        };
        reader.load()?;
        Ok(Source::run(reader))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let Some(disk) = &self.disk else {
            return;
        };
        if let Err(error) = disk.remove(&self.path) {
            let path = self.path.display();
            tracing::warn!(%error, "cannot remove the temporary file {path}; the next start removes it");
        }
    }
}

/// A position in a run.
pub(super) struct RunReader<'r> {
    run: &'r Run,
    next_block: usize,
    /// Of the next block in the file.
    offset: u64,
    bytes: Vec<u8>,
    block: UserBlock,
    /// The next user of the block, and the start of its id.
    index: usize,
    start: usize,
}

impl RunReader<'_> {
    /// The user at this position; `None` at the end.
    #[inline]
    pub(super) fn next_user(&self) -> Option<(&str, &Sums)> {
        let (user_id, sums, _) = self.block.user_at(self.index, self.start)?;
        Some((user_id, sums))
    }

    /// Moves to the next user.
    #[inline]
    pub(super) fn advance(&mut self) -> io::Result<()> {
        if let Some((_, _, end)) = self.block.user_at(self.index, self.start) {
            self.start = end;
        }
        self.index += 1;
        if self.index >= self.block.len() {
            self.load()?;
        }
        Ok(())
    }

    /// Reads the next block; at the end, an empty one.
    fn load(&mut self) -> io::Result<()> {
        self.block = UserBlock::default();
        (self.index, self.start) = (0, 0);
        let Some(info) = self.run.blocks.get(self.next_block) else {
            return Ok(());
        };
        let failed = |error: io::Error| {
            let path = self.run.path.display();
            io::Error::new(
                error.kind(),
                format!("cannot read the temporary file {path}: {error}"),
            )
        };
        self.bytes.resize(info.length, 0);
        super::scan::read_exactly(&*self.run.file, self.offset, &mut self.bytes).map_err(failed)?;
        let is_intact = crc32fast::hash(&self.bytes) == info.checksum;
        let decoded = is_intact.then(|| decode(&self.bytes)).flatten();
        self.block = decoded.ok_or_else(|| {
            failed(io::Error::new(
                io::ErrorKind::InvalidData,
                "it was changed by another program",
            ))
        })?;
        self.offset += info.length as u64;
        self.next_block += 1;
        Ok(())
    }
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
                let sources = runs.iter().map(Run::read).collect();
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

fn encode(block: &UserBlock, out: &mut Vec<u8>) {
    out.clear();
    for (user_id, sums) in block.iter() {
        put(out, user_id.len() as u128);
        out.extend_from_slice(user_id.as_bytes());
        put(out, sums.added());
        put(out, sums.subtracted());
        put(out, u128::from(sums.events()));
    }
}

/// `None` if the bytes are not from [`encode`].
fn decode(mut bytes: &[u8]) -> Option<UserBlock> {
    let mut block = UserBlock::default();
    while !bytes.is_empty() {
        let length = usize::try_from(get(&mut bytes)?).ok()?;
        let (user_id, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        let (added, subtracted) = (get(&mut bytes)?, get(&mut bytes)?);
        let events = u64::try_from(get(&mut bytes)?).ok()?;
        let sums = Sums::of(added, subtracted, events);
        block.push(std::str::from_utf8(user_id).ok()?, &sums);
    }
    Some(block)
}

/// LEB128: seven bits a byte, the lowest first.
fn put(out: &mut Vec<u8>, mut value: u128) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

#[inline]
fn get(bytes: &mut &[u8]) -> Option<u128> {
    let mut value = 0;
    for shift in (0..128).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u128::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
