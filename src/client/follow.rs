//! A file that grows: read on where it ended, and recognised by its content.
//!
//! Owned by the thread that reads. Two things may happen to a followed file. It may be **renamed**:
//! then the open file is read to its end, and another one lies at its path. Or it may be **copied
//! and cut short** (logrotate's `copytruncate`), and may by the next look be as long as before and
//! longer. Its length says nothing, so after each read its first and last bytes are compared with
//! those that were read before. Where they differ, what was just read is thrown away, and the rest
//! of the former content is read from the copy, if it lies in the same directory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::input::{BLOCK_BYTES, Filled, POLL, identity, open_regular};
use crate::shutdown::Shutdown;

/// Bytes kept of the beginning and of the end of what was read.
const WINDOW_BYTES: usize = 1 << 14;

/// The open file and what is known of its content.
pub(super) struct Growing {
    file: File,
    /// Whether `Idle` was said since the last bytes: then it is time to wait.
    idle: bool,
    /// It is a copy of what was followed: it is read to its end, and no more is waited for.
    is_copy: bool,
    seen: Content,
    /// A copy of it is younger than this: older files that begin alike are not taken for one.
    since: SystemTime,
}

/// What was read so far.
#[derive(Clone, Default)]
struct Content {
    bytes: u64,
    checksum: crc32fast::Hasher,
    /// Its first bytes.
    first: Vec<u8>,
    /// Its last bytes.
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

    /// Whether `file` still begins with it, by its first and last bytes.
    fn is_in(&self, file: &File) -> io::Result<bool> {
        let holds = |expected: &[u8], at: u64| -> io::Result<bool> {
            let mut found = vec![0; expected.len()];
            let count = read_up_to(file, at, &mut found)?;
            Ok(count == found.len() && found == expected)
        };
        Ok(holds(&self.first, 0)? && holds(&self.last, self.bytes - self.last.len() as u64)?)
    }

    /// Whether `file` begins with it, byte by byte.
    fn is_all_in(&self, file: &File) -> io::Result<bool> {
        if file.metadata()?.len() < self.bytes || !self.is_in(file)? {
            return Ok(false);
        }
        let found = Self::of(file, self.bytes)?;
        Ok(found.bytes == self.bytes
            && found.checksum.finalize() == self.checksum.clone().finalize())
    }

    /// The first `bytes` of `file`, or fewer if there are no more.
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

    /// Goes past the first `bytes`; false if there are not so many.
    pub(super) fn skip(&mut self, bytes: u64) -> io::Result<bool> {
        self.seen = Content::of(&self.file, bytes)?;
        Ok(self.seen.bytes == bytes)
    }

    /// Appends the next bytes to `out`. It ends where its path has come to lead to another file, or
    /// its content was replaced, and only once all that there was has been read.
    pub(super) fn fill(
        &mut self,
        path: &Path,
        raw: &AtomicU64,
        stop: &Shutdown,
        out: &mut Vec<u8>,
    ) -> io::Result<Filled> {
        // Looked at before the read: what was written until then is read below.
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
        // After the read: what is there now was there then.
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

    /// The file was cut short, whatever it holds by now: what it held is in its copy.
    fn replaced(&mut self, path: &Path) -> io::Result<Filled> {
        let Some(copy) = self.copy(path)? else {
            tracing::warn!(
                "{} was cut short and is begun anew; no copy of it lies in its directory: lines added to it just before are not sent from here",
                path.display()
            );
            return Ok(Filled::End);
        };
        tracing::warn!(
            "{} was cut short; its rest is read from its copy, then it is begun anew",
            path.display()
        );
        self.file = copy;
        self.is_copy = true;
        Ok(Filled::Idle)
    }

    /// A file beside `path`, made since it was opened, that begins with all that was read.
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
            // One that cannot be read is not the copy, or is of no use.
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

/// Now, by the clock that files get their times from: it stands still for some milliseconds, so that
/// the exact time may be later than that of a file made afterwards.
fn file_time() -> SystemTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Duration::try_from(now).map_or_else(|_| SystemTime::now(), |since| UNIX_EPOCH + since)
}

/// Reads at `offset` until `out` is full or the file ends.
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
