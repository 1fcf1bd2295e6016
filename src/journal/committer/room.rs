//! Disk space: how many bytes may be appended without using the reserve or exceeding `--max-disk`.
//!
//! The committer thread asks the file system at most once a second, and counts down what it appends in
//! between. If the free space cannot be determined, events are accepted until a write fails, unless
//! `--max-disk` is set.

use std::io;
use std::time::{Duration, Instant};

use super::super::AppendError;
use super::{DISK, Writer};

/// The maximum age of the free space figure.
const ROOM_CHECK_EVERY: Duration = Duration::from_secs(1);
/// The maximum age while there is too little space, so that ingestion resumes soon after space was freed.
const FULL_CHECK_EVERY: Duration = Duration::from_millis(50);

/// The bytes that may still be appended, as of the last check.
#[derive(Default)]
pub(super) struct Room {
    bytes: u64,
    pub(super) checked_at: Option<Instant>,
}

impl Writer {
    /// Subtracts `bytes` from the available space, or fails if there is too little.
    pub(super) fn take_room(&mut self, bytes: u64) -> Result<(), AppendError> {
        let age_max = if self.room.bytes < bytes {
            FULL_CHECK_EVERY
        } else {
            ROOM_CHECK_EVERY
        };
        if self
            .room
            .checked_at
            .is_none_or(|at| at.elapsed() >= age_max)
        {
            self.check_room()?;
        }
        if self.room.bytes < bytes {
            let reason = self.no_room();
            self.health.set(DISK, &reason);
            if self.config.disk_bytes_max.is_some() {
                self.disk.count_again();
            }
            return Err(AppendError::DiskFull(reason));
        }
        self.room.bytes -= bytes;
        Ok(())
    }

    /// Asks the file system for the free space. If it fails, readiness says so, and events are still
    /// accepted: a write fails when the disk is full. With `--max-disk` nothing is accepted then,
    /// because the bound could not be kept.
    pub(super) fn check_room(&mut self) -> Result<(), AppendError> {
        let unknown = |error: io::Error| {
            format!(
                "cannot determine the free space of the disk of {}: {error}",
                self.data_dir.display()
            )
        };
        let mut trouble = None;
        let mut room = match self.disk.free_bytes(&self.data_dir) {
            Ok(free) => free.saturating_sub(self.config.disk_reserve_bytes),
            Err(error) => {
                trouble = Some(format!(
                    "{}; events are accepted until a write fails",
                    unknown(error)
                ));
                u64::MAX
            }
        };
        if let Some(max) = self.config.disk_bytes_max {
            match self.disk.used_bytes(&self.data_dir) {
                Ok(used) => room = room.min(max.saturating_sub(used)),
                Err(error) => {
                    let reason = format!("{}; --max-disk cannot be enforced", unknown(error));
                    self.health.set(DISK, &reason);
                    self.disk.count_again();
                    return Err(AppendError::Failed(reason));
                }
            }
        }
        if matches!(self.disk.free_files(&self.data_dir), Ok(Some(0))) {
            trouble = Some(format!(
                "no file can be created on the disk of {}: it has no inodes left (`df -i` shows it). Events are accepted until the next rotation; delete files that are not needed",
                self.data_dir.display()
            ));
        }
        self.room = Room {
            bytes: room,
            checked_at: Some(Instant::now()),
        };
        if room == 0 {
            trouble = Some(self.no_room());
        }
        match trouble {
            None => self.health.clear(DISK),
            Some(reason) => self.health.set(DISK, reason),
        }
        Ok(())
    }

    pub(super) fn no_room(&self) -> String {
        let reserve = self.config.disk_reserve_bytes;
        let bound = self.config.disk_bytes_max.map_or_else(String::new, |max| {
            format!(", or --max-disk {max} bytes is reached")
        });
        format!(
            "the disk of {} is full down to its reserve of {reserve} bytes{bound}; free some space, and ingestion resumes without a restart",
            self.data_dir.display()
        )
    }
}
