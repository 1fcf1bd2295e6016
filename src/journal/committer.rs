//! The committer thread: group commit and rotation.
//!
//! This thread is the only one that writes `events.jsonl` and advances the durable end. It never
//! waits for the processor or for a client. If a write fails, it undoes the group or poisons the
//! journal. The numbers of the steps in comments are those of the parent module.

mod failure;
mod free_space;
mod rotate;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Waker;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crc32fast::Hasher;
use crossbeam_channel::RecvTimeoutError;
use memchr::memchr_iter;

use self::failure::is_full;
use self::free_space::FreeSpace;
use super::queue::{Command, Commands, QueuedBatch, Wakers};
use super::recover::Active;
use super::{AppendError, JournalConfig, JournalError, Shared};
use crate::data_dir::Directory;
use crate::data_dir::disk::{Disk, DiskFile, Identity};
use crate::data_dir::segment::{ACTIVE_FILE, Label, Position};
use crate::health::Health;

/// Once a group has this many bytes, no further append joins it. Writing 8 MiB takes about 80 ms at
/// 100 MB/s.
const GROUP_BYTES_MAX: usize = 8 << 20;
/// The delay before a failed rotation or creation is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

const JOURNAL: &str = "journal";
const ROTATION: &str = "rotation";
const DISK: &str = "disk";

pub(super) fn start(
    disk: Arc<dyn Disk>,
    data_dir: &Path,
    config: JournalConfig,
    active: Active,
    commands: Commands,
    shared: Arc<Shared>,
    health: Arc<Health>,
) -> Result<JoinHandle<Option<String>>, JournalError> {
    let now = Instant::now();
    let writer = ActiveWriter {
        first_line_at: (active.durable_end > 0).then_some(now),
        acknowledged: Position {
            segment: active.directory.number,
            offset: active.durable_end,
        },
        state: State::Open(active.file),
        directory: active.directory,
        durable_end: active.durable_end,
        checksum: active.checksum,
        path: data_dir.join(ACTIVE_FILE),
        data_dir_is: disk.identity(data_dir).ok().flatten(),
        data_dir: data_dir.to_owned(),
        group: Vec::new(),
        free_space: FreeSpace::default(),
        retry_at: None,
        checked_at: now,
        disk,
        config,
        shared,
        health,
    };
    Builder::new()
        .name("committer".into())
        .spawn(move || {
            let _watch = PanicWatch(Arc::clone(&writer.health));
            writer.run(&commands)
        })
        .map_err(JournalError::Thread)
}

/// Reports a panic of the thread in readiness. Queued appends are answered when they are dropped.
struct PanicWatch(Arc<Health>);

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.set(
                JOURNAL,
                "the committer thread panicked; no events are accepted until the server is restarted",
            );
        }
    }
}

struct ActiveWriter {
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    /// The identity of the data directory at start; `None` if it could not be determined.
    data_dir_is: Option<Identity>,
    path: PathBuf,
    config: JournalConfig,
    shared: Arc<Shared>,
    health: Arc<Health>,
    state: State,
    /// The content of `directory.json`.
    directory: Directory,
    durable_end: u64,
    /// CRC-32 of the bytes before the durable end, for the sealed file's name.
    checksum: Hasher,
    /// The position after the last acknowledged line.
    acknowledged: Position,
    /// When the active segment got its first line, for rotation by age; `None` while it is empty.
    first_line_at: Option<Instant>,
    /// The group's bytes, written in one call. The buffer is reused.
    group: Vec<u8>,
    free_space: FreeSpace,
    /// When to retry a failed rotation or creation; `None` if none failed.
    retry_at: Option<Instant>,
    checked_at: Instant,
}

enum State {
    /// Lines can be appended.
    Open(Arc<dyn DiskFile>),
    /// The last segment is sealed and the next could not be created yet; appends fail with this error.
    Uncreated(AppendError),
    /// Nothing is acknowledged until a restart. The text says why.
    Poisoned(String),
}

/// Unlocks the file explicitly: readers may keep it open, and the lock with it, after the writer ends.
impl Drop for ActiveWriter {
    fn drop(&mut self) {
        if let State::Open(file) = &self.state {
            file.unlock();
        }
    }
}

impl ActiveWriter {
    /// Runs until the shutdown; returns why the active segment is not sealed then.
    fn run(mut self, commands: &Commands) -> Option<String> {
        loop {
            let check = self.checked_at.checked_add(self.config.check_every);
            let received = match check.into_iter().chain(self.rotation_due()).min() {
                Some(due) => commands.recv_deadline(due),
                None => commands.recv().map_err(RecvTimeoutError::from),
            };
            match received {
                Ok(command) => {
                    if !self.serve(command, commands) {
                        return self.seal_at_stop();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.seal_at_stop(),
            }
            if self.checked_at.elapsed() >= self.config.check_every {
                self.check();
            }
            if self.rotation_due().is_some_and(|due| due <= Instant::now()) {
                let _in_readiness = match self.state {
                    State::Uncreated(_) => self.create_next(),
                    _ => self.rotate(),
                };
            }
        }
    }

    /// Executes a command and all appends that are queued behind it. Returns false for a shutdown.
    fn serve(&mut self, command: Command, commands: &Commands) -> bool {
        let mut waiters = Vec::new();
        let mut bytes = 0;
        let mut next = Some(command);
        // 1. Take all waiting appends, up to a bound.
        while let Some(Command::Append(pending)) = next {
            bytes += pending.batch.bytes.len();
            waiters.push(pending);
            next = if bytes < GROUP_BYTES_MAX {
                commands.try_recv().ok()
            } else {
                None
            };
        }
        if !waiters.is_empty() {
            self.commit(waiters);
        }
        match next {
            Some(Command::Rotate(pending)) => {
                let result = self.rotate().map(|()| self.acknowledged);
                let waker = pending.answer(result);
                waker.into_iter().for_each(Waker::wake);
                true
            }
            Some(Command::Shutdown) => false,
            Some(Command::Append(_)) | None => true,
        }
    }

    /// Writes the group, syncs it and answers each of its waiters.
    fn commit(&mut self, waiters: Vec<QueuedBatch>) {
        match self.write_group(&waiters) {
            Ok(()) => {
                // 5. Move the durable end, publish it, answer each waiter with its own position.
                let mut position = Position {
                    segment: self.directory.number,
                    offset: self.durable_end + self.label_bytes(),
                };
                // Counted in the written bytes, independently of the counts of the requests.
                let lines =
                    |pending: &QueuedBatch| memchr_iter(b'\n', &pending.batch.bytes).count();
                let lines = waiters.iter().map(lines).sum::<usize>() as u64;
                self.durable_end += self.group_bytes(&waiters);
                match &waiters[..] {
                    [alone] if self.group.is_empty() => self.checksum.update(&alone.batch.bytes),
                    _ => self.checksum.update(&self.group),
                }
                self.acknowledged = Position {
                    offset: self.durable_end,
                    ..position
                };
                self.first_line_at.get_or_insert_with(Instant::now);
                {
                    let mut tail = self.shared.tail();
                    tail.durable_end = self.durable_end;
                    tail.lines += lines;
                }
                let mut wakers = Wakers::default();
                for pending in waiters {
                    position.offset += pending.batch.bytes.len() as u64;
                    wakers.add(pending.answer(Ok(position)));
                }
                self.health.clear(JOURNAL);
            }
            Err(error) => {
                let mut wakers = Wakers::default();
                for pending in waiters {
                    wakers.add(pending.answer(Err(error.clone())));
                }
            }
        }
        if self.durable_end >= self.config.rotate_size && self.may_try() {
            let _in_readiness = self.rotate();
        }
    }

    /// Bytes that the label adds to the group: 0 except in the first group of a segment.
    fn label_bytes(&self) -> u64 {
        if self.durable_end == 0 {
            Label::BYTES as u64
        } else {
            0
        }
    }

    /// Bytes of the group in the file, with the label.
    fn group_bytes(&self, waiters: &[QueuedBatch]) -> u64 {
        let bytes = |pending: &QueuedBatch| pending.batch.bytes.len() as u64;
        waiters.iter().map(bytes).sum::<u64>() + self.label_bytes()
    }

    /// Steps 2 to 4. The error is the answer to every append of the group.
    fn write_group(&mut self, waiters: &[QueuedBatch]) -> Result<(), AppendError> {
        let file = match &self.state {
            State::Open(file) => Arc::clone(file),
            State::Uncreated(error) => return Err(error.clone()),
            State::Poisoned(reason) => return Err(AppendError::Failed(reason.clone())),
        };
        let bytes = self.group_bytes(waiters);
        self.reserve_space(bytes)?;
        self.check_alone(&*file)?;
        self.gather(waiters);
        let group = match waiters {
            [alone] if self.group.is_empty() => alone.batch.bytes.as_slice(),
            _ => self.group.as_slice(),
        };
        // 2. Write them at the durable end. 3. fdatasync.
        self.shared.note_disk_call(Some(Instant::now()));
        let written = file
            .write_all_at(group, self.durable_end)
            .and_then(|()| file.sync_data());
        self.shared.note_disk_call(None);
        if let Err(error) = written {
            return Err(self.undo(&*file, &error));
        }
        // 4. Still linked, with the expected length.
        match file.stat() {
            Ok(stat) if stat.links > 0 && stat.size == self.durable_end + bytes => {}
            Ok(_) => {
                return Err(self.poison(
                    "was removed or changed by another program while the server had it open",
                ));
            }
            Err(error) => return Err(self.poison(&format!("cannot be examined: {error}"))),
        }
        self.note_started(&*file)
    }

    /// Collects the group's bytes in `self.group`, with the label in the first group of a segment.
    /// `self.group` stays empty if the group is a single batch without a label, which is written as
    /// it is.
    fn gather(&mut self, waiters: &[QueuedBatch]) {
        self.group.clear();
        if self.durable_end > 0 && waiters.len() == 1 {
            return;
        }
        for pending in waiters {
            let mut bytes = pending.batch.bytes.as_slice();
            if self.durable_end == 0
                && self.group.is_empty()
                && let Some(end) = memchr::memchr(b'\n', bytes)
            {
                let (line, rest) = bytes.split_at(end);
                self.group.extend_from_slice(line);
                self.group
                    .extend_from_slice(&self.directory.label().encode());
                bytes = rest;
            }
            self.group.extend_from_slice(bytes);
        }
    }

    /// The check of step 2: no other program has written to the file, and this process holds the lock.
    /// Otherwise the journal is poisoned.
    fn check_alone(&mut self, file: &dyn DiskFile) -> Result<(), AppendError> {
        match file.size() {
            Ok(size) if size == self.durable_end => {}
            Ok(size) => {
                let what = format!(
                    "has {size} bytes instead of {}: another program wrote to it or truncated it",
                    self.durable_end
                );
                return Err(self.poison_before(&what));
            }
            Err(error) => return Err(self.poison_before(&format!("cannot be examined: {error}"))),
        }
        let Some(lock) = self.config.lock.as_ref() else {
            return Ok(());
        };
        let what = match lock.is_in_place() {
            Ok(true) => return Ok(()),
            Ok(false) => format!(
                "is no longer protected by the lock: {} was removed or replaced, so another server may run in this data directory",
                lock.path().display()
            ),
            Err(error) => format!(
                "may be in use by another server: cannot examine {}: {error}",
                lock.path().display()
            ),
        };
        Err(self.poison_before(&what))
    }

    /// The second part of step 4: writes `started` to `directory.json` before the first group of a
    /// segment is acknowledged.
    fn note_started(&mut self, file: &dyn DiskFile) -> Result<(), AppendError> {
        if self.directory.started {
            return Ok(());
        }
        let started = Directory {
            started: true,
            ..self.directory
        };
        // Opened before the replacement, so that a lack of file descriptors leaves nothing to undo.
        let opened = self.disk.open_dir(&self.data_dir);
        let replaced =
            opened.and_then(|dir| started.replace(&*self.disk, &self.data_dir).map(|()| dir));
        let dir = match replaced {
            Ok(dir) => dir,
            Err(error) => return Err(self.undo(file, &error)),
        };
        if let Err(error) = dir.sync() {
            return Err(self.poison(&format!(
                "was written, but its directory could not be synced: {error}"
            )));
        }
        self.directory = started;
        Ok(())
    }

    /// The periodic check: the path, the lock, the free space, and whether a failed disk works again.
    fn check(&mut self) {
        self.checked_at = Instant::now();
        match &self.state {
            State::Poisoned(_) => return,
            State::Uncreated(_) => {} // `rotation_due` schedules the retry.
            State::Open(file) => {
                let file = Arc::clone(file);
                if self.check_path().is_err() || self.check_alone(&*file).is_err() {
                    return;
                }
                // A write failed and none has followed: a sync shows whether the disk works again.
                if self.health.is_set(JOURNAL) {
                    match file.sync_data() {
                        Ok(()) => self.health.clear(JOURNAL),
                        Err(error) => tracing::debug!(%error, "the disk still fails"),
                    }
                }
            }
        }
        // A failure is reported in readiness; the next append checks again.
        let _in_readiness = self.measure_space();
    }
}
