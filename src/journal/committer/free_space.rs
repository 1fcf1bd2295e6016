//! Disk space: how many bytes may be appended without using the reserve or exceeding `--max-disk`.
//!
//! The committer thread asks the file system at most once a second, and counts down what it appends in
//! between. If the free space cannot be determined, events are accepted until a write fails, unless
//! `--max-disk` is set.

use std::io;
use std::time::{Duration, Instant};

use super::super::AppendError;
use super::{ActiveWriter, DISK};

/// The maximum age of the free space figure.
const SPACE_CHECK_EVERY: Duration = Duration::from_secs(1);
/// The maximum age while there is too little space, so that ingestion resumes soon after space was freed.
const FULL_CHECK_EVERY: Duration = Duration::from_millis(50);

/// The bytes that may still be appended, as of the last check.
#[derive(Default)]
pub(super) struct FreeSpace {
    bytes: u64,
    pub(super) checked_at: Option<Instant>,
}

impl ActiveWriter {
    /// Subtracts `bytes` from the available space, or fails if there is too little.
    pub(super) fn reserve_space(&mut self, bytes: u64) -> Result<(), AppendError> {
        let age_max = if self.free_space.bytes < bytes {
            FULL_CHECK_EVERY
        } else {
            SPACE_CHECK_EVERY
        };
        if self
            .free_space
            .checked_at
            .is_none_or(|at| at.elapsed() >= age_max)
        {
            self.measure_space()?;
        }
        if self.free_space.bytes < bytes {
            let reason = self.describe_lack();
            self.health.set(DISK, &reason);
            if self.config.disk_bytes_max.is_some() {
                self.disk.count_again();
            }
            return Err(AppendError::DiskFull(reason));
        }
        self.free_space.bytes -= bytes;
        Ok(())
    }

    /// Asks the file system for the free space. If it fails, readiness says so, and events are still
    /// accepted: a write fails when the disk is full. With `--max-disk` nothing is accepted then,
    /// because the bound could not be kept.
    pub(super) fn measure_space(&mut self) -> Result<(), AppendError> {
        let unknown = |error: io::Error| {
            format!(
                "cannot determine the free space of the disk of {}: {error}",
                self.data_dir.display()
            )
        };
        let mut trouble = None;
        let mut bytes = match self.disk.free_bytes(&self.data_dir) {
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
                Ok(used) => bytes = bytes.min(max.saturating_sub(used)),
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
        self.free_space = FreeSpace {
            bytes,
            checked_at: Some(Instant::now()),
        };
        if bytes == 0 {
            trouble = Some(self.describe_lack());
        }
        match trouble {
            None => self.health.clear(DISK),
            Some(reason) => self.health.set(DISK, reason),
        }
        Ok(())
    }

    pub(super) fn describe_lack(&self) -> String {
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
