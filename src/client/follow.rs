//! A growing file: read from where it ended, and identified by its content.
//!
//! Owned by the thread that reads. A followed file can be rotated in two ways. It may be **renamed**:
//! then the open file is read to its end, and the new file at its path is opened. Or it may be
//! **copied and truncated** (logrotate's `copytruncate`), and may be as long as before, or longer, at
//! the next read. Therefore after each read its first and last bytes are compared with those read
//! before. If they differ, the bytes just read are discarded, and the rest of the former content is
//! read from the copy, if that is in the same directory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::reading::{BLOCK_BYTES, Filled, identity, open_regular};
use crate::shutdown::Shutdown;

/// Interval at which a followed file is checked.
pub(super) const POLL: Duration = Duration::from_millis(200);
/// Number of bytes kept of the beginning and of the end of what was read.
const WINDOW_BYTES: usize = 1 << 14;

/// The open file, and what was read of it.
pub(super) struct Growing {
    file: File,
    /// Whether `Idle` was returned since the last bytes; if so, the next read waits first.
    idle: bool,
    /// The file is the copy of a truncated file: it is read to its end, and then reading ends.
    is_copy: bool,
    seen: Content,
    /// A copy is created after this time. An older file with the same beginning is not the copy.
    since: SystemTime,
}

/// Length, beginning and end of what was read.
#[derive(Clone, Default)]
struct Content {
    bytes: u64,
    checksum: crc32fast::Hasher,
    /// The first bytes, up to [`WINDOW_BYTES`].
    first: Vec<u8>,
    /// The last bytes, up to [`WINDOW_BYTES`].
    last: Vec<u8>,
}

impl Content {
    fn add(&mut self, block: &[u8]) {
        self.bytes += block.len() as u64;
        self.checksum.update(block);
        let room = WINDOW_BYTES - self.first.len();
        self.first
            .extend_from_slice(&block[..block.len().min(room)]);
        self.last
            .extend_from_slice(&block[block.len().saturating_sub(WINDOW_BYTES)..]);
        let surplus = self.last.len().saturating_sub(WINDOW_BYTES);
        self.last.drain(..surplus);
    }

    /// Whether the windows at the beginning and the end are still the same in `file`.
    fn is_in(&self, file: &File) -> io::Result<bool> {
        let holds = |expected: &[u8], at: u64| -> io::Result<bool> {
            let mut found = vec![0; expected.len()];
            let count = read_up_to(file, at, &mut found)?;
            Ok(count == found.len() && found == expected)
        };
        Ok(holds(&self.first, 0)? && holds(&self.last, self.bytes - self.last.len() as u64)?)
    }

    /// Whether `file` begins with the whole content, compared byte by byte.
    fn is_all_in(&self, file: &File) -> io::Result<bool> {
        if file.metadata()?.len() < self.bytes || !self.is_in(file)? {
            return Ok(false);
        }
        let found = Self::of(file, self.bytes)?;
        Ok(found.bytes == self.bytes
            && found.checksum.finalize() == self.checksum.clone().finalize())
    }

    /// The content of the first `bytes` of `file`, or of all of it if it is shorter.
    fn of(file: &File, bytes: u64) -> io::Result<Self> {
        let mut content = Self::default();
        let mut block = vec![0; BLOCK_BYTES];
        while content.bytes < bytes {
            let left = usize::try_from(bytes - content.bytes).unwrap_or(usize::MAX);
            let want = left.min(block.len());
            let count = read_up_to(file, content.bytes, &mut block[..want])?;
            if count == 0 {
                break;
            }
            content.add(&block[..count]);
        }
        Ok(content)
    }
}

impl Growing {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            idle: false,
            is_copy: false,
            seen: Content::default(),
            since: file_time(),
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Skips the first `bytes`; false if the file is shorter.
    pub(super) fn skip(&mut self, bytes: u64) -> io::Result<bool> {
        self.seen = Content::of(&self.file, bytes)?;
        Ok(self.seen.bytes == bytes)
    }

    /// Appends the next bytes to `out`. Returns `End` when all is read and the path names another
    /// file, or when the file was truncated and no copy is found.
    pub(super) fn fill(
        &mut self,
        path: &Path,
        raw: &AtomicU64,
        stop: &Shutdown,
        out: &mut Vec<u8>,
    ) -> io::Result<Filled> {
        // Checked before the read, so that the read covers everything written before the rename.
        let moved = self.idle && !self.is_copy && {
            if stop.wait(POLL) {
                return Ok(Filled::End);
            }
            match std::fs::metadata(path) {
                Ok(at_path) => identity(&at_path) != identity(&self.file.metadata()?),
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            }
        };
        let start = out.len();
        out.resize(start + BLOCK_BYTES, 0);
        let read = read_up_to(&self.file, self.seen.bytes, &mut out[start..]);
        out.truncate(start + *read.as_ref().unwrap_or(&0));
        let count = read?;
        // Checked after the read, so that a truncation before or during the read is noticed.
        if !self.is_copy && !self.seen.is_in(&self.file)? {
            out.truncate(start);
            return self.replaced(path);
        }
        self.seen.add(&out[start..]);
        raw.store(self.seen.bytes, Ordering::Relaxed);
        self.idle = count == 0;
        match count {
            0 if moved || self.is_copy => Ok(Filled::End),
            0 => Ok(Filled::Idle),
            _ => Ok(Filled::Some),
        }
    }

    /// The file was truncated. Continues with its copy, if there is one.
    fn replaced(&mut self, path: &Path) -> io::Result<Filled> {
        let Some(copy) = self.copy(path)? else {
            tracing::warn!(
                "{} was truncated and is read again from its beginning; no copy of it is in its directory: lines added just before the truncation are not sent",
                path.display()
            );
            return Ok(Filled::End);
        };
        tracing::warn!(
            "{} was truncated; its remaining lines are read from its copy, then it is read again from its beginning",
            path.display()
        );
        self.file = copy;
        self.is_copy = true;
        Ok(Filled::Idle)
    }

    /// Finds a file in the directory of `path` that was created since the file was opened and begins
    /// with everything that was read.
    fn copy(&self, path: &Path) -> io::Result<Option<File>> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let own = identity(&self.file.metadata()?);
        for entry in std::fs::read_dir(dir.unwrap_or(Path::new(".")))?.flatten() {
            let fits = entry.metadata().is_ok_and(|metadata| {
                metadata.is_file()
                    && metadata.len() >= self.seen.bytes
                    && metadata.created().is_ok_and(|at| at >= self.since)
                    && identity(&metadata) != own
            });
            // A file that cannot be read is skipped.
            if fits
                && let Ok(file) = open_regular(&entry.path())
                && self.seen.is_all_in(&file).unwrap_or(false)
            {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }
}

/// The time by the coarse clock that file times come from. The exact time may be some milliseconds
/// later than the creation time of a file created afterwards.
fn file_time() -> SystemTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Duration::try_from(now).map_or_else(|_| SystemTime::now(), |since| UNIX_EPOCH + since)
}

/// Reads at `offset` until `out` is full or the file ends. Returns the number of bytes.
pub(super) fn read_up_to(file: &File, offset: u64, out: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < out.len() {
        match file.read_at(&mut out[length..], offset + length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
