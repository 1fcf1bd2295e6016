//! The content of a file on the simulated disk, and what a power cut may leave of it.

use std::ops::Range;

use super::seeds::Choices;

const SECTOR: usize = 512;
/// A change of a file that a power cut may undo.
#[derive(Clone)]
pub(super) enum FileChange {
    Write(Range<usize>),
    Length,
}

#[derive(Clone, Default)]
pub(super) struct Inode {
    pub(super) live: Vec<u8>,
    pub(super) durable: Vec<u8>,
    /// Changes since the last sync, each with the content after it.
    pub(super) unsynced: Vec<(FileChange, Vec<u8>)>,
    /// Bytes that a failed sync lost: reads return them, but they only become durable if written
    /// again.
    pub(super) rotten: Vec<Range<usize>>,
    /// Whether that sync was one of all files: the next one of this file reports it.
    pub(super) unreported: bool,
}

/// Which part of the unsynced changes is left.
pub(super) enum Left {
    None,
    All,
    Some(Choices),
}

impl Left {
    /// How many of `count` consecutive changes are left.
    pub(super) fn of(&mut self, count: usize) -> usize {
        match self {
            Self::None => 0,
            Self::All => count,
            Self::Some(choices) => choices.below(count + 1),
        }
    }
}

impl Inode {
    pub(super) fn write(&mut self, bytes: &[u8], offset: usize) {
        let range = offset..offset + bytes.len();
        if self.live.len() < range.end {
            self.live.resize(range.end, 0);
        }
        self.live[range.clone()].copy_from_slice(bytes);
        self.rotten = without(&self.rotten, &range);
        self.unsynced
            .push((FileChange::Write(range), self.live.clone()));
    }

    pub(super) fn set_len(&mut self, len: usize) {
        self.live.resize(len, 0);
        self.rotten = without(&self.rotten, &(len..usize::MAX));
        self.unsynced.push((FileChange::Length, self.live.clone()));
    }

    pub(super) fn sync(&mut self) {
        let mut durable = self.live.clone();
        for byte in self.rotten.iter().flat_map(Clone::clone) {
            durable[byte] = self.durable.get(byte).copied().unwrap_or(0);
        }
        self.durable = durable;
        self.unsynced.clear();
    }

    /// The effect of a failed sync: pages are marked clean that were never written to the disk.
    pub(super) fn fail_sync(&mut self) {
        for (change, _) in self.unsynced.drain(..) {
            if let FileChange::Write(range) = change {
                let end = range.end.min(self.live.len());
                if range.start < end {
                    self.rotten.push(range.start..end);
                }
            }
        }
    }

    /// The content after a power cut.
    pub(super) fn after_cut(&self, left: &mut Left) -> Vec<u8> {
        let mut lengths = vec![self.durable.len()];
        lengths.extend(self.unsynced.iter().map(|(_, after)| after.len()));
        let len = lengths[left.of(self.unsynced.len())];
        let mut found = vec![0; len];
        for start in (0..len).step_by(SECTOR) {
            let sector = start..(start + SECTOR).min(len);
            let mut versions = vec![&self.durable];
            versions.extend(
                self.unsynced
                    .iter()
                    .filter_map(|(change, after)| match change {
                        FileChange::Write(range) => {
                            (range.start < sector.end && sector.start < range.end).then_some(after)
                        }
                        FileChange::Length => None,
                    }),
            );
            let version = versions[left.of(versions.len() - 1)];
            for byte in sector {
                found[byte] = version.get(byte).copied().unwrap_or(0);
            }
        }
        found
    }
}

/// `ranges` without `hole`.
fn without(ranges: &[Range<usize>], hole: &Range<usize>) -> Vec<Range<usize>> {
    ranges
        .iter()
        .flat_map(|range| {
            [
                range.start..range.end.min(hole.start),
                range.start.max(hole.end)..range.end,
            ]
        })
        .filter(|range| !range.is_empty())
        .collect()
}
