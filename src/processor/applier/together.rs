//! Small sealed segments, which are opened, synced and committed together.

use std::path::Path;
use std::time::{Duration, Instant};

use crc32fast::Hasher;

use super::files::{open, sync};
use super::replay::FileSource;
use super::{Applier, Commit, Watch};
use crate::aggregate::pool::RangeAggregate;
use crate::data_dir::disk::Disk;
use crate::data_dir::segment::{Label, Seal, SegmentId, Tag};
use crate::data_dir::{DataDirError, SegmentFile};
use crate::processor::ProcessError;
use crate::store::{Applied, OutcomeOfAll, Range, RangeEnd, Source};
use crate::verify::seal;

/// Larger segments get a transaction of their own, which costs less than the scan.
const SMALL_BYTES_MAX: u64 = 256 << 10;
/// The most segments applied in one transaction. All of them are open during it.
const TOGETHER_MAX: usize = 256;
/// From this number of files on, one sync of the file system is used instead of one of each file. It also
/// writes what other programs have not synced.
const SYNC_TOGETHER_MIN: usize = 8;

/// A small segment that was scanned to its end and is committed together with others.
pub(in crate::processor) struct Small {
    pub(in crate::processor) segment: SegmentFile,
    label: Option<Label>,
    from: u64,
    aggregate: RangeAggregate,
    /// The CRC-32 of all bytes up to the end.
    checksum: Hasher,
    took: Duration,
}

impl Small {
    /// The maximum memory in bytes until it is applied.
    pub(in crate::processor) fn memory_bytes(&self) -> usize {
        let RangeAggregate { users, partial, .. } = &self.aggregate;
        users.memory_bytes() + partial.memory_bytes()
    }
}

impl Applier<'_> {
    /// A segment of up to so many bytes may be applied with others.
    pub(in crate::processor) fn small_bytes(&self) -> u64 {
        self.pool.small_bytes().min(SMALL_BYTES_MAX)
    }

    /// How much of small segments may be held until they are applied, in bytes of memory.
    pub(in crate::processor) fn held_bytes_max(&self) -> usize {
        self.pool.range_bytes() / 2
    }

    /// Reads all that is left of a confirmed small sealed file of `size` bytes.
    pub(in crate::processor) fn read_small(
        &mut self,
        segment: SegmentFile,
        from: u64,
        size: u64,
    ) -> Result<Small, ProcessError> {
        let began = Instant::now();
        let Some(follow) = self.follows.get(&segment.id) else {
            return Err(ProcessError::Raced {
                segment: segment.id.to_string(),
            });
        };
        let mut checksum = follow.applied.clone();
        let label = follow.label;
        let aggregate = self
            .pool
            .scan(&segment.file, from, size)
            .map_err(ProcessError::io("read", &segment.path))?;
        checksum.combine(&aggregate.partial.checksum);
        let now = segment
            .file
            .size()
            .map_err(ProcessError::io("look at", &segment.path))?;
        let sealed = Seal {
            bytes: size,
            checksum: checksum.clone().finalize(),
        };
        let is_sealed = seal::of_path(&segment.path).is_none_or(|seal| seal == sealed);
        if aggregate.to != size || now != size || !is_sealed {
            self.forget(&segment.id);
            return Err(ProcessError::Changed {
                path: segment.path.clone(),
            });
        }
        Ok(Small {
            segment,
            label,
            from,
            aggregate,
            checksum,
            took: began.elapsed(),
        })
    }

    /// Applies small segments to their ends, in this order, in one transaction.
    pub(in crate::processor) fn commit_together(
        &mut self,
        small: &[Small],
        watch: &mut dyn Watch,
    ) -> Result<(), ProcessError> {
        let began = Instant::now();
        let names: Vec<String> = small.iter().map(|small| small.segment.name()).collect();
        let mut sources: Vec<_> = small
            .iter()
            .map(|small| FileSource {
                file: &*small.segment.file,
                from: small.from,
                to: small.aggregate.to,
                memory_bytes_max: usize::MAX,
            })
            .collect();
        let now_ms = self.clock.now_ms();
        let mut ranges: Vec<(Range<'_>, &mut dyn Source)> = Vec::with_capacity(small.len());
        for ((small, name), source) in small.iter().zip(&names).zip(&mut sources) {
            let checksum = small.checksum.clone().finalize();
            let range = small.aggregate.range(
                (&small.segment, small.label, name),
                small.from,
                checksum,
                RangeEnd::Complete,
                now_ms,
            );
            ranges.push((range, source));
        }
        let outcome = self.until_unlocked(watch, |writer| writer.apply_together(&mut ranges))?;
        match outcome {
            OutcomeOfAll::Applied(all) => self.committed_together(small, all, began, watch),
            OutcomeOfAll::Raced(at) => {
                for small in small {
                    self.forget(&small.segment.id);
                }
                return Err(ProcessError::Raced {
                    segment: small[at].segment.id.to_string(),
                });
            }
        }
        Ok(())
    }

    /// Records and reports a commit of small segments that began at `began`.
    fn committed_together(
        &mut self,
        small: &[Small],
        all: Vec<Applied>,
        began: Instant,
        watch: &mut dyn Watch,
    ) {
        self.work.committing += began.elapsed();
        let mut commits = Vec::with_capacity(small.len());
        for (small, applied) in small.iter().zip(all) {
            self.work.bytes += small.aggregate.to - small.from;
            if let Some(follow) = self.follows.get_mut(&small.segment.id) {
                follow.applied = small.checksum.clone();
            }
            commits.push(Commit {
                segment: &small.segment,
                from: small.from,
                to: small.aggregate.to,
                applied,
            });
        }
        let reading: Duration = small.iter().map(|small| small.took).sum();
        watch.committed(&commits, reading + began.elapsed());
    }
}

/// The result of opening one of several sealed files.
pub(in crate::processor) enum Opened {
    Small(SegmentFile),
    /// Too large to be applied with others.
    Large,
    Failed(ProcessError),
}

/// Opens up to [`TOGETHER_MAX`] sealed files and makes the small ones durable: from
/// [`SYNC_TOGETHER_MIN`] files on by one sync of the data directory's file system.
pub(in crate::processor) fn open_together<'f>(
    disk: &dyn Disk,
    data_dir: &Path,
    files: impl IntoIterator<Item = (&'f SegmentId, Option<Tag>, &'f Path)>,
    small_bytes: u64,
) -> Vec<Opened> {
    let mut opened: Vec<Opened> = Vec::new();
    let mut devices = Vec::new();
    for (id, tag, path) in files.into_iter().take(TOGETHER_MAX) {
        let found = open(disk, id, tag, path).and_then(|segment| {
            let stat = segment.file.stat();
            Ok((stat.map_err(ProcessError::io("look at", path))?, segment))
        });
        match found {
            // The files that are open are applied and closed first.
            Err(error) if !opened.is_empty() && is_out_of_descriptors(&error) => break,
            Err(error) => opened.push(Opened::Failed(error)),
            Ok((stat, _)) if stat.size > small_bytes => opened.push(Opened::Large),
            Ok((stat, segment)) => {
                devices.push(stat.identity.0);
                opened.push(Opened::Small(segment));
            }
        }
    }
    let synced = if devices.len() < SYNC_TOGETHER_MIN {
        None
    } else {
        device_synced(disk, data_dir)
    };
    let mut devices = devices.into_iter();
    for entry in &mut opened {
        if let Opened::Small(segment) = entry
            && devices.next() != synced
            && let Err(error) = sync(segment)
        {
            *entry = Opened::Failed(error);
        }
    }
    opened
}

/// Syncs all files on the device of the data directory and returns the device; `None` if each file must
/// be synced by itself.
fn device_synced(disk: &dyn Disk, data_dir: &Path) -> Option<u64> {
    let device = disk.identity(data_dir).ok()??.0;
    disk.sync_file_system(data_dir).ok()?.then_some(device)
}

pub(in crate::processor) fn is_out_of_descriptors(error: &ProcessError) -> bool {
    use rustix::io::Errno;
    let ProcessError::Io(DataDirError { source, .. }) = error else {
        return false;
    };
    let of_all = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    source
        .raw_os_error()
        .is_some_and(|errno| of_all.contains(&errno))
}
