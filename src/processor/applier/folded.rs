//! Sealed segments that wait at the same time: their sums per user are added up, and all of them are committed in
//! one transaction, so that a user who occurs in many of them is written once.

use std::time::{Duration, Instant};

use crc32fast::Hasher;

use super::replay::FileSource;
use super::{Applier, Commit, Watch, delta};
use crate::aggregate::UserSums;
use crate::aggregate::pool::Fold;
use crate::aggregate::scan::PartialAggregate;
use crate::data_dir::SegmentFile;
use crate::data_dir::disk;
use crate::data_dir::segment::{Label, Seal, SegmentId};
use crate::processor::ProcessError;
use crate::store::{Applied, OutcomeOfFold, Range, RangeEnd, Source};
use crate::verify::seal;

/// The most segments in one transaction. All of them are open during it.
const SEGMENTS_MAX: usize = 256;

/// The sums of several segments, and what else is applied of them.
pub(in crate::processor) struct Folded {
    fold: Fold,
    members: Vec<Member>,
}

/// A segment that was scanned from its applied offset to its end. Only the last one may have been scanned to an
/// earlier offset, because the memory was full.
pub(in crate::processor) struct Member {
    pub(in crate::processor) segment: SegmentFile,
    /// The size of the file.
    pub(in crate::processor) size: u64,
    pub(in crate::processor) from: u64,
    /// The end of what was scanned.
    pub(in crate::processor) to: u64,
    label: Option<Label>,
    partial: PartialAggregate,
    /// The CRC-32 of all bytes up to `to`.
    checksum: Hasher,
    took: Duration,
}

impl Member {
    /// Whether the file was scanned to its end.
    pub(in crate::processor) fn is_complete(&self) -> bool {
        self.to == self.size
    }

    fn range<'a>(&'a self, file_name: &'a str, users: &'a UserSums, now_ms: i64) -> Range<'a> {
        Range {
            segment: &self.segment.id,
            tag: self.segment.tag,
            label: self.label,
            file_name,
            from: self.from,
            to: self.to,
            checksum: self.checksum.clone().finalize(),
            end: if self.is_complete() {
                RangeEnd::Complete
            } else {
                RangeEnd::Sealed
            },
            now_ms,
            delta: delta(users, &self.partial),
        }
    }
}

/// The outcome of [`Applier::commit_folded`].
pub(in crate::processor) enum Committed {
    /// All members are applied.
    Together(Vec<Member>),
    /// Nothing is applied. Each segment has to be applied by itself.
    Nothing(Vec<Member>),
}

impl Folded {
    /// Whether no segment is in it.
    pub(in crate::processor) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether it has this segment.
    pub(in crate::processor) fn has(&self, id: &SegmentId) -> bool {
        self.members.iter().any(|member| member.segment.id == *id)
    }

    /// Whether it has to be committed before `more` bytes are added, because it then has more than `bytes_max`.
    pub(in crate::processor) fn is_full(&self, more: u64, bytes_max: u64) -> bool {
        let bytes_max = bytes_max.min(self.fold.bytes_max());
        let last = self.members.last();
        self.members.len() >= SEGMENTS_MAX
            || (!self.is_empty() && self.fold.bytes() + more > bytes_max)
            || last.is_some_and(|last| !last.is_complete())
    }

    /// The segments, which are to be applied in another way.
    pub(in crate::processor) fn into_members(self) -> Vec<Member> {
        self.members
    }
}

impl Applier<'_> {
    /// Sums of no segment.
    pub(in crate::processor) fn begin_fold(&mut self) -> Folded {
        Folded {
            fold: self.pool.begin(),
            members: Vec::new(),
        }
    }

    /// Adds the rest of a confirmed sealed file of `size` bytes, or its first part. Returns the segment if there
    /// was no room for any of it. After an error, the sums are of no use.
    pub(in crate::processor) fn fold(
        &mut self,
        folded: &mut Folded,
        segment: SegmentFile,
        from: u64,
        size: u64,
    ) -> Result<Option<SegmentFile>, ProcessError> {
        let began = Instant::now();
        let Some(follow) = self.follows.get(&segment.id) else {
            return Err(ProcessError::Raced {
                segment: segment.id.to_string(),
            });
        };
        let mut checksum = follow.applied.clone();
        let label = follow.label;
        let partial = self
            .pool
            .scan_into(&mut folded.fold, &segment.file, from, size, u64::MAX)
            .map_err(ProcessError::io("read", &segment.path))?;
        let to = from + partial.bytes();
        if to == from && from < size {
            return Ok(Some(segment));
        }
        checksum.combine(&partial.checksum);
        let member = Member {
            from,
            to,
            size,
            label,
            partial,
            checksum,
            took: began.elapsed(),
            segment,
        };
        if member.is_complete() && !is_unchanged(&member)? {
            self.forget(&member.segment.id);
            return Err(ProcessError::Changed {
                path: member.segment.path,
            });
        }
        folded.members.push(member);
        Ok(None)
    }

    /// Commits the segments in one transaction, in their order.
    pub(in crate::processor) fn commit_folded(
        &mut self,
        folded: Folded,
        watch: &mut dyn Watch,
    ) -> Result<Committed, ProcessError> {
        let began = Instant::now();
        let Folded { fold, members } = folded;
        let users = self
            .pool
            .finish(fold)
            .map_err(|error| io_of(&members, error))?;
        let names: Vec<String> = members.iter().map(|member| member.segment.name()).collect();
        let mut sources: Vec<_> = members
            .iter()
            .map(|member| FileSource {
                file: &*member.segment.file,
                from: member.from,
                to: member.to,
                memory_bytes_max: 0,
            })
            .collect();
        let now_ms = self.clock.now_ms();
        let mut ranges: Vec<(Range<'_>, &mut dyn Source)> = Vec::with_capacity(members.len());
        for ((member, name), source) in members.iter().zip(&names).zip(&mut sources) {
            ranges.push((member.range(name, &users, now_ms), source));
        }
        let outcome =
            self.until_unlocked(watch, |writer| writer.apply_folded(&users, &mut ranges))?;
        drop(ranges);
        match outcome {
            OutcomeOfFold::Separately => Ok(Committed::Nothing(members)),
            OutcomeOfFold::Applied(all) => {
                self.committed_folded(&members, all, began, watch);
                Ok(Committed::Together(members))
            }
            OutcomeOfFold::Raced(at) => {
                for member in &members {
                    self.forget(&member.segment.id);
                }
                Err(ProcessError::Raced {
                    segment: members[at].segment.id.to_string(),
                })
            }
        }
    }

    /// Records and reports a commit that began at `began`.
    fn committed_folded(
        &mut self,
        members: &[Member],
        all: Vec<Applied>,
        began: Instant,
        watch: &mut dyn Watch,
    ) {
        self.work.committing += began.elapsed();
        let mut commits = Vec::with_capacity(members.len());
        for (member, applied) in members.iter().zip(all) {
            self.work.bytes += member.to - member.from;
            if let Some(follow) = self.follows.get_mut(&member.segment.id) {
                follow.applied = member.checksum.clone();
            }
            commits.push(Commit {
                segment: &member.segment,
                from: member.from,
                to: member.to,
                applied,
            });
        }
        let scanning: Duration = members.iter().map(|member| member.took).sum();
        watch.committed(&commits, scanning + began.elapsed());
    }
}

/// Whether a sealed file of `size` bytes may be applied with others: its last line has a line end.
pub(in crate::processor) fn can_fold(
    segment: &SegmentFile,
    size: u64,
) -> Result<bool, ProcessError> {
    let lines_end = disk::last_line_end(&*segment.file, size);
    Ok(lines_end.map_err(ProcessError::io("read", &segment.path))? == size)
}

/// Whether the file still has the size that was scanned, and the length and checksum in its name.
fn is_unchanged(member: &Member) -> Result<bool, ProcessError> {
    let path = &member.segment.path;
    let now = member.segment.file.size();
    let now = now.map_err(ProcessError::io("inspect", path))?;
    let sealed = Seal {
        bytes: member.size,
        checksum: member.checksum.clone().finalize(),
    };
    Ok(now == member.size && seal::of_path(path).is_none_or(|seal| seal == sealed))
}

/// An error of the sums of all members.
fn io_of(members: &[Member], error: std::io::Error) -> ProcessError {
    let path = members.first().map(|member| member.segment.path.clone());
    ProcessError::io("sum up", &path.unwrap_or_default())(error)
}
